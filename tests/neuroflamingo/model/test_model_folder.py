"""Folders that were damaged, mixed up or made to harm: each is refused at once, by an error that names the file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuroflamingo import load
from neuroflamingo.inference.loaded_model import describe, model_folder, open_model
from neuroflamingo.model.folder import digest_of_files, loaded_files, read_card
from neuroflamingo.model.library_errors import blame_file
from neuroflamingo_encoders import build_encoder
from neuroflamingo_preprocessing.errors import ConfigError, ModelError, NeuroFlamingoError
from neuroflamingo_preprocessing.files import sha256_of
from tests.tiny import WIDTH, tiny_model

SECONDS = 60  # far above what any refusal takes, far below what would be built or read


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A saved model with an encoder, in one file."""
    folder = tmp_path_factory.mktemp("original") / "model"
    model, processor = tiny_model(encoder=build_encoder("precomputed", width=WIDTH))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit(file: str, **changes: Any) -> Callable[[Path], object]:
    """A change of keys, `a__b` for b inside a."""

    def change(folder: Path) -> None:
        path = folder / file
        plain = json.loads(path.read_text()) if path.exists() else {}
        for key, value in changes.items():
            *parents, last = key.split("__")
            inner = plain
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        path.write_text(json.dumps(plain))

    return change


