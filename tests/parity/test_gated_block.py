"""The gated cross-attention block against upstream's numbers: outputs, gradients, cached media.

When each token attends to all scans so far, upstream lets the text before the first scan attend to every scan alike,
later ones included. Here such text sees nothing. Fixtures with that quirk are compared in two ways: ours on all other
rows, and, with the quirk put in by hand for its rows, everything including the gradients of shared weights.
"""

from __future__ import annotations

import pytest
import torch
from einops import rearrange, reduce

from neuroflamingo.model.gated_attention import GatedCrossAttentionBlock


def build(golden) -> GatedCrossAttentionBlock:
    block = GatedCrossAttentionBlock(**golden.spec["config"])
    block.load_state_dict(golden.under("state."))
    return block


def run(block, golden, x, media):
    return block(x, media, media_locations=golden.get("input.media_locations"), use_cached_media=cached(golden))


def cached(golden) -> bool:
    return golden.spec["use_cached_media"]


def quirk_rows(golden) -> torch.Tensor:
    """[batch text], True where upstream attends uniformly to all scans instead of to none."""
    if not golden.spec["uniform_attention_quirk"]:
        return torch.zeros(golden["output.y"].shape[:2], dtype=torch.bool)
    rows = golden["info.no_preceding_media"]
    assert rows.any()
    return rows


def uniform_attention(block, x, media):
    """Upstream's result for text before the first scan: the mean over all latents of all scans."""
    values = block.attn.to_kv(rearrange(media, "batch scan latent width -> batch (scan latent) width")).chunk(2, -1)[1]
    read = block.attn.to_out(reduce(values, "batch key width -> batch 1 width", "mean"))
    y = x + read * block.attn_gate.tanh()
    return y + block.ff(y) * block.ff_gate.tanh()


def test_outputs(gated_block):
    y = run(build(gated_block), gated_block, gated_block["input.x"], gated_block["input.media"])
    rows = ~quirk_rows(gated_block)
    torch.testing.assert_close(y[rows], gated_block["output.y"][rows], atol=1e-5, rtol=1e-5)


def test_gradients(gated_block):
    block = build(gated_block)
    x, media = gated_block["input.x"].requires_grad_(), gated_block["input.media"].requires_grad_()
    rows = quirk_rows(gated_block)
    y = torch.where(rows[..., None], uniform_attention(block, x, media), run(block, gated_block, x, media))
    torch.testing.assert_close(y, gated_block["output.y"], atol=1e-5, rtol=1e-5)
    (y * gated_block["input.grad_output"]).sum().backward()
    torch.testing.assert_close(x.grad, gated_block["grad.x"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(media.grad, gated_block["grad.media"], atol=1e-4, rtol=1e-4)
    golden = gated_block.under("grad.param.")
    assert golden.keys() == dict(block.named_parameters()).keys()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, golden[name], atol=1e-4, rtol=1e-4, msg=f"gradient of {name}")


def test_text_before_the_first_scan_sees_none(gated_block):
    locations = gated_block.get("input.media_locations")
    if locations is None or cached(gated_block):
        pytest.skip("all text comes after the scans")
    before = locations.cumsum(-1) == 0
    if not before.any():
        pytest.skip("each row begins with a scan")
    block, x, media = build(gated_block), gated_block["input.x"], gated_block["input.media"]
    y, other = run(block, gated_block, x, media), run(block, gated_block, x, media + 1)
    assert torch.equal(y[before], other[before])
    assert not torch.allclose(y[~before], other[~before], atol=1e-2)
    torch.testing.assert_close(y[before], (x + block.ff(x) * block.ff_gate.tanh())[before], atol=1e-6, rtol=1e-6)
