"""`encoders list`, `check` and `new`: hostile plug-ins are named and the others go on; a new project passes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import threading
import tomllib
from pathlib import Path

import pytest

from neuroflamingo.cli import main
from neuroflamingo.encoder_check.isolation import check_isolated
from neuroflamingo_encoders.conformance.check import CheckResult
from neuroflamingo_encoders.plugins import survey
from neuroflamingo_encoders.registry import BUILT_IN
from neuroflamingo_encoders.scaffold import write_encoder_project
from neuroflamingo_preprocessing.errors import OutputError, UsageError
from tests.encoders.conformance import hostile


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture(autouse=True)
def forget_plug_ins():
    """Modules of plug-ins are imported anew in each test."""
    yield
    for module in [name for name in sys.modules if name.startswith("h_")]:
        del sys.modules[module]


class TestList:
    def test_hostile_plug_ins_are_named_and_the_others_listed(self, site: Path, capsys) -> None:
        hostile.install(site, "h-raises", "h-lacks", "h-exits", "h-prints", "h-good")
        hostile.install_twice(site, "h-twice")
        assert main(["encoders", "list", "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert set(BUILT_IN) < set(rows) and all("digest" in rows[name] for name in (*BUILT_IN, "h-good", "h-prints"))
        assert "no licence key" in rows["h-raises"]["seen"] and "a_library_that_is_not" in rows["h-lacks"]["seen"]
        assert "SystemExit" in rows["h-exits"]["seen"] and "welcome" in rows["h-prints"]["remark"]
        assert rows["h-twice"]["seen"] == "the package h-twice-first and the package h-twice-second"
        assert main(["encoders", "list"]) == 0
        words = capsys.readouterr().out
        assert "h-raises\n  the encoder 'h-raises' cannot be imported\n  seen: RuntimeError: no licence key" in words

    def test_the_package_alone_is_listed_without_reading_a_card(self) -> None:
        code = "import sys; from neuroflamingo.cli import main; main(['encoders', 'list']); print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        *words, modules = done.stdout.splitlines()
        assert not {"pydantic", "numpy", "torch", "neuroflamingo_encoders.registry"} & set(modules.split())
        assert {line.split(" ")[0] for line in words if line and line[0] != " "} == set(BUILT_IN)

    def test_a_name_taken_from_the_package_itself_is_named(self, site: Path, capsys) -> None:
        hostile._distribution(site, "thief", "swift = thief:CARD")
        assert main(["encoders", "list", "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows["swift"]["seen"] == "neuroflamingo itself and the package thief" and "digest" in rows["neurostorm"]
        assert main(["encoders", "card", "swift"]) == 78

    def test_a_plug_in_that_hangs_is_named(self, site: Path) -> None:
        hostile.install(site, "h-hangs-at-import")
        found = {entry.name: entry for entry in survey(seconds=0.5)}
        (left,) = [thread for thread in threading.enumerate() if thread.name == "card of h-hangs-at-import"]
        assert left.is_alive() and left.daemon, "it was not waited for"
        assert "no card after 0.5 s" in str(found["h-hangs-at-import"].fault)
        assert all(found[name].card is not None for name in BUILT_IN)


class TestCheck:
    @pytest.mark.slow
    def test_one_line_a_check(self, capsys) -> None:
        assert main(["encoders", "check", "precomputed"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith("passed           order.tokens_follow ") for line in lines)
        assert lines[-1].startswith("precomputed: ") and "0 failed" not in lines[-1]

    @pytest.mark.slow
    def test_failures_as_json_and_exit_code(self, capsys) -> None:
        assert main(["encoders", "check", "tests.encoders.conformance.broken:Mirrors", "--json"]) == 1
        (found,) = json.loads(capsys.readouterr().out)
        failed = [check for check in found["checks"] if check["status"] == "failed"]
        assert [check["name"] for check in failed] == ["order.tokens_follow"] and "mirrored" in failed[0]["message"]
        assert found["fine"] is False and {check["group"] for check in found["checks"]} == set(range(1, 12))

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            ([], 2, "--all"),
            (["swift", "--all"], 2, "both"),
            (["swft"], 66, "did you mean swift"),
            (["no.such.module:Encoder"], 1, "no.such.module"),
        ],
    )
    def test_usage(self, arguments: list[str], code: int, says: str, capsys) -> None:
        assert main(["encoders", "check", *arguments]) == code
        out, err = capsys.readouterr()
        assert says in out + err

    def test_an_encoder_of_which_nothing_ran_is_not_called_passed(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        missing = CheckResult("card.builds", 1, "not applicable", "a requirement is not installed: some_library")
        ran = CheckResult("card.builds", 1, "passed", "tiny instance")
        found = [("one", [missing]), ("two", [ran])]
        monkeypatch.setattr("neuroflamingo.encoder_check.isolation.check_isolated", lambda *_, **__: iter(found))
        assert main(["encoders", "check", "--all"]) == 0
        out = capsys.readouterr().out
        assert "not checked one" in out and "some_library" in out
        assert "1 of 2 encoders passed; not checked: one" in out
        assert main(["encoders", "check", "--all", "--json"]) == 0
        assert [entry["checked"] for entry in json.loads(capsys.readouterr().out)] == [False, True]

    @pytest.mark.slow
    def test_hostile_encoders_are_isolated_and_named(self, site: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ["h-good", "h-nan", "h-shape", "h-dtype", "h-prints", "h-dies", "h-raises"]
        hostile.install(site, *names)
        hostile.install_twice(site, "h-twice")
        monkeypatch.setattr("neuroflamingo_encoders.registry.BUILT_IN", {})
        assert main(["encoders", "check", "--all", "--json"]) == 1
        found = {entry["encoder"]: entry for entry in json.loads(capsys.readouterr().out)}
        assert sorted(found) == sorted([*names, "h-twice"])
        assert [name for name in found if found[name]["fine"]] == ["h-good"]
        told = {
            name: {check["name"]: check["message"] for check in entry["checks"] if check["status"] == "failed"}
            for name, entry in found.items()
        }
        assert "NaN" in told["h-nan"]["shapes.smallest"] and "[1, 2, 2, 4]" in told["h-shape"]["shapes.smallest"]
        assert "float64" in told["h-dtype"]["shapes.smallest"]
        assert told["h-prints"] == {"device.silence": "prints to standard output: 'welcome'"}
        assert "exit code 9, after card.implementation" in told["h-dies"]["device.isolation"]
        assert "no licence key" in told["h-raises"]["card.builds"]
        assert "h-twice-second" in told["h-twice"]["card.builds"]

    @pytest.mark.slow
    def test_an_encoder_that_hangs_is_ended_and_the_next_one_checked(self, site: Path) -> None:
        hostile.install(site, "h-hangs")
        (name, results), (other, others) = check_isolated(["h-hangs", "no-such-encoder"], seconds=20)
        assert (name, other) == ("h-hangs", "no-such-encoder")
        assert "did not finish within 20 s" in results[-1].message and not results[-1].fine
        assert "no encoder named 'no-such-encoder'" in others[0].message


class TestNew:
    def test_a_project_is_written_whole_and_never_over_another(self, tmp_path: Path, capsys) -> None:
        folder = tmp_path / "new-encoder"
        assert main(["encoders", "new", "new-encoder", "-o", str(folder)]) == 0
        assert capsys.readouterr().out.strip() == str(folder)
        files = {path.name for path in folder.iterdir()}
        assert files == {"pyproject.toml", "README.md", "new_encoder.py", "test_new_encoder.py"}
        assert len((folder / "new_encoder.py").read_text().splitlines()) < 60
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["entry-points"]["neuroflamingo.encoders"] == {"new-encoder": "new_encoder:CARD"}
        assert "$" not in "".join(path.read_text() for path in folder.iterdir())
        (folder / "mine.txt").write_text("mine")
        (folder / "new_encoder.py").write_text("changed")
        assert main(["encoders", "new", "new-encoder", "-o", str(folder)]) == 73
        assert (folder / "new_encoder.py").read_text() == "changed"
        assert main(["encoders", "new", "new-encoder", "-o", str(folder), "--overwrite"]) == 0
        assert "NewEncoderEncoder" not in (folder / "new_encoder.py").read_text()
        assert (folder / "mine.txt").read_text() == "mine"

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("My_Encoder", "try my-encoder"),
            ("../evil", "try evil"),
            ("3d", "try my-encoder"),
            ("", "try my-encoder"),
            ("a" * 60, "at most 50"),
            ("class", "is a Python keyword"),
            ("json", "module of the standard library"),
            ("torch", "installed module"),
            ("swift", "installed encoder"),
        ],
    )
    def test_names_that_cannot_be_used_are_refused(self, name: str, says: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=says):
            write_encoder_project(name, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_places_that_cannot_be_written_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="cannot be created"):
            write_encoder_project("new-encoder", tmp_path / "gone" / "new-encoder")
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError):
            write_encoder_project("new-encoder", tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
        (tmp_path / "empty").mkdir()
        assert len(list(write_encoder_project("new-encoder", tmp_path / "empty").iterdir())) == 4

    def test_a_write_that_fails_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("neuroflamingo_encoders.scaffold.os.rename", full)
        with pytest.raises(OutputError, match="No space left"):
            write_encoder_project("new-encoder", tmp_path / "new-encoder")
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_a_new_project_installs_is_listed_passes_and_trains(self, tmp_path: Path) -> None:
        """In an environment of its own, which sees this one's packages."""
        folder = write_encoder_project("new-encoder", tmp_path / "new-encoder")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
        python = tmp_path / "venv" / "bin" / "python"
        (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
        seen = [sysconfig.get_path("purelib"), *(p for p in sys.path if p and Path(p).is_dir())]
        (packages / "outer.pth").write_text("\n".join(dict.fromkeys(seen)) + "\n")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

        def run(*words: str | Path) -> str:
            done = subprocess.run(
                [python, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        run("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", folder)
        assert "new-encoder" in run("-m", "neuroflamingo", "encoders", "list")
        checked = run("-m", "neuroflamingo", "encoders", "check", "new-encoder")
        assert "\nfailed" not in checked and "end_to_end.learns" in checked
        losses = [float(word) for word in run("-c", TRAIN).split()]
        assert 10 < len(losses) <= 21 and losses[-1] < 0.5 * losses[0]
        if "pytest" in sys.modules:
            run("-m", "pytest", "-q", "-p", "no:cacheprovider", folder)


TRAIN = """
from neuroflamingo.encoder_check import toy_model, train, two_scans
from neuroflamingo_encoders import build_encoder
from neuroflamingo_encoders.conformance.subject import Subject

build_encoder("new-encoder")
subject = Subject.of("new-encoder")
model = toy_model(subject).train()
print(*train(model, two_scans(model, subject), 20))
"""
