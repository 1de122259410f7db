"""Folders: what is saved is what is read, strictly, and nothing in a folder is ever run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig

from neuroflamingo import load
from neuroflamingo.checkpoints import local_models
from neuroflamingo.device import pick_device
from neuroflamingo.model.config import NeuroFlamingoConfig
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.processor import NeuroFlamingoProcessor
from neuroflamingo_encoders import build_encoder, registry
from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_preprocessing.errors import ConfigError, ModelError, NotFoundError, UsageError
from tests.tiny import WIDTH, tiny_batch, tiny_model


def saved(folder: Path, **how):
    model, processor = tiny_model(encoder=build_encoder("precomputed", width=WIDTH), **how)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mpt", "falcon"])
@pytest.mark.parametrize("shard", ["5GB", "50KB"])
def test_round_trip(tmp_path, family, shard):
    model, processor = tiny_model(
        family, encoder=build_encoder("precomputed", width=WIDTH), cross_attn_every_n_layers=2
    )
    model.save_pretrained(tmp_path, max_shard_size=shard)
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > (1 if shard == "50KB" else 0)
    assert not [file for file in tmp_path.iterdir() if file.suffix not in (".json", ".safetensors", ".jinja")]
    again, its_processor = load(tmp_path, device="cpu")
    assert not again.training
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trains == [name for name, p in again.named_parameters() if p.requires_grad]
    batch = tiny_batch(its_processor)
    batch["scans"] = batch.pop("scan_tokens")
    assert torch.equal(model.generate(**batch, max_new_tokens=4), again.generate(**batch, max_new_tokens=4))
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, again(**batch).logits, atol=1e-6, rtol=1e-6)
    assert its_processor.card == processor.card == model.encoder.card
    assert its_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert again.generation_config.pad_token_id == model.generation_config.pad_token_id
    ours, theirs = model.config.to_dict(), again.config.to_dict()
    for values in (ours, theirs):
        values.pop("text_config")  # families spell their own values differently after reading
        values.pop("_name_or_path", None)
    assert ours == theirs


def test_half_precision_on_disk_runs_in_single_precision(tmp_path):
    model, _ = saved(tmp_path)
    model.half().save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["perceiver.latents"].dtype == torch.float16
    assert load(tmp_path, "cpu")[0].dtype == torch.float32
    assert load(tmp_path, "cpu", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_device_map_and_loading_info(tmp_path):
    model, processor = saved(tmp_path)
    placed, info = NeuroFlamingo.from_pretrained(tmp_path, device_map={"": "cpu"}, output_loading_info=True)
    assert not info["missing_keys"]
    batch = tiny_batch(processor)
    with torch.no_grad():
        torch.testing.assert_close(placed(**batch).logits, model(**batch).logits, atol=1e-6, rtol=1e-6)
    auto = NeuroFlamingo.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(auto.generate(**batch, max_new_tokens=3), model.generate(**batch, max_new_tokens=3))


class WithBuffers(BrainEncoder):
    """Has a buffer that is not saved, which loading must compute again."""

    def __init__(self, card=None) -> None:
        super().__init__(card or precomputed_card(WIDTH))
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.arange(WIDTH, dtype=torch.float32), persistent=False)

    def forward(self, x):
        return EncoderOutput(x * self.scale + self.shift)


def test_unsaved_buffers_of_the_encoder_are_there_after_loading(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.BUILT_IN, "precomputed", f"{__name__}:with_buffers")
    model, _ = tiny_model(encoder=build_encoder("precomputed", width=WIDTH))
    nn.init.constant_(model.encoder.scale, 2.0)
    model.save_pretrained(tmp_path)
    again = NeuroFlamingo.from_pretrained(tmp_path)
    assert torch.equal(again.encoder.shift, torch.arange(WIDTH, dtype=torch.float32))
    assert float(again.encoder.scale) == 2.0 and not again.encoder.scale.requires_grad


def with_buffers(width: int):
    return precomputed_card(width).model_copy(update={"implementation": f"{__name__}:WithBuffers"})


def test_an_encoder_with_options_comes_back(tmp_path):
    options = {"side": 32, "patch": 16, "width": WIDTH, "depth": 2, "heads": 2, "mlp": 64, "quick_gelu": False}
    options |= {"slices": 2, "axis": "x", "high": 98.0, "x": 12, "y": 20, "z": 16}
    encoder = build_encoder("clip-tower", **options)
    model, processor = tiny_model(encoder=encoder)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, its_processor = load(tmp_path, "cpu")
    assert again.encoder.card == encoder.card == its_processor.card and dict(again.encoder.card.options) == options
    heads = torch.rand(1, 1, 1, 12, 20, 16)
    assert torch.equal(again.encoder(heads).tokens, model.encoder(heads).tokens)


def test_an_encoder_that_would_not_come_back_is_not_saved(tmp_path):
    card = precomputed_card(WIDTH)  # made by hand: nothing tells a reader that the width is not the default
    model, _ = tiny_model(encoder=WithBuffers(card))
    with pytest.raises(ModelError, match=r"could not be rebuilt .*\n.*\n.*\n.*build_encoder\('precomputed'"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_changed_is_refused(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change_json(tmp_path / "config.json", encoder=config["encoder"] | {"digest": "0" * 64})
    with pytest.raises(ModelError, match="differs from the one that this model was trained with"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "b.pkl", "nested/c.ckpt"])
def test_a_pickle_in_the_folder_is_refused(tmp_path, name):
    saved(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"not even a pickle")
    with pytest.raises(ModelError, match="may be a pickle"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("config.json", {"text_config": {"model_type": "llama", "auto_map": {"AutoConfig": "evil.Evil"}}}),
        ("config.json", {"custom_pipelines": {"x": {"impl": "evil.Evil"}}}),
        ("config.json", {"trust_remote_code": True}),
        ("config.json", {"text_config": {"model_type": "llama", "attn_implementation": "evil/kernel"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("generation_config.json", {"custom_generate": "evil"}),
    ],
)
def test_files_that_ask_for_code_are_refused(tmp_path, file, changes):
    saved(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('this ran')")
    change_json(tmp_path / file, **changes)
    for read in (load, NeuroFlamingo.from_pretrained, NeuroFlamingoProcessor.from_pretrained):
        with pytest.raises(ConfigError, match="asks to run its own code"):
            read(tmp_path)


def test_trust_remote_code_is_not_taken(tmp_path):
    saved(tmp_path)
    with pytest.raises(UsageError, match="trust_remote_code was given"):
        NeuroFlamingo.from_pretrained(tmp_path, trust_remote_code=True)


def test_a_language_model_that_transformers_does_not_ship_is_refused(tmp_path):
    saved(tmp_path)
    change_json(tmp_path / "config.json", text_config={"model_type": "evil"})
    with pytest.raises(ConfigError, match="unknown language model 'evil'"):
        load(tmp_path)


def test_settings_that_do_not_fit_name_every_fault(tmp_path):
    with pytest.raises(ConfigError, match=r"depht.*\n*.*") as caught:
        NeuroFlamingoConfig(resampler={"dim": 0, "depht": 3})
    assert "dim" in str(caught.value) and "depht" in str(caught.value)


@pytest.mark.parametrize("fault", ["missing", "left over", "another shape"])
def test_weights_that_do_not_fit_are_refused(tmp_path, fault):
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    if fault == "missing":
        del state["perceiver.latents"]
    elif fault == "left over":
        state["perceiver.extra"] = torch.zeros(2)
    else:
        state["perceiver.latents"] = torch.zeros(4, WIDTH)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="do not fit its config") as caught:
        load(tmp_path)
    assert caught.value.exit_code == 65


def test_names_and_folders_that_are_not_there(tmp_path, monkeypatch):
    saved(tmp_path / "models" / "tiny-t9w")
    monkeypatch.setattr(local_models, "MODELS", tmp_path / "models")
    assert local_models.list_models() == ("tiny-t9w",)
    assert load("tiny-t9w", "cpu")[0].config.model_type == "neuroflamingo"
    with pytest.raises(ModelError, match=r"did you mean tiny-t9w\?") as caught:
        load("tiny-t9v")
    assert caught.value.exit_code == 66
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"no config\.json in it"):
        load(tmp_path / "empty")


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_devices_that_are_not_there(device):
    with pytest.raises(UsageError, match="device"):
        pick_device(device)


def test_transformers_knows_the_config(tmp_path):
    saved(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), NeuroFlamingoConfig)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_the_encoders_stored_weights_are_held_against_the_config(tmp_path, dtype, shard):
    """Whatever they are stored and read in; a model that is saved again has the digest of what it holds then."""
    encoder = build_encoder("vit3d", tiny=True)
    model, _ = tiny_model(encoder=encoder, resampler={"dim": encoder.card.output.width, "depth": 1, "num_latents": 4})
    model.to(dtype).save_pretrained(tmp_path / "a", max_shard_size=shard)
    for asked in ("auto", torch.float32, torch.bfloat16):
        again = NeuroFlamingo.from_pretrained(tmp_path / "a", dtype=asked)
        again.save_pretrained(tmp_path / f"b-{asked}")
        NeuroFlamingo.from_pretrained(tmp_path / f"b-{asked}")
    (file,) = [
        f for f in (tmp_path / "a").glob("*.safetensors") if any(k.startswith("encoder.") for k in load_file(f))
    ][:1]
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("encoder."))
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match="are not those that the model was saved with") as caught:
        NeuroFlamingo.from_pretrained(tmp_path / "a")
    assert caught.value.exit_code == 65
    change_json(tmp_path / "a" / "config.json", encoder_weights_sha256=None)
    NeuroFlamingo.from_pretrained(tmp_path / "a")  # models of before do not have it


def test_other_weights_than_the_encoders_may_change(tmp_path):
    encoder = build_encoder("vit3d", tiny=True)
    model, _ = tiny_model(encoder=encoder, resampler={"dim": encoder.card.output.width, "depth": 1, "num_latents": 4})
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["perceiver.latents"] = tensors["perceiver.latents"] + 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    NeuroFlamingo.from_pretrained(tmp_path)


def test_the_embedded_model_names_its_encoders_weights():
    for name in local_models.list_models():
        config = json.loads((local_models.find_model(name) / "config.json").read_text())
        assert len(config["encoder_weights_sha256"]) == 64