def write(file: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(data)


def remove(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


def link(file: str, target: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target)

    return change


def cut(file: str, to: Callable[[int], int]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: to(len(data))])

    return change


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def sharded(**names: str) -> Callable[[Path], object]:
    """An index in place of the one file; what it names lies beside the folder too."""

    def change(folder: Path) -> None:
        weights = folder / "model.safetensors"
        shutil.copy(weights, folder.parent / "outside.safetensors")
        (folder / "weights.dat").write_bytes(pickle.dumps({"perceiver.latents": [1.0]}))
        if names.get("file") == "weights.safetensors":
            (folder / "weights.safetensors").symlink_to(folder.parent / "outside.safetensors")
        tensors = dict.fromkeys(load_file(weights), names.get("file", ""))
        if "whole" in names:
            tensors = json.loads(names["whole"])
        weights.unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": tensors}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        state = load_file(file)
        save_file({name: value.contiguous() for name, value in change(state).items()}, file, metadata={"format": "pt"})

    return apply


def header(data: bytes, length: int | None = None) -> Callable[[Path], object]:
    return write("model.safetensors", struct.pack("<Q", len(data) if length is None else length) + data)


def card(**changes: Any) -> Callable[[Path], object]:
    return edit("encoder_card.json", **changes)


C, W, I, G, T, E = (  # noqa: E741
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "generation_config.json",
    "tokenizer",
    "encoder_card.json",
)
BAD: dict[str, tuple[str, Callable[[Path], object]]] = {
    # weights
    "no weights": (W, remove(W)),
    "a pickle alone": ("x.BIN", lambda f: (f / W).rename(f / "x.BIN")),
    "weights cut in the middle": (W, cut(W, lambda n: n // 2)),
    "weights cut by a byte": (W, cut(W, lambda n: n - 1)),
    "weights cut in the header": (W, cut(W, lambda n: 100)),
    "empty weights": (W, write(W, b"")),
    "weights of seven bytes": (W, write(W, b"1234567")),
    "weights that are a page": (W, write(W, b"<!DOCTYPE html>" * 99)),
    "weights that are a pointer": (W, write(W, b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")),
    "a header of 2^63": (W, header(b"{}", 2**63)),
    "a header of 99 MB": (W, header(b"{}", 99_000_000)),
    "a header that is no JSON": (W, header(b"[[[[[[[[")),
    "a header that lies about places": (
        W,
        header(json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**9]}}).encode()),
    ),
    "a header with a strange type": (
        W,
        header(json.dumps({"a": {"dtype": "EVIL", "shape": [], "data_offsets": [0, 0]}}).encode()),
    ),
    "a header of negative sizes": (
        W,
        header(json.dumps({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 0]}}).encode()),
    ),
    "a link to the weights": (W, lambda f: ((f / W).rename(f.parent / W), link(W, str(f.parent / W))(f))),
    "a link to nothing": (W, link(W, "nowhere")),
    "a folder for weights": (W, lambda f: ((f / W).unlink(), (f / W).mkdir())),
    "int8 weights": (W, tensors(lambda s: {n: (v * 9).to(torch.int8) for n, v in s.items()})),
    "another model's weights": (C, tensors(lambda s: {"wte.weight": torch.zeros(3, 3)})),
    # the index of shards
    "index: a pickle": (I, sharded(file="weights.dat")),
    "index: a file outside": (I, sharded(file="../outside.safetensors")),
    "index: a pickle outside": (I, sharded(file="../outside.bin")),
    "index: an absolute path": (I, sharded(file="/etc/passwd")),
    "index: an absolute path of weights": (I, sharded(file="/srv/a.safetensors")),
    "index: a backslash": (I, sharded(file="..\\outside.safetensors")),
    "index: NUL": (I, sharded(file="a\0.safetensors")),
    "index: a hidden file": (I, sharded(file=".safetensors")),
    "index: a link": ("weights.safetensors", sharded(file="weights.safetensors")),
    "index: no such file": ("gone.safetensors", sharded(file="gone.safetensors")),
    "index: no map": (I, sharded(whole="null")),
    "index: an empty map": (I, sharded(whole="{}")),
    "index: numbers for files": (I, sharded(whole='{"a": 3}')),
    "index: a list": (I, sharded(whole="[]")),
    "index: no JSON": (I, lambda f: (sharded(file="a.safetensors")(f), write(I, b"{")(f))),
    "index: too much": (
        I,
        lambda f: (
            sharded(whole='{"none.such": "part.safetensors"}')(f),
            save_file({"b": torch.zeros(1)}, f / "part.safetensors"),
        ),
    ),
    # an adapter that would be merged in
    "an adapter": ("adapter_config.json", write("adapter_config.json", b'{"peft_type": "LORA", "r": 2}')),
    "adapter weights": (
        "adapter_model.safetensors",
        lambda f: save_file({"a": torch.zeros(1)}, f / "adapter_model.safetensors"),
    ),
    # what is no file
    "a pipe": ("x.json", lambda f: os.mkfifo(f / "x.json")),
    "a pipe for the config of the tokenizer": (
        "tokenizer_config.json",
        lambda f: ((f / "tokenizer_config.json").unlink(), os.mkfifo(f / "tokenizer_config.json")),
    ),
    "a device": ("z.json", link("z.json", "/dev/zero")),
    "a device for a template": ("chat_template.jinja", link("chat_template.jinja", "/dev/zero")),
    "a huge JSON file": ("huge.json", lambda f: os.truncate(_touch(f / "huge.json"), 2**40)),
    # config.json
    "config: a list": (C, write(C, b"[]")),
    "config: no JSON": (C, write(C, b"{")),
    "config: not UTF-8": (C, write(C, b'{"a": "\xff"}')),
    "config: nested 900 deep": (C, edit(C, extra=json.loads(nested(900)))),
    "config: nested 100,000 deep": (C, write(C, nested(100_000))),
    "another JSON file nested 900 deep": ("notes.json", write("notes.json", nested(900))),
    "another JSON file nested 100,000 deep": ("notes.json", write("notes.json", nested(100_000))),
    "config: ten million layers": (C, edit(C, text_config__num_hidden_layers=10**7)),
    "config: a resampler a million deep": (C, edit(C, resampler__depth=10**6)),
    "config: layers without end": (C, edit(C, text_config__num_hidden_layers=10**30)),
    "config: 10,000 digits": (C, write(C, b'{"a": ' + b"9" * 10_000 + b"}")),
    "config: experts without end": (C, edit(C, text_config={"model_type": "mixtral", "num_local_experts": 10**7})),
    "config: a huge width": (C, edit(C, text_config__hidden_size=10**6)),
    "config: a huger width": (C, edit(C, text_config__hidden_size=10**12)),
    "config: a huge vocabulary": (C, edit(C, text_config__vocab_size=10**9)),
    "config: a huge resampler": (C, edit(C, resampler__num_latents=10**9)),
    "config: huge heads": (C, edit(C, resampler__heads=10**6)),
    "config: no heads": (C, edit(C, text_config__num_attention_heads=0)),
    "config: negative layers": (C, edit(C, text_config__num_hidden_layers=-3)),
    "config: layers in words": (C, edit(C, text_config__num_hidden_layers="three")),
    "config: a width in words": (C, edit(C, text_config__hidden_size="wide")),
    "config: a width that is a list": (C, edit(C, text_config__hidden_size=[32])),
    "config: no width": (C, edit(C, text_config__hidden_size=None)),
    "config: NaN": (C, edit(C, text_config__rms_norm_eps=float("nan"))),
    "config: text is a word": ("text_config", edit(C, text_config="llama")),
    "config: text is a list": ("text_config", edit(C, text_config=["llama"])),
    "config: text has no type": ("text_config", edit(C, text_config={"hidden_size": 32})),
    "config: text is of a list": ("text_config", edit(C, text_config={"model_type": ["llama"]})),
    "config: text is a picture model": ("config", edit(C, text_config={"model_type": "vit"})),
    "config: an activation that is none": (C, edit(C, text_config__hidden_act="evil")),
    "config: an unknown rope": (C, edit(C, text_config__rope_parameters={"rope_type": "evil", "rope_theta": 1e4})),
    "config: rope is a word": (C, edit(C, text_config__rope_parameters="evil")),
    "config: a kernel": ("config", edit(C, text_config__attn_implementation="evil/kernel")),
    "config: attention that is none": (C, edit(C, text_config___attn_implementation="evil")),
    "config: a type that is none": (C, edit(C, dtype="evil", text_config__dtype="evil")),
    "config: quantised by what is not here": (
        C,
        edit(C, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ),
    "config: quantised, in a word": (C, edit(C, quantization_config="evil")),
    "config: other weights": (C, edit(C, transformers_weights="other.safetensors")),
    "config: an encoder in a list": ("encoder", edit(C, encoder=["precomputed"])),
    "config: an encoder in a word": ("encoder", edit(C, encoder="precomputed")),
    "config: an encoder without a digest": ("digest", edit(C, encoder__digest=None)),
    "config: another digest": ("encoder", edit(C, encoder__digest="0" * 64)),
    "config: an encoder of no name": ("evil", edit(C, encoder__name="evil")),
    "config: odd options": ("evil", edit(C, encoder__options={"evil": 1})),
    "config: options of another type": ("config", edit(C, encoder__options=[1])),
    "config: a card that is none": ("config", edit(C, encoder__card=[1])),
    "config: ids in words": ("image_token_id", edit(C, image_token_id="one")),
    "config: ids that are not there": (C, edit(C, image_token_id=10**6)),
    "config: another token's id": (T, edit(C, image_token_id=3)),
    "config: new tokens in words": ("new_token_ids", edit(C, new_token_ids="abc")),
    "config: new tokens in a number": ("new_token_ids", edit(C, new_token_ids=7)),
    "config: layers at no place": ("decoder", edit(C, decoder_layers="no.such.place")),
    "config: layers at a number": ("decoder_layers", edit(C, decoder_layers=4)),
    "config: cross-attention in a list": ("cross_attention", edit(C, cross_attention=[1])),
    "config: a resampler in a list": ("resampler", edit(C, resampler=[1])),
    "config: of another kind": (C, edit(C, model_type="llama", architectures=["LlamaForCausalLM"])),
    # generation_config.json
    "generation: compiled": (G, edit(G, compile_config={"mode": "max-autotune"})),
    "generation: compiled, in a word": (G, edit(G, compile_config="evil")),
    "generation: marked": (G, edit(G, watermarking_config={"bias": 9.0})),
    "generation: another's code": ("generation_config", edit(G, custom_generate="evil")),
    "generation: tokens that are not there": (G, edit(G, suppress_tokens=[10**9])),
    "generation: tokens in words": (G, edit(G, suppress_tokens="evil")),
    "generation: temperature in words": (G, edit(G, temperature="hot")),
    "generation: a billion beams": (G, edit(G, num_beams=10**9)),
    "generation: a list": (G, write(G, b"[]")),
    "generation: no JSON": (G, write(G, b"{")),
    # the tokenizer
    "no tokenizer": (T, lambda f: [p.unlink() for p in f.glob("tokenizer*")]),
    "no tokenizer.json": (T, remove("tokenizer.json")),
    "an empty tokenizer": (T, write("tokenizer.json", b"{}")),
    "a tokenizer that is a list": (T, write("tokenizer.json", b"[1]")),
    "a tokenizer that is no JSON": (T, write("tokenizer.json", b"\0\1\2")),
    "a tokenizer of no kind": (T, edit("tokenizer.json", model={"type": "Evil"})),
    "a tokenizer of numbers": (T, edit("tokenizer.json", model={"type": "WordLevel", "vocab": {"a": "b"}})),
    "a tokenizer without the image token": (T, edit("tokenizer.json", added_tokens=[])),
    "a tokenizer of another class": (T, edit("tokenizer_config.json", tokenizer_class=["evil"])),
    "a tokenizer from elsewhere": (T, edit("tokenizer_config.json", tokenizer_file="/etc/passwd")),
    "a vocabulary from elsewhere": (T, edit("tokenizer_config.json", vocab_file="../vocab.json")),
    "a tokenizer that searches without end": (
        T,
        edit(
            "tokenizer.json",
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        ),
    ),
    "a tokenizer config that is a list": (T, write("tokenizer_config.json", b"[]")),
    # the encoder's card
    "card: another summary": (E, card(summary="another")),
    "card: a step more": (
        E,
        card(scan__steps=[{"name": "clip", "constants": {"low": 0, "high": 1}, "scope": "sample"}]),
    ),
    "card: another width": (E, card(output__width=WIDTH + 1)),
    "card: no card": (E, write(E, b"{}")),
    "card: a list": (E, write(E, b"[]")),
    "card: no JSON": (E, write(E, b"{")),
    "card: a wrong type": (E, card(output="wide")),
}


