"""Converting and verifying: what comes out is what went in, nothing in a file is ever run, and bad files are named."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from neuroflamingo_encoders import build, registry
from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.contract import BrainEncoder
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.weights import convert, unpickle
from neuroflamingo_encoders.weights.cache import find_weights, weights_folder
from neuroflamingo_encoders.weights.convert import ConvertedWeights, convert_weights
from neuroflamingo_encoders.weights.verify import verify_file, verify_weights
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, OutputError, UsageError
from neuroflamingo_preprocessing.files import sha256_of


class Net(BrainEncoder):
    """Two layers whose names and shapes a file must have."""

    def __init__(self, card: EncoderCard) -> None:
        super().__init__(card)
        self.one, self.two = torch.nn.Linear(4, 3), torch.nn.Linear(3, 4)


class Wider(Net):
    """The same names, other shapes."""

    def __init__(self, card: EncoderCard) -> None:
        super().__init__(card)
        self.one, self.two = torch.nn.Linear(4, 5), torch.nn.Linear(5, 4)


class Settings(dict):
    """A trainer's settings: a class that the reading process does not know."""


class Attack:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: str) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, an own home, and the encoder `net`."""
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    offer(monkeypatch, Net)
    return folder


def offer(monkeypatch: pytest.MonkeyPatch, module: type[Net], **weights: Any) -> EncoderCard:
    base = precomputed_card(width=4)
    rules = base.weights.model_copy(
        update={"source": "https://example.org/net", "strip_prefixes": ("model.",), **weights}
    )
    fields = {"name": "net", "implementation": "here:Net", "weights": rules}
    card = base.model_copy(update=fields)
    load = registry.load_dotted
    answers = {"unused:unused": card, "here:Net": module}
    monkeypatch.setitem(registry.BUILT_IN, "net", "unused:unused")
    for place in (registry, build):
        monkeypatch.setattr(place, "load_dotted", lambda name, dotted: answers.get(dotted) or load(name, dotted))
    return card


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work in this process, without its bounds: starting Python and torch takes seconds."""

    def ask(job: dict[str, Any], path: Path) -> dict[str, Any]:
        try:
            return unpickle.convert(json.loads(json.dumps(job)))
        except unpickle.Refusal as refusal:
            raise ModelError(str(refusal.parts.pop("what")), **refusal.parts, exit_code=65) from refusal

    monkeypatch.setattr(unpickle, "_limit", lambda *_: None)
    monkeypatch.setattr(convert, "_ask", ask)


def state(prefix: str = "") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {prefix + name: value.clone() for name, value in Net(registry.encoder_card("net")).state_dict().items()}


def save(thing: Any, name: str = "a.ckpt", zipped: bool = True) -> Path:
    torch.save(thing, name, _use_new_zipfile_serialization=zipped)
    return Path(name)


def refused(file: Path | str, **options: Any) -> str:
    """The message of a refusal with exit code 65; nothing is left behind."""
    with pytest.raises(ModelError) as caught:
        convert_weights(file, "out.safetensors", **options)
    assert caught.value.exit_code == 65
    assert not Path("out.safetensors").exists() and not list(Path().glob(".neuroflamingo-*"))
    return str(caught.value)


class TestInItsOwnProcess:
    """The real way, with the real bounds."""

    @pytest.mark.slow
    def test_a_lightning_file_goes_through_and_loads(self, place: Path) -> None:
        settings = argparse.Namespace(rate=0.1, layers=[1, 2])
        path = save({"state_dict": state("model."), "hyper_parameters": settings, "epoch": 3})
        (place / "torch.py").write_text("open('ran', 'w')")  # must not be taken for torch
        done = convert_weights(path, encoder="net", skip_unknown=True)
        assert done.chosen == "state_dict" and done.tensors == 4 and done.unknown == ("argparse.Namespace",)
        assert Path(done.path) == find_weights("net") == weights_folder("net") / "net.safetensors"
        assert done.sha256 == sha256_of(Path(done.path)) and done.source_sha256 == sha256_of(path)
        for name, value in load_file(done.path).items():
            assert torch.equal(value, state()[name])
        assert torch.equal(build.build_encoder("net", done.path).get_parameter("one.weight"), state()["one.weight"])
        assert verify_weights(["net"])[0].sound
        assert not (place / "ran").exists()

    @pytest.mark.slow
    def test_an_attack_is_refused_and_never_runs(self, place: Path) -> None:
        path = save({"state_dict": state(), "x": Attack(os.system, f"touch {place / 'ran'}")}, zipped=False)
        assert "wants to run code" in refused(path, skip_unknown=True)
        assert not (place / "ran").exists()

    @pytest.mark.slow
    def test_too_little_memory_is_said(self) -> None:
        path = save({"w": torch.zeros(40_000_000)})
        with pytest.raises(ModelError, match="too much memory") as caught:
            convert_weights(path, "out.safetensors", memory_bytes=2**26)
        assert caught.value.exit_code == 75 and not Path("out.safetensors").exists()


