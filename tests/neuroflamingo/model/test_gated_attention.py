"""Gated blocks beyond the golden numbers of tests/parity: what text may not see, and the ways of computing it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuroflamingo.model.gated_attention import GatedCrossAttentionBlock, MaskedCrossAttention
from neuroflamingo.model.media import Media, allowed_scans, make_plan, masked_plan
from neuroflamingo_preprocessing.errors import UsageError
from tests.tiny import fill_by_rule

DIM, WIDTH = 24, 16
both_modes = pytest.mark.parametrize("immediate", [True, False], ids=["immediate", "all previous"])


def block(immediate: bool = True) -> GatedCrossAttentionBlock:
    made = GatedCrossAttentionBlock(
        dim=DIM, dim_visual=WIDTH, dim_head=8, heads=3, only_attend_immediate_media=immediate
    )
    fill_by_rule(made)
    return made


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOCATIONS = torch.zeros(2, 12, dtype=torch.bool)
LOCATIONS[0, [2, 5, 9]] = True
LOCATIONS[1, 4] = True


def test_closed_gates_change_nothing_bit_for_bit():
    closed = GatedCrossAttentionBlock(dim=DIM, dim_visual=WIDTH)
    x = random(2, 12, DIM)
    assert torch.equal(closed(x, random(2, 3, 5, WIDTH), LOCATIONS), x)


@both_modes
def test_text_before_the_first_scan_sees_nothing(immediate):
    """Upstream lets it see every scan, later and padded ones included, when all previous scans are attended."""
    attention = block(immediate).attn
    x = random(2, 12, DIM)
    read = attention(x, random(2, 3, 5, WIDTH), LOCATIONS)
    assert not read[0, :2].any() and not read[1, :4].any()
    assert read[0, 2:].abs().amin(dim=-1).min() >= 0 and read[0, 2:].any(-1).all() and read[1, 4:].any(-1).all()
    assert torch.equal(read[:, :2], attention(x, random(2, 3, 5, WIDTH, seed=1), LOCATIONS)[:, :2])


@both_modes
def test_no_gradient_reaches_scans_that_no_text_sees(immediate):
    media = random(2, 3, 5, WIDTH).requires_grad_()
    block(immediate)(random(2, 12, DIM), media, LOCATIONS).sum().backward()
    assert media.grad is not None
    assert media.grad[0].flatten(1).any(1).all()
    assert media.grad[1, 0].any() and not media.grad[1, 1:].any()


@both_modes
def test_each_token_sees_its_scans_only(immediate):
    """Token by token against attention over exactly the scans it may see."""
    attention, x, media = block(immediate).attn, random(2, 12, DIM), random(2, 3, 5, WIDTH)
    read, time = attention(x, media, LOCATIONS), LOCATIONS.long().cumsum(-1)
    for row in range(2):
        for token in range(12):
            count = int(time[row, token])
            if count == 0:
                continue
            first = count - 1 if immediate else 0
            visible = media[row : row + 1, first:count]
            alone = attention(x[row : row + 1, token : token + 1], visible, None, use_cached_media=True)
            torch.testing.assert_close(read[row, token], alone[0, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("every", [4, 2])
def test_grouping_by_scan_equals_masking(every):
    """Long text with many scans is regrouped; the numbers and gradients are those of the masked computation."""
    images = torch.zeros(2, 32, dtype=torch.bool)
    images[0, ::every] = True
    images[1, 3 : 3 + 5 * every : every] = True
    time, scans = images.long().cumsum(-1), int(images[0].sum())
    ordinal = torch.arange(1, scans + 1).expand(2, -1)
    plan = make_plan(time, ordinal, True)
    masked = masked_plan(allowed_scans(time, ordinal, True))
    assert (plan.kind, masked.kind) == ("segments", "masked")
    made, x, results = block(), random(2, 32, DIM), []
    for chosen in (plan, masked):
        latents = random(2, scans, 5, WIDTH).requires_grad_()
        out = made(x, Media(chosen, latents))
        grads = torch.autograd.grad(out.square().sum(), [latents, *made.attn.parameters()])
        results.append((out, *grads))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("time", "ordinal", "immediate", "kind"),
    [
        ([[0, 0]], [[1]], True, "none"),
        ([[0, 0]], [[]], True, "none"),
        ([[0, 1, 1]], [[1]], True, "one"),
        ([[2, 2, 2]], [[1, 2, 3]], True, "one"),
        ([[1, 2, 2, 2, 2, 2]], [[1, 2]], True, "masked"),
        ([[1, 1, 2, 2]], [[1, 2]], True, "segments"),
        ([[2, 2]], [[1, 2]], False, "all"),
        ([[2, 2], [1, 1]], [[1, 2], [1, 0]], False, "masked"),
        ([[0, 1]], [[1]], False, "masked"),
    ],
)
def test_the_cheapest_plan_is_chosen(time, ordinal, immediate, kind):
    ordinal = torch.tensor(ordinal, dtype=torch.long)
    assert make_plan(torch.tensor(time), ordinal, immediate).kind == kind


def test_padded_scans_are_never_seen():
    """Row 1 has one scan, in slot 0; slot 1 holds rubbish."""
    time, ordinal = torch.tensor([[1, 2], [1, 1]]), torch.tensor([[1, 2], [1, 0]])
    media = random(2, 2, 5, WIDTH)
    rubbish = media.clone()
    rubbish[1, 1] = 1e6
    for immediate in (True, False):
        plan = make_plan(time, ordinal, immediate)
        made, x = block(immediate), random(2, 2, DIM)
        assert torch.equal(made(x, Media(plan, media)), made(x, Media(plan, rubbish)))


@both_modes
def test_more_image_tokens_than_scans_are_refused(immediate):
    with pytest.raises(UsageError, match="row 0 of the batch has 3 <image> tokens and 2 scans"):
        block(immediate)(random(2, 12, DIM), random(2, 2, 5, WIDTH), LOCATIONS)


def test_locations_must_be_there_and_fit():
    made, x, media = block(), random(2, 12, DIM), random(2, 3, 5, WIDTH)
    with pytest.raises(UsageError, match="media_locations is missing"):
        made(x, media)
    with pytest.raises(UsageError, match="does not fit the text"):
        made(x, media, LOCATIONS[:, :5])


def test_upstreams_names_and_sizes():
    made = GatedCrossAttentionBlock(dim=DIM, dim_visual=WIDTH)
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == {
        "attn_gate": (1,),
        "ff_gate": (1,),
        "attn.norm.weight": (DIM,),
        "attn.norm.bias": (DIM,),
        "attn.to_q.weight": (512, DIM),
        "attn.to_kv.weight": (1024, WIDTH),
        "attn.to_out.weight": (DIM, 512),
        "ff.0.weight": (DIM,),
        "ff.0.bias": (DIM,),
        "ff.1.weight": (4 * DIM, DIM),
        "ff.3.weight": (DIM, 4 * DIM),
    }
    assert isinstance(made.attn, MaskedCrossAttention)