def _touch(file: Path) -> Path:
    file.touch()
    return file


@pytest.mark.parametrize("name", BAD)
def test_refused_by_name(folder: Path, name: str) -> None:
    file, damage = BAD[name]
    damage(folder)
    begin = time.process_time()
    with pytest.raises(NeuroFlamingoError) as caught:
        open_model(folder, device="cpu")
    assert caught.value.exit_code in (65, 66, 69, 78), caught.value
    assert file in str(caught.value), caught.value
    assert len(str(caught.value)) < 2000
    assert time.process_time() - begin < SECONDS
    assert caught.value.expected or caught.value.seen


def test_what_is_right_is_taken(folder: Path) -> None:
    (folder / "README.md").write_text("about")
    (folder / "evaluation.json").write_text("{}")
    (folder / "figures").mkdir()
    edit(C, text_config__time_step_limit=[0.0, float("inf")])(folder)
    opened = open_model(folder, device="cpu")
    assert opened.record.digest == digest_of_files(opened.record.files)
    assert set(opened.record.files) >= {C, W, E, "tokenizer.json"} and "evaluation.json" not in opened.record.files


def test_a_snapshot_of_the_hubs_cache_is_taken(folder: Path, tmp_path: Path) -> None:
    hub = tmp_path / "models--owner--name"
    snapshot = hub / "snapshots" / "0123abcd"
    (hub / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        blob = hub / "blobs" / sha256_of(file)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    model, processor = load(snapshot, device="cpu")
    assert describe("name", snapshot, model, processor).files[W] == sha256_of(folder / W)
    (snapshot / W).unlink()
    (snapshot / W).symlink_to(folder / W)
    with pytest.raises(ModelError, match=r"model\.safetensors.*is not read"):
        load(snapshot, device="cpu")


def test_provenance_names_the_shards_that_were_loaded(folder: Path, tmp_path: Path) -> None:
    model, processor = load(folder, device="cpu")
    many = tmp_path / "many"
    model.save_pretrained(many, max_shard_size="20KB")
    processor.save_pretrained(many)
    shards = {file.name for file in many.glob("*.safetensors")}
    assert len(shards) > 1
    (many / "left-over.safetensors").write_bytes((folder / W).read_bytes())
    files = loaded_files(many)
    assert shards | {I} <= set(files) and "left-over.safetensors" not in files
    again = open_model(many, device="cpu").record
    assert again.files == files and again.digest != open_model(folder, device="cpu").record.digest


def test_the_card_comes_from_the_config_where_its_file_is_missing(folder: Path) -> None:
    wanted = read_card(folder)
    (folder / E).unlink()
    assert wanted is not None and read_card(folder) == wanted
    assert model_folder(folder).scan_spec == wanted.scan


def test_errors_of_our_own_code_are_not_blamed_on_a_file(tmp_path: Path) -> None:
    """A bug stays a bug: only what a library raises while it reads is the file's."""
    file = tmp_path / "config.json"
    with pytest.raises(ModelError, match=r"config\.json .* cannot be used") as caught, blame_file(file, "settings"):
        json.loads("{")
    assert caught.value.exit_code == 65
    with pytest.raises(ConfigError), blame_file(file, "settings"):
        raise ConfigError("typed already")
    with pytest.raises(MemoryError), blame_file(file, "settings"):
        raise MemoryError
    with pytest.raises(KeyboardInterrupt), blame_file(file, "settings"):
        raise KeyboardInterrupt
    with pytest.raises(ModelError) as caught, blame_file(file, "settings"):
        file.read_text()
    assert caught.value.exit_code == 74
    with pytest.raises(AttributeError), blame_file(file, "settings"):
        digest_of_files(None)  # type: ignore[arg-type]  # the innermost line is ours