ATTACKS = {
    "os.system": lambda ran: Attack(os.system, f"touch {ran}"),
    "eval": lambda ran: Attack(eval, f"open({str(ran)!r}, 'w')"),
    "exec": lambda ran: Attack(exec, f"open({str(ran)!r}, 'w')"),
    "open": lambda ran: Attack(open, str(ran), "w"),
    "getattr": lambda ran: Attack(getattr, "torch", "hub"),
    "torch": lambda ran: Attack(torch.hub.load, str(ran), "x"),
    "torch.load": lambda ran: Attack(torch.load, str(ran)),
    "Path.touch": lambda ran: Attack(Path.touch, str(ran)),
    "runpy": lambda ran: Attack(__import__("runpy").run_path, str(ran)),
}


@pytest.mark.usefixtures("inside")
class TestAttacks:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("name", ATTACKS)
    def test_nothing_is_called(self, place: Path, name: str, zipped: bool) -> None:
        ran = place / "ran"
        path = save({"state_dict": state(), "x": ATTACKS[name](ran)}, zipped=zipped)
        refused(path)
        try:  # an unknown function of no known danger becomes an inert thing; it is still not called
            convert_weights(path, "out.safetensors", skip_unknown=True)
            assert name in ("torch", "torch.load", "Path.touch")
        except ModelError as error:
            assert error.exit_code == 65
        assert not ran.exists()

    def test_an_attack_among_the_weights_and_in_a_plain_pickle(self, place: Path) -> None:
        attack = Attack(os.system, f"touch {place / 'ran'}")
        refused(save({"state_dict": {**state(), "one.weight": attack}}), skip_unknown=True)
        Path("b.bin").write_bytes(pickle.dumps({"w": attack}))
        refused("b.bin")
        refused("b.bin", skip_unknown=True)
        assert not (place / "ran").exists()

    def test_an_attack_in_a_zip_in_a_zip(self, place: Path) -> None:
        inner = save({"x": Attack(os.system, f"touch {place / 'ran'}")}, "inner.pt")
        with zipfile.ZipFile("outer.pt", "w") as archive:
            archive.write(inner, "inner.pt")
        assert "not a checkpoint of torch" in refused("outer.pt", skip_unknown=True)
        with zipfile.ZipFile(inner) as archive, zipfile.ZipFile("packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in archive.infolist():
                packed.writestr(entry.filename, archive.read(entry))
        assert "packed" in refused("packed.pt")
        assert not (place / "ran").exists()

    def test_a_program_is_refused(self) -> None:
        with zipfile.ZipFile("p.pt", "w") as archive:
            for name in ("p/data.pkl", "p/constants.pkl", "p/code/net.py"):
                archive.writestr(name, b"")
        assert "TorchScript" in refused("p.pt")

    def test_unknown_objects_of_all_kinds_are_passed_over(self) -> None:
        import numpy as np

        extra = {
            "settings": Settings(rate=0.1),
            "score": np.float64(0.5),
            "counts": collections.defaultdict(dict, a={"b": 1}),
            "path": Path("x") / "y",
            "error": ValueError("x"),
        }
        path = save({"state_dict": state(), **extra})
        said = refused(path)
        assert "numpy" in said and "defaultdict" in said and "--skip-unknown" in said
        done = convert_weights(path, "out.safetensors", skip_unknown=True)
        assert done.tensors == 4 and any(name.endswith("Settings") for name in done.unknown)


@pytest.mark.usefixtures("inside")
class TestFindingTheWeights:
    @pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "network", "encoder_ema"])
    def test_usual_places(self, key: str) -> None:
        path = save({key: state(), "optimizer": {"state": {0: {"average": torch.ones(2)}}}, "epoch": 1})
        assert convert_weights(path, "out.safetensors", encoder="net").chosen == key

    def test_target_encoder_goes_before_encoder(self) -> None:
        path = save({"encoder": {k: v + 1 for k, v in state().items()}, "target_encoder": state(), "opt": 1})
        done = convert_weights(path, "out.safetensors", encoder="net")
        assert done.chosen == "target_encoder" and done.found == {"encoder": 4, "target_encoder": 4}
        assert torch.equal(load_file("out.safetensors")["one.bias"], state()["one.bias"])
        done = convert_weights(path, "other.safetensors", encoder="net", key="encoder")
        assert not torch.equal(load_file(done.path)["one.bias"], state()["one.bias"])

    def test_with_a_card_the_part_that_fits_is_taken(self) -> None:
        path = save({"state_dict": {"head": torch.ones(2)}, "model": state()})
        assert convert_weights(path, "out.safetensors").chosen == "state_dict"
        assert convert_weights(path, "two.safetensors", encoder="net").chosen == "model"

    def test_unclear_and_wrong_keys_list_what_there_is(self) -> None:
        path = save({"left": state(), "right": state()})
        assert "left (4), right (4)" in refused(path)
        assert "left (4)" in refused(path, key="middle")
        assert "no tensors" in refused(save({"a": [1, 2], "b": "c"}, "b.ckpt"))
        assert convert_weights(path, "out.safetensors", key="right").tensors == 4

    def test_flat_files_and_entries_that_are_no_tensors(self) -> None:
        done = convert_weights(save({**state(), "version": 3}), "out.safetensors")
        assert done.chosen == "." and done.left_out == ("version",)

    def test_tied_and_turned_tensors_get_memory_of_their_own(self) -> None:
        base = torch.arange(12.0).view(3, 4)
        path = save({"a": base, "b": base, "c": base.t(), "d": base[1], "e": torch.nn.Parameter(base)})
        convert_weights(path, "out.safetensors")
        out = load_file("out.safetensors")
        assert torch.equal(out["c"], base.t()) and torch.equal(out["d"], base[1])
        assert torch.equal(out["a"], out["b"]) and torch.equal(out["e"], base)

    def test_kinds_of_numbers_stay(self) -> None:
        kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8)
        convert_weights(save({str(kind): torch.ones(3, dtype=kind) for kind in kinds}), "out.safetensors")
        assert {str(v.dtype) for v in load_file("out.safetensors").values()} == {str(kind) for kind in kinds}

    def test_a_view_that_claims_terabytes(self) -> None:
        assert "claim more" in refused(save({"w": torch.zeros(1).expand(10**12), "b": torch.zeros(1)}))

    def test_sparse_tensors_are_named(self) -> None:
        assert "s" in refused(save({"w": torch.ones(2), "s": torch.eye(3).to_sparse()}))

    def test_drop_and_metadata(self) -> None:
        path = save({"state_dict": {**state("model."), "head.weight": torch.ones(2)}})
        assert "1 unexpected (head.weight)" in refused(path, encoder="net")
        done = convert_weights(path, "out.safetensors", encoder="net", drop=("head.",))
        assert done.left_out == ("head.weight",)
        with safe_open("out.safetensors", "pt") as stream:
            said = stream.metadata()
        assert said["encoder"] == "net" and said["converted_from_sha256"] == sha256_of(path)
        assert verify_file(Path("out.safetensors")).encoder == "net"

    def test_safetensors_are_renamed_too(self) -> None:
        save_file(state("model."), "in.safetensors")
        assert convert_weights("in.safetensors", "out.safetensors", encoder="net").tensors == 4
        assert set(load_file("out.safetensors")) == set(state())


