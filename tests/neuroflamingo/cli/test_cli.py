"""The command line: outputs, refusals with their exit codes, signals, and a quick start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from neuroflamingo.cli import main
from neuroflamingo.cli.errors import report_failure
from neuroflamingo.cli.outputs import parse_formats, plan_targets
from neuroflamingo.cli.report import group_scans
from neuroflamingo.inference import loaded_model as opened_module
from neuroflamingo.inference import pipeline
from neuroflamingo_preprocessing.errors import UsageError


@pytest.fixture(scope="module")
def loaded(tiny_model: Path):
    return opened_module.open_model(tiny_model, device="cpu")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and an own cache folder."""
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, loaded, aligned: None) -> None:
    """The tiny model is loaded once for all of these tests, and heads are aligned already."""
    monkeypatch.setattr(opened_module.ModelFolder, "load", lambda self: loaded)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("quick")
class TestOutputs:
    def test_default_writes_the_four_files_beside_the_user(self, place: Path, head_file: Path, capsys) -> None:
        before = sorted(head_file.parent.iterdir())
        assert main(["report", str(head_file), "--quiet"]) == 0
        expected = ["sub-01_T1w.prov.json"] + [f"sub-01_T1w.report.{kind}" for kind in ("html", "json", "txt")]
        assert names(place) == expected
        assert sorted(capsys.readouterr().out.split()) == expected
        provenance = json.loads((place / expected[0]).read_text())
        from neuroflamingo_preprocessing.files import sha256_of

        assert {item["name"]: item["sha256"] for item in provenance["outputs"]} == {
            name: sha256_of(place / name) for name in expected[1:]
        }
        assert provenance["command"] == ["neuroflamingo", "report", "<FOLDER>/sub-01_T1w.nii.gz", "--quiet"]
        assert sorted(head_file.parent.iterdir()) == before, "nothing is written beside the input"

    def test_dash_writes_json_and_nothing_else(self, place: Path, head_file: Path, capfd, written_report: str) -> None:
        assert main(["report", str(head_file), "-o", "-"]) == 0
        out, err = capfd.readouterr()
        assert json.loads(out)["text"] == written_report
        assert "aligning" in err
        assert names(place) == []

    @pytest.mark.slow
    def test_one_file_or_several_of_one_stem(self, place: Path, head_file: Path) -> None:
        assert main(["report", str(head_file), "-o", "out.txt", "-q"]) == 0
        assert main(["report", str(head_file), "-o", "head.html", "--format", "html,json,txt", "-q"]) == 0
        assert names(place) == ["head.html", "head.json", "head.txt", "out.txt"]

    def test_example_and_prompt(self, place: Path, head_file: Path, written_report: str) -> None:
        (place / "truth.txt").write_text(written_report)
        pair = f"{head_file}={place / 'truth.txt'}"
        assert main(["report", str(head_file), "--example", pair, "-o", "out.json", "-q", "--force"]) == 0
        assert json.loads((place / "out.json").read_text())["provenance"]["generation"]["examples"] == 1

    def test_several_scans_one_bad(self, place: Path, head_file: Path, capsys) -> None:
        (place / "bad.nii.gz").write_bytes(b"no scan")
        assert main(["report", "bad.nii.gz", str(head_file), "-o", "out/", "--format", "txt", "-q"]) == 1
        assert names(place / "out") == ["sub-01_T1w.report.txt"]
        err = capsys.readouterr().err
        assert "bad.nii.gz" in err and "1 of 2 reports" in err

    def test_two_scans_in_one_report(self, place: Path, head_file: Path) -> None:
        arguments = ["report", str(head_file), str(head_file), "--prompt", "<image><image>", "-o", "two.json", "-q"]
        assert main([*arguments, "--force"]) == 0
        assert len(json.loads((place / "two.json").read_text())["provenance"]["inputs"]) == 2

    def test_a_baseline_is_the_first_scan_and_the_report_is_named_after_the_other(
        self, place: Path, head_file: Path, capsys
    ) -> None:
        shutil.copy(head_file, place / "earlier.nii.gz")
        arguments = ["report", str(head_file), "--baseline", "earlier.nii.gz", "-o", "out/", "--format", "json", "-q"]
        assert main([*arguments, "--force"]) == 0
        (name,) = names(place / "out")
        assert name.startswith("sub-01_T1w.report")
        provenance = json.loads((place / "out" / name).read_text())["provenance"]
        assert [one["name"] for one in provenance["inputs"]] == ["earlier.nii.gz", "sub-01_T1w.nii.gz"]
        assert provenance["generation"]["prompt"] == "<image><image>"
        for more in (["--prompt", "<image><image>"], ["earlier.nii.gz"]):
            assert main([*arguments, *more]) == 2
            assert "--baseline" in capsys.readouterr().err
        assert main(["report", str(head_file), "--baseline", "nowhere.nii.gz", "-q"]) == 66

    @pytest.mark.parametrize("more", [("--prompt", "<image><image>"), ("--example", "{head}=truth.txt")])
    def test_what_the_model_was_not_trained_for(
        self, place: Path, head_file: Path, tiny_model: Path, written_report: str, more: tuple[str, str], capsys
    ) -> None:
        one = shutil.copytree(tiny_model, place / "one-scan")
        config = json.loads((one / "config.json").read_text())
        record = {"max_examples": 0, "max_scans": 1, "forms": ["one scan"]}
        (one / "config.json").write_text(json.dumps(config | {"prompts": record}))
        (place / "truth.txt").write_text(written_report)
        words = [more[0], more[1].format(head=head_file)]
        arguments = ["report", str(head_file), "b.nii.gz", *words, "--model", str(one), "-q", "-o"]
        shutil.copy(head_file, "b.nii.gz")
        assert main([*arguments, "two/"]) == 65, "once, before the reports on both"
        assert "expected: 1 scan and no example" in capsys.readouterr().err and not names(place / "two")
        arguments = arguments if "--prompt" in more else [arguments[0], *arguments[2:]]
        assert main([*arguments, "out.json", "--force"]) == 0
        assert "Forced: the prompt shows the model" in json.loads((place / "out.json").read_text())["banner"]

    def test_a_file_name_with_markup_does_nothing(self, place: Path, head_file: Path) -> None:
        hostile = place / "<script>alert(1)<⁄script>.nii.gz"
        shutil.copy(head_file, hostile)
        assert main(["report", hostile.name, "-o", "out.html", "-q"]) == 0
        assert "<script" not in (place / "out.html").read_text()

    def test_a_file_name_that_is_no_text(self, place: Path, head_file: Path) -> None:
        odd = os.fsdecode(b"sub-\xff.nii.gz")
        shutil.copy(head_file, place / odd)
        assert main(["report", odd, "-q"]) == 0
        assert json.loads(next(place.glob("*.report.json")).read_text())["title"] == "sub-?"
        assert len(names(place)) == 5

    def test_existing_output_is_refused_before_the_work_and_replaced_when_asked(
        self, place: Path, head_file: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        (place / "out.html").write_text("old")
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "write_report", lambda *_, **__: pytest.fail("the long work began"))
            assert main(["report", str(head_file), "-o", "out.html"]) == 73
        assert (place / "out.html").read_text() == "old"
        assert "--overwrite" in capsys.readouterr().err
        assert main(["report", str(head_file), "-o", "out.html", "--overwrite", "-q"]) == 0
        assert (place / "out.html").read_text().startswith("<!doctype html>")

    @pytest.mark.parametrize("output", ["/proc/out.html", "absent/out.html", "blocked/out.html", "blocked/"])
    def test_unwritable_output_is_refused_before_the_work(
        self, place: Path, head_file: Path, output: str, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        (place / "blocked").write_text("a file, not a folder")
        monkeypatch.setattr(pipeline, "write_report", lambda *_, **__: pytest.fail("the long work began"))
        arguments = ["report", str(head_file), "-o", output, "--overwrite", "--format", "html"]
        assert main(arguments) == 73
        assert "Traceback" not in capsys.readouterr().err
        assert names(place) == ["blocked"]


def header_with(path: Path, source: Path, change) -> Path:
    """A copy of a scan with a changed header or voxels."""
    import nibabel as nib
    import numpy as np

    image = nib.load(source)
    voxels, affine, header = np.asarray(image.dataobj), image.affine.copy(), image.header.copy()
    voxels, affine = change(voxels, affine)
    out = nib.Nifti1Image(voxels, None)
    out.header.set_xyzt_units("mm")
    out.header["sform_code"], out.header["pixdim"][1:4] = 1, header["pixdim"][1:4]
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        out.header[name] = affine[row]
    out.to_filename(path)
    return path


def sheared(voxels, affine):
    affine[0, 1] += 1.5
    return voxels, affine


def singular(voxels, affine):
    affine[:3, 2] = affine[:3, 1]
    return voxels, affine


def not_finite(voxels, affine):
    affine[1, 3] = float("nan")
    return voxels, affine


def small(voxels, affine):
    return voxels[30:60, 30:60, 30:60], affine


BROKEN_HEADERS = {
    "two-dimensional": lambda voxels, affine: (voxels[:, :, 40], affine),
    "four-dimensional": lambda voxels, affine: (voxels[..., None].repeat(2, -1), affine),
    "sheared": sheared,
    "singular": singular,
    "not finite": not_finite,
    "empty": lambda voxels, affine: (voxels * 0, affine),
    "constant": lambda voxels, affine: (voxels * 0 + 7, affine),
    "NaN": lambda voxels, affine: (voxels.astype("float32") * float("nan"), affine),
    "10 cm field of view": small,
}


@pytest.mark.usefixtures("quick")
class TestBadScans:
    def refused(self, arguments: list[str], code: int, capsys) -> str:
        assert main(["report", *arguments, "-o", "out.html"]) == code
        out, err = capsys.readouterr()
        assert out == "" and "Traceback" not in err
        assert "error: " in err and "try: " in err
        assert not Path("out.html").exists()
        return err

    def test_missing_file(self, place: Path, capsys) -> None:
        assert "absent.nii.gz" in self.refused(["absent.nii.gz"], 66, capsys)

    def test_folder(self, place: Path, capsys) -> None:
        (place / "scans").mkdir()
        assert "a folder" in self.refused(["scans"], 65, capsys)

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + b"\0" * 50, b"PK\x03\x04" * 200])
    def test_not_nifti(self, place: Path, content: bytes, capsys) -> None:
        (place / "a.nii.gz").write_bytes(content)
        self.refused(["a.nii.gz"], 65, capsys)

    def test_truncated_gzip(self, place: Path, head_file: Path, capsys) -> None:
        (place / "a.nii.gz").write_bytes(head_file.read_bytes()[:100_000])
        assert "truncated" in self.refused(["a.nii.gz"], 65, capsys)

    def test_header_that_claims_two_terabytes(self, place: Path, head_file: Path, capsys) -> None:
        import gzip

        import nibabel as nib

        header = nib.load(head_file).header.copy()
        header["dim"][1:4] = (10_000, 10_000, 10_000)
        (place / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 5000))
        tracemalloc.start()
        assert "claims" in self.refused(["a.nii.gz"], 65, capsys)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64e6

    @pytest.mark.parametrize("fault", BROKEN_HEADERS)
    def test_broken_header_or_voxels(self, place: Path, head_file: Path, fault: str, capsys) -> None:
        path = header_with(place / "a.nii.gz", head_file, BROKEN_HEADERS[fault])
        assert "a.nii.gz" in self.refused([path.name], 65, capsys)

    @pytest.mark.parametrize(
        ("pair", "code"),
        [("no-pair", 2), ("absent.nii.gz=report.txt", 66), ("{head}=absent.txt", 66), ("{head}=latin.txt", 65)],
    )
    def test_examples_that_cannot_be_used(self, place: Path, head_file: Path, pair: str, code: int, capsys) -> None:
        (place / "report.txt").write_text("No mass.")
        (place / "latin.txt").write_bytes("Läsion".encode("latin-1"))
        self.refused([str(head_file), "--example", pair.format(head=head_file)], code, capsys)

    @pytest.mark.parametrize("prompt", ["no scan", "<image><image>", ""])
    def test_wrong_number_of_image_tokens(self, place: Path, head_file: Path, prompt: str, capsys) -> None:
        assert "<image>" in self.refused([str(head_file), "--prompt", prompt], 2, capsys)


