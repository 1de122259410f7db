"""Models larger than a device: spread over memory and disk by whole layers, with the same results."""

from __future__ import annotations

import sys

import pytest
import torch

from neuroflamingo.checkpoints.device_map import place_layers
from neuroflamingo.checkpoints.load_model import load
from neuroflamingo_encoders import build_encoder
from neuroflamingo_preprocessing.errors import ModelError, UsageError
from tests.tiny import tiny_batch, tiny_model


@pytest.fixture(scope="module", params=["llama", "opt", "gptj"])
def saved(request, tmp_path_factory):
    """A folder, a batch, and what the model gives in memory."""
    model, processor = tiny_model(request.param)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    batch = tiny_batch(processor)
    with torch.no_grad():
        return folder, batch, model(**batch).logits, model.generate(**batch, max_new_tokens=5, do_sample=False)


def sizes(folder) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_most_of_it_on_the_disk_gives_equal_logits_and_text(saved, tmp_path):
    folder, batch, logits, written = saved
    room = {"cpu": sizes(folder) // 2, "disk": 2**40}
    model, _ = load(folder, device="cpu", device_map="auto", max_memory=room, offload_folder=tmp_path / "offload")
    places = model.hf_device_map
    assert "disk" in places.values() and places["perceiver"] == "cpu"
    assert any(parameter.is_meta for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, logits, atol=1e-6, rtol=1e-6)
    assert torch.equal(model.generate(**batch, max_new_tokens=5, do_sample=False), written)
    whole, _ = load(folder, device="cpu")
    torch.testing.assert_close(model.attention_rollout(**batch), whole.attention_rollout(**batch))


def test_a_layer_and_its_gated_block_stay_together(saved):
    folder, *_ = saved
    for share in (0.2, 0.4, 0.6, 0.8):
        room = {"cpu": int(sizes(folder) * share), "disk": 2**40}
        places = place_layers(folder, "auto", "cpu", room)
        assert not any("decoder_layer" in name or "gated_cross_attn_layer" in name for name in places), places
        assert places["perceiver"] == "cpu"


def test_maps_of_ones_own(saved, tmp_path):
    folder, batch, logits, _ = saved
    names = place_layers(folder, "auto", "cpu", {"cpu": 2**30})
    mine = {name: "disk" if name.endswith(".1") else "cpu" for name in names}
    model, _ = load(folder, device="cpu", device_map=mine, offload_folder=tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, logits, atol=1e-6, rtol=1e-6)
    layer = next(name for name in names if name.endswith(".1"))
    with pytest.raises(UsageError, match="splits what is computed together"):
        load(folder, device="cpu", device_map={**names, f"{layer}.decoder_layer": "disk"}, offload_folder=tmp_path)
    with pytest.raises(UsageError, match="do not fit into memory"):
        load(folder, device="cpu", device_map=mine)
    with pytest.raises(UsageError, match="unknown device map"):
        load(folder, device="cpu", device_map="everywhere")


def test_with_an_encoder_the_encoder_stays_whole(tmp_path):
    encoder = build_encoder("brainiac-vitb", tiny=True)
    how = {"dim": encoder.card.output.width, "depth": 1, "num_latents": 3, "heads": 2, "dim_head": 8}
    model, processor = tiny_model("llama", encoder=encoder, resampler=how)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    scan = encoder.example((1, 1, *(axis.size for axis in encoder.card.scan.axes)), torch.Generator().manual_seed(0))
    batch = processor("<image> w1 w2", scans=[scan[0, 0]])
    room = {"cpu": 30000, "disk": 2**40}
    spread, _ = load(
        tmp_path / "saved", device="cpu", device_map="auto", max_memory=room, offload_folder=tmp_path / "offload"
    )
    assert not any(parameter.is_meta for parameter in spread.encoder.parameters())
    assert any(parameter.is_meta for parameter in spread.lang_encoder.parameters())
    with torch.no_grad():
        torch.testing.assert_close(spread(**batch).logits, model(**batch).logits, atol=1e-6, rtol=1e-6)


def test_quantised_weights_without_bitsandbytes_say_what_is_missing(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("neuroflamingo.checkpoints.quantization.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="need bitsandbytes") as caught:
        load(saved[0], device="cpu", quantize="8bit")
    assert caught.value.exit_code == 69
    with pytest.raises(UsageError, match="unknown kind of quantisation"):
        load(saved[0], device="cpu", quantize="2bit")  # pyright: ignore[reportArgumentType]
