"""`models list|fetch|verify|convert` and `encode` on the command line: outputs, refusals and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from neuroflamingo.cli import main
from neuroflamingo.encoding import encoder_choice
from neuroflamingo.encoding.encoder_choice import load_encoder
from neuroflamingo.encoding.token_file import encode
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_encoders.tokens.files import read_tokens
from neuroflamingo_encoders.weights.cache import weights_folder
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, ScanError, UsageError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and an own home."""
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def brainlm() -> dict[str, torch.Tensor]:
    """A file's worth of `brainlm-13m`, under the names that a published file has."""
    state = build_encoder("brainlm-13m").state_dict()
    return {name: value for name, value in state.items() if name != "xyz"}  # that table is no weight


def run(*arguments: str) -> int:
    return main(list(arguments))


def refused(code: int, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert run(*arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and "error: " in err
    return err


class TestModels:
    @pytest.mark.slow
    def test_list(self, brainlm: dict, capsys) -> None:
        weights_folder("brainlm-13m").mkdir(parents=True)
        save_file(brainlm, weights_folder("brainlm-13m") / "brainlm-13m.safetensors")
        (weights_folder("neurostorm")).mkdir()
        (weights_folder("neurostorm") / "last.ckpt").write_bytes(b"x")
        assert run("models", "list") == 0
        text = capsys.readouterr().out
        assert "tiny-t1w (model)" in text and "hash unknown" in text and "no commercial use" in text
        assert "downloaded, to be converted" in text and "none released" in text
        assert run("models", "list", "--json") == 0
        listed = json.loads(capsys.readouterr().out)
        rows = {row["name"]: row for row in listed["encoders"]}
        assert rows["brainlm-13m"]["present"] and rows["brainlm-13m"]["bytes"] > 10**7
        assert not rows["neurostorm"]["present"] and not rows["swift"]["present"]
        assert listed["models"][0]["bytes"] > 10**6

    def test_fetch_says_the_terms_before_it_refuses(self, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        err = refused(69, capsys, "models", "fetch", "brainlm-13m")
        assert err.index("CC-BY-NC-ND-4.0") < err.index("error: ") and "HF_HUB_OFFLINE=1" in err
        assert "with a browser" in refused(69, capsys, "models", "fetch", "swift")
        assert "did you mean swift" in refused(66, capsys, "models", "fetch", "swfit")

    @pytest.mark.slow
    def test_only_fetch_and_allowed_downloads_leave_the_network_on(self) -> None:
        """In fresh processes, because the libraries look at the variable once."""
        code = (
            "import os, sys\nfrom neuroflamingo.cli import main\nmain(sys.argv[1:])\n"
            "print('offline', os.environ.get('HF_HUB_OFFLINE'))"
        )
        # The name of no encoder: what fetch does then is of no matter here.
        clean = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")}
        allowed = ["train", "no-such", "--allow-download"]
        for verb, seen in ((["models", "fetch", "no-such"], "None"), (["encoders", "list"], "1"), (allowed, "None")):
            done = subprocess.run([sys.executable, "-c", code, *verb], env=clean, capture_output=True, text=True)
            assert f"offline {seen}" in done.stdout, done.stderr

    def test_fetch_tells_what_came(self, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
        from neuroflamingo_encoders.weights import fetch

        fetched = fetch.FetchResult("brainlm-13m", "x.bin", "a" * 64, 9, "s", "b" * 40, False, None, 0, ready=False)
        monkeypatch.setattr(fetch, "fetch_weights", lambda name, **_: fetched)
        assert run("models", "fetch", "brainlm-13m", "-q") == 0
        text = capsys.readouterr().out
        assert "revision and hash unknown to the card of brainlm-13m; please pin what came" in text
        assert f'revision="{"b" * 40}", sha256="{"a" * 64}",' in text
        assert "neuroflamingo models convert x.bin --encoder brainlm-13m" in text

    @pytest.mark.slow
    def test_verify(self, brainlm: dict, capsys) -> None:
        save_file(brainlm, "good.safetensors")
        assert run("models", "verify", "good.safetensors", "--encoder", "brainlm-13m") == 0
        assert capsys.readouterr().out.startswith("ok  good.safetensors")
        spoilt = brainlm | {"vit.layernorm.bias": torch.full((512,), float("nan"))}
        save_file({k: v for k, v in spoilt.items() if "cls_token" not in k}, "bad.safetensors")
        assert run("models", "verify", "good.safetensors", "bad.safetensors", "--encoder", "brainlm-13m") == 1
        text = capsys.readouterr().out
        assert "wrong: 1 missing (vit.embeddings.cls_token)" in text and "not finite (vit.layernorm.bias)" in text
        assert run("models", "verify", "bad.safetensors", "--json") == 1
        assert json.loads(capsys.readouterr().out)[0]["sound"] is False
        refused(66, capsys, "models", "verify", "gone.safetensors")
        refused(69, capsys, "models", "verify", "swift")

    @pytest.mark.slow
    def test_the_embedded_model_is_sound(self, capsys) -> None:
        assert run("models", "verify", "tiny-t1w-cnn") == 0, capsys.readouterr().out
        assert run("models", "verify", "tiny-t1w") == 0

    @pytest.mark.slow
    def test_convert(self, brainlm: dict, place: Path, capsys) -> None:
        torch.save({"model": brainlm, "other": {"w": torch.ones(2)}}, "a.bin")
        assert run("models", "convert", "a.bin", "-o", "a.safetensors", "--encoder", "brainlm-13m") == 0
        text = capsys.readouterr().out
        assert "76 tensors from model" in text and "other (1)" in text
        refused(73, capsys, "models", "convert", "a.bin", "-o", "a.safetensors")
        refused(2, capsys, "models", "convert", "a.bin")
        refused(66, capsys, "models", "convert", "b.bin", "-o", "b.safetensors")
        assert run("models", "verify", "a.safetensors") == 0
        assert "brainlm-13m" in capsys.readouterr().out, "the file says whose weights they are"

    @pytest.mark.parametrize("verb", [["models", "convert"], ["encode"]])
    def test_help_loads_nothing_heavy(self, verb: list[str]) -> None:
        code = (
            "import sys\nfrom neuroflamingo.cli import main\nmain(sys.argv[1:])\n"
            "assert not {'torch', 'transformers', 'pydantic', 'huggingface_hub', 'zarr', 'numpy'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code, *verb, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "Usage: neuroflamingo" in done.stdout, done.stderr


def parcels(count: int = 424, frames: int = 20, name: str = "sub-01.npy") -> str:
    np.save(name, np.random.default_rng(0).standard_normal((count, frames)).astype(np.float32))
    return name


def assert_connectivity(tokens: np.ndarray, series: np.ndarray) -> None:
    """Fisher's z of the correlations, 0 with itself."""
    wanted = np.corrcoef(series)
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(np.tanh(tokens), wanted, atol=1e-4)


class TestEncode:
    @pytest.mark.slow
    def test_a_head_through_an_untrained_encoder(self, head_file: Path, aligned: None, capsys) -> None:
        arguments = ("encode", str(head_file), "--encoder", "tiny-t1w-cnn", "--init", "random", "--seed", "3", "-q")
        assert run(*arguments, "-o", "a.zarr") == 0
        assert capsys.readouterr().out == "a.zarr\n"
        card = encoder_card("tiny-t1w-cnn")
        found = read_tokens("a.zarr", card=card)
        (scan,) = found.scans
        assert scan.tokens.shape == (card.output.tokens, card.output.width) and np.isfinite(scan.tokens).all()
        assert scan.positions is not None and int(np.isnan(scan.positions[:, 0]).sum()) == 10
        assert scan.metadata["name"] == head_file.name and str(head_file.parent) not in json.dumps(dict(scan.metadata))
        from neuroflamingo_preprocessing.files import sha256_of

        assert scan.metadata["input"]["sha256"] == sha256_of(head_file)
        steps = [step["name"] for step in scan.metadata["geometry"]]
        assert steps == ["reorientation", "brain extraction", "affine alignment", "resampling"]
        assert found.metadata["weights"] == {"init": "random", "seed": 3}
        assert found.metadata["software"]["libraries"]["torch"]
        weights = [
            load_encoder("tiny-t1w-cnn", init="random", seed=seed)[0].get_parameter("place") for seed in (3, 3, 4)
        ]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])

    @pytest.mark.slow
    def test_the_embedded_weights_work_at_once(self, head_file: Path, aligned: None) -> None:
        from neuroflamingo import load

        assert run("encode", str(head_file), "--encoder", "tiny-t1w-cnn", "-o", "a.safetensors", "-q") == 0
        found = read_tokens("a.safetensors", card=encoder_card("tiny-t1w-cnn"))
        assert found.metadata["weights"]["model"] == "tiny-t1w" and len(found.metadata["weights"]["sha256"]) == 64
        from neuroflamingo_preprocessing import prepare, read_scan

        model, _ = load("tiny-t1w", device="cpu")
        prepared = prepare(read_scan(head_file), encoder_card("tiny-t1w-cnn").scan)
        with torch.inference_mode():
            tokens = model.encoder(torch.from_numpy(prepared.tensor)[None, None]).tokens[0, 0]
        np.testing.assert_allclose(found.scans[0].tokens, tokens.numpy(), atol=1e-5)

    def test_ready_arrays_and_one_that_fails(self, capsys) -> None:
        good, bad = parcels(), parcels(100, name="sub-02.npy")
        assert run("encode", good, bad, "--encoder", "fc-baseline", "-o", "fc.npz", "-q") == 1
        out, err = capsys.readouterr()
        assert out == "fc.npz\n" and "sub-02.npy" in err and "parcel=424" in err and "1 of 2 scans" in err
        (scan,) = read_tokens("fc.npz", card=encoder_card("fc-baseline")).scans
        assert_connectivity(scan.tokens, np.load(good))
        assert scan.metadata["input"]["kind"] == "ready array"

    @pytest.mark.slow
    def test_options_of_the_encoder(self, capsys) -> None:
        np.save("head.npy", np.random.default_rng(0).random((12, 20, 16), dtype=np.float32))
        options = {"side": 32, "patch": 16, "width": 48, "depth": 1, "heads": 2, "mlp": 64, "x": 12, "y": 20, "z": 16}
        chosen = [word for key, value in options.items() for word in ("--option", f"{key}={value}")]
        common = ("encode", "head.npy", "--encoder", "clip-tower", "--init", "random", "-q")
        assert run(*common, *chosen, "--option", "slices=3", "--option", "axis=x", "-o", "a.npz") == 0
        found = read_tokens("a.npz")
        assert found.scans[0].tokens.shape == (3 * 2 * 2, 48)
        assert found.metadata["card"]["options"] == options | {"slices": 3, "axis": "x"}
        capsys.readouterr()
        for option in ("slices", "slices=[1", "side=32"):
            assert "--option" in refused(2, capsys, *common, *chosen, "--option", option, "-o", "b.npz")
        for option, words in (("slicez=3", "slicez"), ("slices=99", "must not exceed"), ("low=[1]", "list")):
            assert words in refused(78, capsys, *common, *chosen, "--option", option, "-o", "b.npz")
        fixed = ("encode", "head.npy", "--encoder", "swift", "--init", "random", "--option", "side=3", "-o", "b.npz")
        assert "takes no options" in refused(78, capsys, *fixed)

    def test_a_table_of_parcels(self) -> None:
        values = np.load(parcels())
        np.savetxt("a.tsv", values.T, delimiter="\t", header="\t".join(f"p{i}" for i in range(424)), comments="")
        done = encode(["a.tsv"], "a.npz", encoder="fc-baseline", device="cpu")
        assert done.scans == 1 and done.failures == ()
        assert_connectivity(read_tokens("a.npz").scans[0].tokens, values)

    def test_weights_that_are_not_here_or_do_not_fit(self, brainlm: dict, capsys) -> None:
        name = parcels(frames=200)
        for encoder, says in (("brainlm-13m", "models fetch brainlm-13m"), ("swift", "get the file from")):
            assert says in refused(69, capsys, "encode", name, "--encoder", encoder, "-o", "a.npz", "-q")
        assert "--init random" in refused(69, capsys, "encode", name, "--encoder", "brainmt", "-o", "a.npz", "-q")
        save_file({k: v for k, v in brainlm.items() if "cls_token" not in k}, "w.safetensors")
        refused(65, capsys, "encode", name, "--encoder", "brainlm-13m", "--weights", "w.safetensors", "-o", "a.npz")
        torch.save(brainlm, "w.pt")
        err = refused(65, capsys, "encode", name, "--encoder", "brainlm-13m", "--weights", "w.pt", "-o", "a.npz")
        assert "models convert" in err
        both = ("--weights", "w.pt", "--init", "random")
        refused(2, capsys, "encode", name, "--encoder", "brainlm-13m", *both, "-o", "a.npz")
        refused(2, capsys, "encode", name, "--encoder", "brainlm-13m", "--init", "zeros", "-o", "a.npz")

    def test_what_the_encoder_asks_for_is_asked_for(self, capsys) -> None:
        name = parcels(frames=200)
        common = ("encode", name, "--encoder", "brainlm-13m", "--init", "random", "-o", "a.npz", "-q")
        assert "A424_Coordinates.dat" in refused(2, capsys, *common)
        np.savetxt("xyz.dat", np.arange(424 * 4).reshape(424, 4), fmt="%d")
        assert "--tr 0.735" in refused(2, capsys, *common, "--table", "xyz.dat")
        assert "resample it" in refused(65, capsys, *common, "--table", "xyz.dat", "--tr", "2.0")
        np.savetxt("short.dat", np.ones((400, 4)))
        assert "[424, 3]" in refused(2, capsys, *common, "--table", "short.dat", "--tr", "0.735")
        assert "no --table" in refused(
            2, capsys, "encode", name, "--encoder", "fc-baseline", "--table", "xyz.dat", "-o", "a.npz"
        )
        module, _ = load_encoder("brainlm-13m", init="random")
        said = encoder_choice._set_table(module, "xyz.dat")
        assert said["file"] == "xyz.dat" and module.get_buffer("xyz")[1].tolist() == [5.0, 6.0, 7.0]

    def test_dimensions(self, head_file: Path, capsys) -> None:
        np.save("run.npy", np.zeros((96, 96, 96), np.float32))
        common = ("--init", "random", "-o", "a.npz", "-q")
        assert "3 axes" in refused(65, capsys, "encode", "run.npy", "--encoder", "swift", "--tr", "0.8", *common)
        np.save("head.npy", np.zeros((56, 64, 56, 2), np.float32))
        assert "4 axes" in refused(65, capsys, "encode", "head.npy", "--encoder", "tiny-t1w-cnn", *common)
        assert "is not a time series" in refused(65, capsys, "encode", str(head_file), "--encoder", "swift", *common)
        refusal = refused(2, capsys, "encode", str(head_file), "--encoder", "fc-baseline", "-o", "a.npz", "-q")
        assert "--atlas LABELS.nii.gz" in refusal and "--raw" in refusal

    def test_bad_paths_are_refused_before_the_work(self, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        monkeypatch.setattr(encoder_choice, "load_encoder", lambda *_, **__: pytest.fail("the long work began"))
        name = parcels()
        for output, code in (("a.h5", 2), ("absent/a.zarr", 73), ("absent/a.npz", 73), ("sub-01.npy", 2)):
            refused(code, capsys, "encode", name, "--encoder", "fc-baseline", "-o", output)
        refused(66, capsys, "encode", "gone.npy", "--encoder", "fc-baseline", "-o", "a.npz")
        Path("a.npz").write_text("old")
        refused(73, capsys, "encode", name, "--encoder", "fc-baseline", "-o", "a.npz")
        assert Path("a.npz").read_text() == "old"

    def test_from_python_the_errors_are_typed(self, head_file: Path) -> None:
        with pytest.raises(NotFoundError):
            encode(["gone.npy"], "a.npz", encoder="fc-baseline")
        with pytest.raises(ScanError):
            encode([parcels(3)], "a.npz", encoder="fc-baseline")
        with pytest.raises(UsageError, match="needs an atlas"):
            encode([head_file], "a.npz", encoder="fc-baseline")
        with pytest.raises(ModelError):
            encode([head_file], "a.npz", encoder="swfit")
        assert not Path("a.npz").exists()
