"""LoRA by peft on the language model's and the added matrices: attaches, trains, saves, loads, merges."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.tiny import tiny_batch, tiny_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "to_q", "to_kv", "to_out", "ff.1", "ff.3"]
NAMES = {"llama": TARGETS, "gptj": ["q_proj", "v_proj", "out_proj", "to_q", "to_kv", "to_out", "ff.1", "ff.3"]}


@pytest.mark.parametrize("family", NAMES)
def test_lora_trains_saves_loads_and_merges(tmp_path, family):
    torch.manual_seed(0)
    model, processor = tiny_model(family)
    batch = tiny_batch(processor, padding_side="right")
    with torch.no_grad():
        bare = model(**batch).logits
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=NAMES[family])
    tuned = get_peft_model(model, config)
    adapted = {
        name.split(".lora_A")[0].rsplit("model.", 1)[-1] for name, _ in tuned.named_parameters() if "lora_A" in name
    }
    for place in ("attn.to_q", "attn.to_kv", "attn.to_out", "gated_cross_attn_layer.ff.1", "q_proj"):
        assert any(name.endswith(place) for name in adapted), place
    tuned.train()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        loss = tuned(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    tuned.eval()
    with torch.no_grad():
        after = tuned(**batch).logits
    assert not torch.allclose(after, bare, atol=1e-2)
    written = tuned.generate(**batch, max_new_tokens=4)
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(family)[0], tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, after, atol=1e-6, rtol=1e-6)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, after, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.generate(**batch, max_new_tokens=4), written)


def test_lora_reaches_the_keys_and_values_of_generation():
    """Keys and values are projected by the adapted matrices, not by the frozen weights beneath."""
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    cached = model(**batch, use_cache=True).logits
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["to_kv"], init_lora_weights=False)).eval()
    with torch.no_grad():
        one, two = tuned(**batch, use_cache=True).logits, tuned(**batch, use_cache=False).logits
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one, cached, atol=1e-3)