class TestBadModels:
    def run(self, model: str | Path, head: Path, capsys, *more: str) -> tuple[int, str]:
        code = main(["report", str(head), "--model", str(model), "-o", "out.html", *more])
        out, err = capsys.readouterr()
        assert out == "" and "Traceback" not in err and not Path("out.html").exists()
        return code, err

    def test_unknown_name_gives_the_nearest(self, place: Path, head_file: Path, monkeypatch, capsys) -> None:
        from neuroflamingo.checkpoints import local_models

        monkeypatch.setattr(local_models, "list_models", lambda: ("tiny-t1w", "large-t1w"))
        code, err = self.run("tiny-t1", head_file, capsys)
        assert code == 66 and "did you mean tiny-t1w" in err

    def test_folder_without_a_model(self, place: Path, head_file: Path, capsys) -> None:
        (place / "empty").mkdir()
        code, err = self.run("empty", head_file, capsys)
        assert code == 66 and "config.json" in err

    def test_pickle(self, place: Path, tiny_model: Path, head_file: Path, capsys) -> None:
        folder = shutil.copytree(tiny_model, place / "model")
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        code, err = self.run(folder, head_file, capsys)
        assert code == 65 and "pickle" in err

    @pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
    def test_remote_code(self, place: Path, tiny_model: Path, head_file: Path, file: str, capsys) -> None:
        folder = shutil.copytree(tiny_model, place / "model")
        settings = json.loads((folder / file).read_text())
        settings["auto_map"] = {"AutoModel": "evil.Model", "AutoTokenizer": "evil.Tokenizer"}
        (folder / file).write_text(json.dumps(settings))
        (folder / "evil.py").write_text("open('ran', 'w')")
        code, err = self.run(folder, head_file, capsys)
        assert code == 78 and "auto_map" in err
        assert not (place / "ran").exists()

    @pytest.mark.parametrize("device", ["cuda:99", "tpu", "gpu:99"])
    def test_device_that_is_not_there(
        self, place: Path, tiny_model: Path, head_file: Path, device: str, capsys
    ) -> None:
        code, _ = self.run(tiny_model, head_file, capsys, "--device", device)
        assert code == 2


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["reprot"], "report"),
            (["report", "--seeed", "3", "a.nii"], "--seed"),
            (["report"], "SCAN"),
            (["evaluate", "--cases", "many"], "--cases"),
            (["encoders", "lits"], "list"),
            ([], "Commands"),
        ],
    )
    def test_usage_errors_name_what_was_meant(self, arguments: list[str], says: str, capsys) -> None:
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert says in out + err

    @pytest.mark.parametrize("verb", ["report", "train", "evaluate", "paint", "inspect", "doctor", "encoders"])
    def test_every_verb_has_help(self, verb: str, capsys) -> None:
        assert main([verb, "--help"]) == 0
        assert "Usage: neuroflamingo" in capsys.readouterr().out

    def test_formats_and_targets(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert parse_formats("JSON, html,json") == ("json", "html")
        for wrong in ("", "pdf", "html,pdf"):
            with pytest.raises(UsageError, match="--format"):
                parse_formats(wrong)
        for scans, output, formats in (
            (["a/T1.nii", "b/T1.nii"], None, None),
            (["a.nii", "b.nii"], "one.html", None),
            (["a.nii", "b.nii"], "-", None),
            (["a.nii"], "-", ("html",)),
            (["a.nii"], "out.pdf", None),
        ):
            with pytest.raises(UsageError):
                plan_targets(scans, output, formats)
        (target,) = plan_targets(["x/My.Scan.NII.GZ"], None, ("html",))
        assert target.files == {"html": Path("My.Scan.report.html")}

    def test_scans_are_grouped_as_the_prompt_asks(self) -> None:
        assert group_scans(["a", "b"], None) == group_scans(["a", "b"], "<image>Findings:") == [["a"], ["b"]]
        assert group_scans(["a", "b"], "<image> then <image>") == [["a", "b"]]
        with pytest.raises(UsageError):
            group_scans(["a", "b", "c"], "<image><image>")


class TestTelling:
    def test_encoders_card(self, capsys) -> None:
        assert main(["encoders", "card", "brainlm-13m"]) == 0
        words = capsys.readouterr().out
        assert "no commercial use, redistribution, no derivatives" in words and "4241 tokens of width 512" in words
        assert main(["encoders", "card", "swift", "--json"]) == 0
        card = json.loads(capsys.readouterr().out)
        assert card["name"] == "swift" and len(card["digest"]) == 64
        assert main(["encoders", "card", "brainml"]) != 0
        assert "brainlm-13m" in capsys.readouterr().err

    def test_encoders_list(self, capsys) -> None:
        assert main(["encoders", "list"]) == 0
        assert "tiny-t1w-cnn" in capsys.readouterr().out
        assert main(["encoders", "list", "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows["tiny-t1w-cnn"]["width"] == 192

    def test_inspect(self, tiny_model: Path, capsys) -> None:
        assert main(["inspect", str(tiny_model)]) == 0
        text = capsys.readouterr().out
        assert "encoder: TinyT1wEncoder" in text and "frozen" in text and "trained" in text
        assert main(["inspect", str(tiny_model), "--json"]) == 0
        tree = json.loads(capsys.readouterr().out)
        parts = {part["name"]: part for part in tree["parts"]}
        assert parts["encoder"]["state"] == "frozen" and parts["perceiver"]["state"] == "trained"
        assert tree["parameters"] == sum(part["parameters"] for part in tree["parts"])
        assert 0 < tree["trained"] < tree["parameters"]

    def test_doctor_says_what_is_missing(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        from neuroflamingo.checkpoints import local_models
        from neuroflamingo.cli import environment

        monkeypatch.setattr(local_models, "list_models", lambda: ())
        assert main(["doctor"]) == 1
        text = capsys.readouterr().out
        assert "missing: embedded models" in text and str(place.parent / "home") in text
        monkeypatch.setattr(environment, "_models", list)
        assert main(["doctor", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["healthy"] is True
        monkeypatch.setattr(environment, "_requirements", lambda: [("numpy", "999"), ("no-such-package", "")])
        assert main(["doctor"]) == 1
        assert "too old" in capsys.readouterr().out
        assert not (place.parent / "home").exists(), "asking creates nothing"


class TestFailures:
    def test_bugs_leave_a_crash_file_without_folders(self, place: Path, monkeypatch, capsys) -> None:
        import neuroflamingo.cli.report as reporting

        def bug(*_: object, **__: object) -> int:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(reporting, "report_scans", bug)
        assert main(["report", "/data/Jane_Doe/scan.nii.gz"]) == 70
        err = capsys.readouterr().err
        assert "ZeroDivisionError" in err and "Traceback" not in err
        (crash,) = (place.parent / "home" / "crashes").iterdir()
        text = crash.read_text()
        assert "Traceback" in text and "report <FOLDER>/scan.nii.gz" in text and "Jane" not in text

    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            (KeyboardInterrupt(), 130),
            (MemoryError(), 75),
            (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), 75),
            (RuntimeError("unable to mmap 21874348 bytes from file <x>: Cannot allocate memory (12)"), 75),
            (OSError(12, "Cannot allocate memory"), 75),
            (OSError(28, "No space left on device", "/x/out.html"), 74),
            (BrokenPipeError(), 74),
        ],
    )
    def test_exit_codes(self, failure: BaseException, code: int, capsys) -> None:
        assert report_failure(failure) == code
        assert "Traceback" not in capsys.readouterr().err

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_signals_end_cleanly(self, tmp_path: Path, head_file: Path, number: int, code: int) -> None:
        waits = (
            "import sys, time; import neuroflamingo.cli.report as r\n"
            "def wait(*a, **k):\n    print('ready', flush=True); time.sleep(600)\n"
            "r.report_scans = wait\n"
            "from neuroflamingo.cli import main; sys.exit(main(['report', 'a.nii.gz']))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", waits],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a suite in the background ignores SIGINT
        )
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=900)
        assert process.returncode == code and "Traceback" not in err
        assert names(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("step", ["fsync", "replace", "unlink"])
def test_killed_while_writing_leaves_the_old_file_or_the_new(
    tmp_path: Path, tiny_model: Path, head_file: Path, step: str
) -> None:
    """SIGKILL at one step of writing the page: old before the rename, new after it, never half; then it runs again."""
    target = tmp_path / "out.html"
    target.write_text("old")
    code = """
import os, signal, sys
import numpy as np
from neuroflamingo_preprocessing import drafts, files
from neuroflamingo_preprocessing.structural import prepare_volume
from neuroflamingo_preprocessing.structural.alignment import Alignment
from neuroflamingo_preprocessing.structural.brain_extraction import Brain
from neuroflamingo_preprocessing.structural.template import load_template
brain = Brain(load_template().mask > 0, load_template().affine, True, (-1e6, 1e6))
prepare_volume.align = lambda voxels, affine: Alignment(np.eye(4), 0.98, 0.98, 0.98, 1, False, brain)
def die(*a, **k):
    os.kill(os.getpid(), signal.SIGKILL)
class Deadly:
    def __getattr__(self, name):
        return die if armed and name == sys.argv[1] else getattr(os, name)
armed = False
write = files.write_bytes_atomic
def arm(*a, **k):
    global armed
    armed = True
    return write(*a, **k)
files.os = drafts.os = Deadly()
files.write_bytes_atomic = arm
from neuroflamingo.cli import main
sys.exit(main(sys.argv[2:]))
"""
    words = ["report", str(head_file), "--model", str(tiny_model), "-o", str(target), "--overwrite", "-q"]
    run = subprocess.run([sys.executable, "-c", code, step, *words], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    text = target.read_text()
    assert text == "old" if step != "unlink" else text.startswith("<!doctype") and text.rstrip().endswith("</html>")
    visible = [name for name in names(tmp_path) if not name.startswith(".")]
    assert visible == ["out.html"]


class TestStart:
    @pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["report", "--help"], ["encoders", "list"]])
    def test_nothing_heavy_is_imported(self, arguments: list[str]) -> None:
        code = (
            "import sys; from neuroflamingo.cli import main; main(sys.argv[1:]); "
            "heavy = {'torch', 'transformers', 'nilearn', 'scipy', 'SimpleITK', 'rich', 'PIL', 'jinja2'}; "
            "heavy |= set() if 'list' in sys.argv else {'pydantic', 'numpy'}; "
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
        )
        run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert run.stderr.strip() == "[]" and run.stdout.strip()

    def test_a_bad_scan_fails_before_anything_heavy_is_imported(self, tmp_path: Path, head_file: Path) -> None:
        short = tmp_path / "short_T1w.nii.gz"
        short.write_bytes(head_file.read_bytes()[:-20])
        code = (
            "import sys; from neuroflamingo.cli import main; print(main(sys.argv[1:])); "
            "print(sorted({'torch', 'transformers', 'SimpleITK', 'scipy.ndimage', 'matplotlib'} & set(sys.modules)))"
        )
        words = ["report", str(short), "-o", str(tmp_path / "out.html"), "-q"]
        run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert run.stdout == "65\n[]\n", run.stderr

    def test_of_several_scans_an_unloadable_model_is_told_once(self, place: Path, head_file: Path, capsys) -> None:
        (place / "empty").mkdir()
        (place / "other_T1w.nii.gz").write_bytes(head_file.read_bytes())
        code = main(["report", str(head_file), "other_T1w.nii.gz", "--model", "empty", "-q"])
        assert code == 66 and capsys.readouterr().err.count("no model in") == 1

    def test_version_is_that_of_the_package(self, capsys) -> None:
        from importlib.metadata import version

        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"neuroflamingo {version('neuroflamingo')}\n"


def test_module_runs_too() -> None:
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    run = subprocess.run(
        [sys.executable, "-m", "neuroflamingo", "--version"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == 0 and run.stdout.startswith("neuroflamingo ")


@pytest.mark.slow
def test_a_model_spread_over_memory_and_disk_writes_the_same_report(
    place: Path, head_file: Path, tiny_model: Path, aligned: None, written_report: str, capfd
) -> None:
    how = ["--model", str(tiny_model), "--device", "cpu", "--quiet", "-o", "-"]
    room = ["--device-map", "auto", "--max-memory", "cpu=2MB", "--max-memory", "disk=1GB"]
    assert main(["report", str(head_file), *how, *room]) == 2
    assert "--offload-folder" in capfd.readouterr().err
    assert main(["report", str(head_file), *how, *room, "--offload-folder", "offload"]) == 0
    assert json.loads(capfd.readouterr().out)["text"] == written_report