def surplus(tensors: dict) -> dict:
    return tensors | {"three.weight": torch.ones(2)}


def missing(tensors: dict) -> dict:
    return {k: v for k, v in tensors.items() if k != "two.bias"}


def off_by_one(tensors: dict) -> dict:
    return tensors | {"one.weight": torch.ones(3, 5)}


def double(tensors: dict) -> dict:
    return tensors | {"model.one.bias": torch.ones(3)}


MISFITS = {"surplus": surplus, "missing": missing, "off_by_one": off_by_one, "double": double}
SAYS = {"surplus": "1 unexpected", "missing": "1 missing", "off_by_one": "[3, 5], not [3, 4]", "double": "two tensors"}


class TestBadFiles:
    @pytest.mark.usefixtures("inside")
    @pytest.mark.parametrize("fault", MISFITS)
    def test_misfits_are_refused_by_convert_and_named_by_verify(self, fault: str) -> None:
        tensors = MISFITS[fault](state())
        assert SAYS[fault] in refused(save(tensors), encoder="net")
        save_file(tensors, "w.safetensors")
        (seen,) = verify_weights(["w.safetensors"], encoder="net")
        assert not seen.sound and SAYS[fault] in "; ".join(seen.problems)
        with pytest.raises(ModelError):
            build.build_encoder("net", "w.safetensors")

    @pytest.mark.usefixtures("inside")
    def test_right_names_of_another_architecture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(state())
        offer(monkeypatch, Wider)
        assert "3 other shape" in refused(path, encoder="net")

    @pytest.mark.usefixtures("inside")
    def test_names_that_the_card_permits_to_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        offer(monkeypatch, Net, allow_missing=("two.bias",), allow_unexpected=("three.weight",))
        done = convert_weights(save(missing(surplus(state()))), "out.safetensors", encoder="net")
        assert set(load_file(done.path)) == {"one.weight", "one.bias", "two.weight"}
        assert done.left_out == ("three.weight",)

    @pytest.mark.usefixtures("inside")
    @pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00.", b"\x1f\x8b" + b"\0" * 9, b"\x89HDF\r\n"])
    def test_no_checkpoint(self, content: bytes) -> None:
        Path("x.pt").write_bytes(content)
        refused("x.pt")

    @pytest.mark.usefixtures("inside")
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_truncated_checkpoints(self, zipped: bool) -> None:
        path = save({"w": torch.ones(5000)}, zipped=zipped)
        path.write_bytes(path.read_bytes()[:9000])
        refused(path)

    def test_paths_and_outputs(self, place: Path) -> None:
        path = save(state())
        with pytest.raises(NotFoundError):
            convert_weights("gone.pt", "out.safetensors")
        for output in (None, "out.pt", "out"):
            with pytest.raises(UsageError):
                convert_weights(path, output)
        (place / "old.safetensors").write_text("old")
        for output in ("absent/out.safetensors", "old.safetensors"):
            with pytest.raises(OutputError) as caught:
                convert_weights(path, output)
            assert caught.value.exit_code == 73
        with pytest.raises(ModelError, match="no encoder named"):
            convert_weights(path, "out.safetensors", encoder="nte")
        assert (place / "old.safetensors").read_text() == "old"

    def test_numbers_that_are_not_finite(self) -> None:
        for value in (float("nan"), float("inf")):
            save_file(state() | {"two.bias": torch.tensor([0.0, value, 0.0, 0.0])}, "w.safetensors")
            (seen,) = verify_weights(["w.safetensors"], encoder="net")
            assert seen.problems == ("1 tensors hold numbers that are not finite (two.bias)",)

    @pytest.mark.parametrize("keep", [0, 5, 40, 150, -1])
    def test_truncated_safetensors(self, keep: int) -> None:
        save_file(state(), "w.safetensors")
        content = Path("w.safetensors").read_bytes()
        Path("w.safetensors").write_bytes(content[:keep])
        (seen,) = verify_weights(["w.safetensors"], encoder="net")
        assert not seen.sound and "damaged" in seen.problems[0]
        with pytest.raises(ModelError, match="not a safetensors file"):
            build.build_encoder("net", "w.safetensors")

    def test_a_header_that_claims_terabytes(self) -> None:
        Path("w.safetensors").write_bytes((2**42).to_bytes(8, "little") + b"{}" * 50)
        assert "a header of" in verify_file(Path("w.safetensors")).problems[0]

    def test_hashes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        save_file(state(), "w.safetensors")
        assert "hash unknown" in " ".join(verify_file(Path("w.safetensors"), "net").notes)
        offer(monkeypatch, Net, sha256=sha256_of(Path("w.safetensors")))
        assert verify_file(Path("w.safetensors"), "net").pinned and verify_file(Path("w.safetensors"), "net").sound
        offer(monkeypatch, Net, sha256="0" * 64)
        assert "declares" in verify_file(Path("w.safetensors"), "net").problems[0]

    @pytest.mark.usefixtures("inside")
    def test_a_converted_file_stands_for_the_one_whose_hash_is_declared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(state())
        offer(monkeypatch, Net, sha256=sha256_of(path), file=path.name)
        done: ConvertedWeights = convert_weights(path, encoder="net")
        build.build_encoder("net", done.path)
        assert verify_weights()[0].pinned and verify_weights()[0].sound
        path = save({"state_dict": state()})
        assert "not the file that the card" in refused(path, encoder="net")

    def test_what_is_asked_for_is_not_here(self) -> None:
        with pytest.raises(NotFoundError):
            verify_weights(["nothing"])
        with pytest.raises(ModelError) as caught:
            verify_weights(["brainlm-13m"])
        assert caught.value.exit_code == 69 and "models fetch brainlm-13m" in str(caught.value)
        assert verify_weights() == []


@pytest.mark.parametrize("name", ["brainlm-13m", "brainmt", "fc-baseline", "swift", "tiny-t1w-cnn"])
def test_encoders_have_an_outline_without_memory(name: str) -> None:
    card = registry.encoder_card(name)
    shapes = build.outline(card)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) >= card.cost.parameters
