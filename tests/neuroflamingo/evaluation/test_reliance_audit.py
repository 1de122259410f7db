"""The audit of reliance on the scan: models built to look, to be blind, to keep sides, to read names and targets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo.cli import main
from neuroflamingo.evaluation.audit_cases import audit_cases
from neuroflamingo.evaluation.reliance_audit import AuditCase, RelianceAudit, audit_reliance
from neuroflamingo.evaluation.report_texts import NamedText
from neuroflamingo.evaluation.scan_command import ScanCommand
from neuroflamingo.evaluation.scan_controls import write_controls
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, ScanError, UsageError

PLACES = [(side, lobe) for lobe in ("frontal", "parietal", "temporal", "occipital") for side in ("left", "right")]
NORMAL = "FINDINGS: No mass."
DRAWS = np.random.default_rng(1)


def sentence(side: str, lobe: str) -> str:
    return f"FINDINGS: Mass in the {side} {lobe} lobe."


def look(scan: Path) -> str:
    """A model that sees: the bright voxel's place in the world is the mass."""
    image = nib.load(scan)
    voxels = np.asarray(image.dataobj)
    if not voxels.max():
        return NORMAL
    x, y, _ = nib.affines.apply_affine(image.affine, np.unravel_index(voxels.argmax(), voxels.shape))
    return sentence("left" if x < 0 else "right", ("frontal", "parietal", "temporal", "occipital")[int(y // 10)])


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[AuditCase]:
    """24 small scans, one bright voxel each, stored with left first or right first."""
    folder = tmp_path_factory.mktemp("scans")
    made = []
    for at in range(24):
        side, lobe = PLACES[at % 8]
        affine = np.diag([2.0, 10.0, 2.0, 1.0])
        affine[:3, 3] = (-11, 0, 0)
        voxels = np.zeros((12, 4, 3), dtype=np.int16)
        voxels[2 if side == "left" else 9, ("frontal", "parietal", "temporal", "occipital").index(lobe), 1] = 100
        if at % 2:
            voxels, affine = voxels[::-1], affine @ np.array([[-1, 0, 0, 11], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        path = folder / f"sub-{at:02d}_T1w.nii.gz"
        nib.Nifti1Image(voxels, affine).to_filename(path)
        made.append(AuditCase(f"s{at}", path, f"s{at}", NamedText(f"s{at}", sentence(side, lobe))))
    return made


def unknown(cases: list[AuditCase]) -> list[AuditCase]:
    return [AuditCase(case.id, case.scan, case.person) for case in cases]


def verdicts(write: Callable[[Path], str], cases: list[AuditCase]) -> list[str]:
    return list(audit_reliance(write, cases).verdicts)


def test_a_model_that_looks(cases: list[AuditCase]) -> None:
    found = audit_reliance(look, cases)
    assert list(found.verdicts) == ["uses the scan"]
    plain = found.to_json()
    assert plain["own"]["full_finding_f1"] == plain["mirrored"]["full_finding_f1"] == 1.0
    assert plain["blank"]["full_finding_f1"] == 0.0 and plain["other"]["full_finding_f1"] < 0.5
    assert plain["other"]["loss_interval"][0] > 0 and plain["mirrored"]["wrong_side_rate"] == 0.0
    assert verdicts(look, unknown(cases)) == ["uses the scan"]


def constant(scan: Path) -> str:
    return sentence("left", "frontal")


def guess(scan: Path) -> str:
    """Blind, but no two reports are alike: drawn anew at every call."""
    return sentence(*PLACES[int(DRAWS.integers(8))])


def blind_by_name(scan: Path) -> str:
    """Blind, but with a report for each file name."""
    return sentence(*PLACES[sum("/".join(scan.parts[-2:]).encode()) % 8])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("write", [constant, guess, blind_by_name])
def test_blind_models(cases: list[AuditCase], write: Callable[[Path], str], known: bool) -> None:
    found = verdicts(write, cases if known else unknown(cases))
    assert "uses the scan" not in found
    assert "blind" in found or (write is not constant and "not shown" in found), "some are right by chance"
    assert ("one report for all" in found) == (write is constant)


def test_a_model_that_keeps_sides(cases: list[AuditCase]) -> None:
    """It sees all but the side, which it takes from how the voxels are stored."""

    def keep(scan: Path) -> str:
        return look(scan).replace("right", "left")

    for known in (cases, unknown(cases)):
        assert "sides do not follow" in verdicts(keep, known)


def test_a_model_that_reads_the_report_beside_the_scan(cases: list[AuditCase]) -> None:
    truth = {case.scan: case.reference.text for case in cases if case.reference}
    found = audit_reliance(lambda scan: truth.get(scan, NORMAL), cases)
    assert "reads more than the scan" in found.verdicts and "blind" in found.verdicts
    assert found.to_json()["own"]["full_finding_f1"] == 1.0


def test_teacher_forcing_is_found(cases: list[AuditCase]) -> None:
    found = audit_reliance(look, cases, with_target=lambda scan, target: target)
    assert "the target leaks" in found.verdicts and "24 of 24" in found.verdicts["the target leaks"]
    honest = audit_reliance(look, cases, with_target=lambda scan, target: look(scan))
    assert list(honest.verdicts) == ["uses the scan"]
    with pytest.raises(UsageError, match="true report"):
        audit_reliance(look, unknown(cases), with_target=lambda scan, target: target)


def test_a_model_that_refuses_an_empty_scan_uses_the_scan(cases: list[AuditCase]) -> None:
    def careful(scan: Path) -> str:
        if (text := look(scan)) == NORMAL:
            raise ScanError("no brain in it")
        return text

    found = audit_reliance(careful, cases)
    assert list(found.verdicts) == ["uses the scan"] and len(found.refused["blank"]) == 24


def test_few_scans_are_said_and_one_person_is_not_enough(cases: list[AuditCase]) -> None:
    assert "few scans" in verdicts(look, cases[:4])
    with pytest.raises(UsageError, match="two persons"):
        audit_reliance(look, [AuditCase(case.id, case.scan, "x") for case in cases[:4]])
    with pytest.raises(UsageError, match="not one scan"):
        audit_reliance(ScanCommand.of(f"{sys.executable} -c 'exit(3)' {{scan}}"), cases[:2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 2)])
def test_controls_keep_the_grid(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    voxels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    affine = np.array([[0, 0, 2.0, -3], [-3, 0, 0, 7], [0, 4, 0, 1], [0, 0, 0, 1]])
    nib.Nifti1Image(voxels, affine).to_filename(tmp_path / "a.nii.gz")
    made = {name: nib.load(path) for name, path in write_controls(tmp_path / "a.nii.gz", tmp_path / "c").items()}
    assert all(np.array_equal(image.affine, affine) and image.shape == shape for image in made.values())
    assert np.array_equal(made["renamed"].dataobj, voxels) and not np.asarray(made["blank"].dataobj).any()
    assert np.array_equal(made["mirrored"].dataobj, np.flip(voxels, 2)), "the third voxel axis runs left to right"


def test_a_command(cases: list[AuditCase], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.py"
    model.write_text("import sys\nprint('FINDINGS: Mass in the left frontal lobe.', open(sys.argv[2]).read())\n")
    rows = [
        {"id": case.id, "scans": [str(case.scan)], "text": case.reference.text} for case in cases[:4] if case.reference
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = f"{sys.executable} {model} {{scan}} {{reference}}"
    words = ["audit", "--scans", str(tmp_path / "m.jsonl"), "--command", line, "--quiet"]
    assert main([*words, "--json", "--texts", str(tmp_path / "t.jsonl")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"blind", "the target leaks", "few scans"} <= set(found["verdicts"]) and found["truth"] == "known"
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 4 * 6
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "the target leaks: " in out and "| an empty scan | " in out


def test_what_a_command_may_do(tmp_path: Path) -> None:
    scan = tmp_path / "a b;touch x.nii"
    scan.write_bytes(b"")
    python = sys.executable
    assert ScanCommand.of(f"{python} -c 'import sys; print(sys.argv[1:])' {{scan}} '$HOME'")(scan) == str(
        [str(scan), "$HOME"]
    )
    refusals = {
        "-c 'import sys; sys.exit(\"no brain\")'": "no brain",
        "-c pass": "printed nothing",
        "-c 'import time; time.sleep(60)'": "no report after 1 s",
    }
    for words, part in refusals.items():
        with pytest.raises(ScanError) as raised:
            ScanCommand.of(f"{python} {words} {{scan}}", timeout_s=1.0 if "sleep" in words else 60.0)(scan)
        assert part in str(raised.value)
    with pytest.raises(ModelError, match="cannot be started"):
        ScanCommand.of("/no/such/program {scan}")(scan)
    for line in ("model", "model '{scan}", ""):
        with pytest.raises(UsageError):
            ScanCommand.of(line)


def test_scans_of_a_folder_and_faults_of_a_table(cases: list[AuditCase], tmp_path: Path) -> None:
    found = audit_cases(cases[0].scan.parent)
    assert len(found) == 24 and (found[3].id, found[3].person) == ("sub-03_T1w", "03") and found[3].reference is None
    with pytest.raises(ScanError, match="sub-00_T1w has no reference"):
        audit_cases(cases[0].scan.parent, {})
    rows = [{"id": "a", "scan": "gone.nii"}, {"id": "b"}, {"scan": "x"}, {"id": "c", "scans": ["1", "2"]}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ScanError) as raised:
        audit_cases(tmp_path / "m.jsonl")
    for part in ("there is no file gone.nii", "line 2: no scan", "line 3: no id", "line 4: not one scan, but several"):
        assert part in str(raised.value)


@pytest.mark.parametrize("words", [[], ["--model", "tiny-t1w", "--command", "x {scan}"]])
def test_one_model_at_a_time(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--scans", ".", *words]) == 2
    assert "--command or --model" in capsys.readouterr().err


def test_a_file_of_which_no_controls_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"no scan")
    with pytest.raises(NeuroFlamingoError, match="no controls can be made"):
        write_controls(tmp_path / "a.nii", tmp_path)


def test_all_of_it_is_plain_data(cases: list[AuditCase]) -> None:
    found: RelianceAudit = audit_reliance(look, cases[:4])
    assert json.loads(json.dumps(found.to_json()))["distinct_reports"] == 4


def test_few_findings_do_not_make_a_model_blind(cases: list[AuditCase]) -> None:
    """It sees, but only one of its 24 scans shows a mass: that is little, and no sign of blindness."""

    def careful(scan: Path) -> str:
        return look(scan) if np.asarray(nib.load(scan).dataobj).max() == 99 else NORMAL

    image = nib.load(cases[0].scan)
    nib.Nifti1Image(np.asarray(image.dataobj) * 99 // 100, image.affine).to_filename(
        cases[0].scan.with_name("one.nii.gz")
    )
    one = AuditCase("s0", cases[0].scan.with_name("one.nii.gz"), "s0", cases[0].reference)
    normal = [AuditCase(case.id, case.scan, case.person, NamedText(case.id, NORMAL)) for case in cases[1:]]
    assert verdicts(careful, [one, *normal]) == ["uses the scan", "few scans"]
