"""Real scans with known findings: the truth file, masks, scores, disturbed versions, and a set made by rule."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from neuroflamingo.cli import main
from neuroflamingo.evaluation.disturbed_scans import VERSIONS
from neuroflamingo.evaluation.evaluate_scans import evaluate_scans
from neuroflamingo.evaluation.known_scores import COUNTS, ScanScore, figures, score_scan
from neuroflamingo.evaluation.masks import findings_of, lesions_of, place_of
from neuroflamingo.evaluation.truth_file import Examination, json_schema, read_truth
from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side
from neuroflamingo.painting.case import Case, paint_into_head
from neuroflamingo.painting.export import nifti_bytes
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.geometry import apply, to_canonical
from neuroflamingo_preprocessing.scan import Scan

ROOT = Path(__file__).resolve().parents[3]
REAL = Path(os.environ.get("NEUROFLAMINGO_REAL_SCANS", ROOT.parent / "shared" / "real"))
MASS = Finding(kind="mass", side="left", region="frontal lobe", size_mm=32)  # type: ignore[arg-type]
HEMATOMA = Finding(kind="subacute hematoma", side="right", region="cerebellum", size_mm=24)  # type: ignore[arg-type]
INFARCT = Finding(kind="chronic infarct", side="right", region="parietal lobe", size_mm=30)  # type: ignore[arg-type]


def write_truth(folder: Path, truth: dict) -> Path:
    path = folder / "truth.json"
    path.write_text(json.dumps(truth))
    return path


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nib.Nifti1Image(voxels.astype(np.uint8), affine).to_filename(path)
    return path


def mask_of(case: Case, scan: Scan) -> np.ndarray:
    """Voxels of tissue inside the case's only lesion. The head is unmoved, so that the world is the template's."""
    lesion = case.blueprint.lesions[0]
    points = torch.from_numpy(apply(scan.affine, np.argwhere(np.ones(scan.voxels.shape, bool))).astype(np.float32))
    inside = torch.nonzero(lesion.level(lesion.own_frame(points)) < 1)[:, 0]
    maps = case.anatomy.coarse(points[inside])
    tissue = maps[3] > 0.5 if lesion.push else (maps[1] + maps[2]) > 0.35
    mask = np.zeros(len(points), bool)
    mask[inside[tissue].numpy()] = True
    return mask.reshape(scan.voxels.shape)


# The truth file


def test_all_faults_of_a_truth_file_stand_in_one_message(tmp_path: Path) -> None:
    write_volume(tmp_path / "empty.nii.gz", np.zeros((8, 8, 8)), np.eye(4))
    (tmp_path / "torn.nii.gz").write_bytes(b"\x1f\x8bnothing")
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "b_T1w.nii.gz").touch()
    (tmp_path / "b_T2w.nii.gz").touch()
    truth = {
        "one": {"scans": ["a", "gone"], "findings": [{"class": "aneurysm"}]},
        "two": {"scans": "a", "findings": [{"class": "mass", "region": "elbow", "sides": "left", "side": "up"}]},
        "three": {"scans": "a", "mask": "empty", "findings": [{"class": "mass", "size_mm": -3}], "not": ["dragon"]},
        "four": {"scans": "a", "mask": "empty", "findings": [{"class": "mass"}], "not": ["infarct"]},
        "five": {"scans": "a", "mask": {"file": "torn", "class": "mass"}},
        "six": {"scans": "b", "findings": [{"class": "glioma"}], "not": ["mass"]},
        "seven": {"scans": "b"},
        "eight": {"scans": [], "mask": "empty"},
        "nine": ["a"],
    }
    with pytest.raises(ScanError) as refused:
        read_truth(write_truth(tmp_path, truth))
    seen = refused.value.seen or ""
    for words in (
        "one: findings.0.class: unknown class (seen: 'aneurysm'",
        "unknown region (seen: 'elbow'",
        "sides: unknown key; did you mean side",
        "two: findings.0.side:",
        "three: findings.0.size_mm.0:",
        "three: not.0: unknown class (seen: 'dragon'",
        "four: mask empty.nii.gz is empty",
        "five: mask torn.nii.gz is not a mask",
        "six: mass: both among findings and not",
        "seven: there is no file b: 2 files begin so",
        "eight: scans:",
        "nine: ",
        "a.nii.gz: listed 2 times",
    ):
        assert words in seen, words
    assert refused.value.exit_code == 65


@pytest.mark.parametrize("text", ["{}", "[]", "{", '"x"'])
def test_what_is_no_truth_file_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "truth.json"
    path.write_text(text)
    assert main(["evaluate", "--scans", str(path)]) == 65
    assert main(["evaluate", "--scans", str(tmp_path / "none.json")]) == 66


def test_names_without_an_ending_are_completed_and_never_to_a_longer_name(tmp_path: Path) -> None:
    (tmp_path / "patients").mkdir()
    for name in ("sub-1_T1w.nii.gz", "sub-10_T1w.nii.gz", "patients/ms.nii.gz", "patients/ms.json"):
        (tmp_path / name).touch()
    known = read_truth(write_truth(tmp_path, {"a": {"scans": ["sub-1", "ms"]}}))
    assert [path.name for path in known[0].scans] == ["sub-1_T1w.nii.gz", "ms.nii.gz"]
    (tmp_path / "sub-1_T1w.nii.gz").unlink()
    with pytest.raises(ScanError, match="has 1 fault"):
        read_truth(write_truth(tmp_path, {"a": {"scans": "sub-1"}}))


def test_contrasts_come_from_the_entry_or_from_the_name(tmp_path: Path) -> None:
    entries = ["a_T1", "a_FLAIR", {"file": "a_x", "contrast": "T2w"}]
    about = Examination.model_validate({"scans": entries})
    assert [entry.kind for entry in about.scans] == ["T1w", "FLAIR", "T2w"]


def test_options_of_the_other_kind_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--versions"]) == 2
    assert "--scans" in capsys.readouterr().err
    assert main(["evaluate", "--scans", "t.json", "--cases", "5"]) == 2
    assert "painted" in capsys.readouterr().err


def test_the_published_schema_is_that_of_the_code_and_takes_what_the_reader_takes() -> None:
    from jsonschema import Draft202012Validator

    assert json.loads((ROOT / "docs" / "truth.schema.json").read_text()) == json_schema(), "run tools/report_schema.py"
    page = (ROOT / "docs" / "evaluate.md").read_text()
    example = json.loads(page.split("```json\n")[1].split("```")[0])
    validator = Draft202012Validator(json_schema())
    validator.validate(example)
    assert [Examination.model_validate(one) for one in example.values()]
    for wrong in ({"a": {}}, {"a": {"scans": "x", "sides": 1}}, {"a": {"scans": "x", "findings": [{"side": "left"}]}}):
        assert not validator.is_valid(wrong)


# Masks


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [MASS, HEMATOMA, INFARCT])
def test_a_painted_lesions_mask_gives_the_painted_finding(wanted: Finding) -> None:
    for seed in range(3):
        case, scan = paint_into_head([wanted], seed)
        (found,), small = lesions_of(mask_of(case, scan), scan.affine, np.eye(4), wanted.kind)
        (painted,) = case.findings
        assert (found.side, found.regions, small) == (painted.side, (painted.region,), 0)
        assert abs(found.size_mm[0] - (painted.size_mm or 0)) < 3.5


def ball(shape: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> np.ndarray:
    return ((np.moveaxis(np.indices(shape), 0, -1) - centre) ** 2).sum(-1) <= radius**2


def test_parts_nearer_than_painted_lesions_are_one_and_small_ones_none() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-60, -40, 20)
    near = ball((60, 40, 40), (12, 20, 20), 8) | ball((60, 40, 40), (33, 20, 20), 8)
    (one,), _ = lesions_of(near, affine, np.eye(4), FindingClass.MASS)
    assert 36 < one.size_mm[0] < 39
    apart = (
        ball((60, 40, 40), (10, 20, 20), 8) | ball((60, 40, 40), (45, 20, 20), 6) | ball((60, 40, 40), (59, 0, 0), 2)
    )
    two, small = lesions_of(apart, affine, np.eye(4), FindingClass.MASS)
    assert [round(one.size_mm[0]) for one in two] == [16, 12] and small == 1


def test_sizes_are_the_patients_and_places_the_templates() -> None:
    """A head twice the template's size, stored in thick slices, left and right exchanged in the voxels."""
    affine = np.array([[-1.0, 0, 0, 100], [0, 1, 0, -110], [0, 0, 4, 40], [0, 0, 0, 1]])
    voxels = np.zeros((200, 200, 30), bool)
    voxels[150:180, 50:60, 10] = True  # x from -79 to -50 in the patient
    (one,), _ = lesions_of(voxels, affine, np.diag([0.5, 0.5, 0.5, 1.0]), FindingClass.INFARCT)
    assert one.side is Side.LEFT and one.size_mm[0] == pytest.approx(np.hypot(29, 9) + 2, abs=0.1)
    assert one.regions == (Region.PARIETAL,)


def test_a_lesion_across_the_midline_or_of_two_lobes() -> None:
    rng = np.random.default_rng(0)
    across = rng.uniform((-20, 0, 30), (40, 20, 50), (500, 3))
    assert place_of(across)[0] is None
    assert place_of(across * (0.05, 1, 1) - (0.5, 0, 0))[0] is Side.MIDLINE
    both = np.concatenate([np.full((50, 3), (-40, 20, 30)), np.full((50, 3), (-50, -10, -25))])
    side, regions = place_of(both + rng.normal(0, 1, (100, 3)))
    assert side is Side.LEFT and set(regions) == {Region.FRONTAL, Region.TEMPORAL}


def test_a_mask_of_another_space_is_refused_and_a_cropped_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    place = np.eye(4)
    place[:3, 3] = (-45, 10, 20)
    write_volume(tmp_path / "m.nii.gz", 2 * ball((30, 30, 30), (15, 15, 15), 10), place)
    truth = {
        "a": {"scans": "a", "mask": {"file": "m", "class": "mass", "label": 2}, "findings": [{"class": "infarct"}]}
    }
    (known,) = read_truth(write_truth(tmp_path, truth))
    found = findings_of(known, np.eye(4)).findings
    assert [(one.kind, one.side) for one in found] == [(FindingClass.INFARCT, None), (FindingClass.MASS, Side.LEFT)]
    far = np.eye(4)
    far[:3, 3] = 300
    with pytest.raises(ScanError, match="outside the brain"):
        findings_of(known, far)
    with pytest.raises(ScanError, match="cannot be measured"):
        findings_of(known, None)


# Scores


def about(**values) -> Examination:
    return Examination.model_validate({"scans": "x", **values})


def counts_of(exam: Examination, *stated: Finding, unwarned: bool = True) -> dict[str, float]:
    score = score_scan(exam, exam.findings, stated, unwarned=unwarned)
    return {name: value for name, value in score.counts.items() if value}


def test_what_is_not_listed_is_not_denied() -> None:
    patient = about(findings=[{"class": "stroke", "side": "left"}], **{"not": ["mass", "infarct over 20 mm"]})
    small = INFARCT.model_copy(update={"size_mm": 15.0})
    counts = counts_of(patient, INFARCT, small, MASS, HEMATOMA)
    # The infarct on the wrong side is taken for the known one; of the others one infarct is small enough.
    assert counts["found"] == counts["known"] == 1 and counts["side_opposite"] == 1 and "side_right" not in counts
    assert counts["denied_focal"] + counts["open_focal"] == 3 and counts["denied_focal"] in (1, 2)
    assert counts_of(about(), HEMATOMA) == {"scans": 1, "patient": 1, "open_focal": 1}


def test_in_a_complete_list_anything_else_is_invented() -> None:
    ventricles = Finding(kind="ventricular enlargement", side="bilateral", region="lateral ventricles", grade=1)  # type: ignore[arg-type]
    healthy = about(complete=True)
    assert counts_of(healthy, ventricles) == {"scans": 1, "healthy": 1, "healthy_invented": 1}
    loud = {"scans": 1, "healthy": 1, "healthy_invented": 1, "healthy_invented_focal": 1}
    assert counts_of(healthy, MASS, unwarned=False) == loud
    assert counts_of(healthy, MASS) == loud | {"healthy_unwarned": 1}
    assert counts_of(healthy) == {"scans": 1, "healthy": 1}
    assert counts_of(about(complete=True, findings=[{"class": "mass"}]), MASS, HEMATOMA)["denied_focal"] == 1


def test_only_what_is_known_is_scored() -> None:
    full = {"class": "mass", "side": "left", "region": ["frontal lobe", "insula"], "size_mm": [20, 34, 30]}
    counts = counts_of(about(findings=[full, {"class": "white matter lesions", "grade": [1, 2]}]), MASS)
    assert counts["placed"] == counts["side_right"] == counts["region_right"] == counts["size_right"] == 1
    assert counts["known"] == 2 and counts["found"] == 1 and "graded" not in counts
    bare = counts_of(about(findings=[{"class": "mass"}]), MASS)
    assert not {"sided", "regioned", "sized"} & set(bare) and bare["placed"] == 1


def test_intervals_come_from_persons() -> None:
    """Ten scans of one person say no more than one: there is nothing to draw from."""
    hit = ScanScore({**dict.fromkeys(COUNTS, 0.0), "scans": 1, "known": 1, "found": 1})
    miss = ScanScore({**dict.fromkeys(COUNTS, 0.0), "scans": 1, "known": 1})
    one = figures([hit, miss] * 5, ["a"] * 10).values["known findings found"]
    assert one.value == 0.5 and one.interval == (0.5, 0.5)
    many = figures([hit, miss] * 5, list("abcdefghij")).values["known findings found"]
    assert many.value == 0.5 and many.interval and many.interval[0] < 0.3 < 0.7 < many.interval[1]


# Disturbed versions


def test_versions_keep_the_head_where_it_is() -> None:
    affine = np.array([[-1.0, 0, 0, 30], [0, 0, 1.2, -30], [0, 1.1, 0, -20], [0, 0, 0, 1]])
    voxels = np.zeros((60, 50, 40), np.float32)
    voxels[20:41, 10:31, 10:31] = 100.0
    scan = Scan(voxels, affine)
    centre = apply(affine, np.argwhere(voxels > 50)).mean(0)
    for name, make in VERSIONS.items():
        changed = make(scan)
        assert changed is not None and changed.voxels.dtype == np.float32
        canonical, placed = to_canonical(changed.voxels, changed.affine)
        found = np.average(apply(placed, np.argwhere(canonical > 1)), axis=0, weights=canonical[canonical > 1])
        if name == "turned":
            assert np.sort(canonical.ravel()).tolist() == np.sort(voxels.ravel()).tolist()
            assert (np.abs(changed.affine[:3, :3]) > 0.1).sum() > 3
        else:
            assert np.allclose(found, centre, atol=0.2), name
        if "mm" in name:
            assert max(changed.spacing) == pytest.approx(float(name.split()[0]), abs=0.01)
    assert VERSIONS["3 mm axial"](Scan(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))) is None
    noisy = VERSIONS["noise 6 %"](scan)
    assert noisy is not None and (noisy.voxels[voxels == 0] == 0).all() and 4 < noisy.voxels[voxels > 0].std() < 8


# A set made by rule, and real scans


@pytest.fixture(scope="module")
def painted_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with masks, and a healthy head, painted by rule and stored as files."""
    folder = tmp_path_factory.mktemp("scans")
    truth: dict = {}
    for name, findings in (("p1", [MASS]), ("p2", [HEMATOMA]), ("h1", [])):
        case, scan = paint_into_head(findings, 5)
        (folder / f"{name}_T1w.nii.gz").write_bytes(nifti_bytes(scan))
        truth[name] = {"scans": name, "complete": True}
        if findings:
            write_volume(folder / f"{name}_mask.nii.gz", mask_of(case, scan), scan.affine)
            truth[name] |= {"scans": f"{name}_T1w", "mask": {"file": f"{name}_mask", "class": str(findings[0].kind)}}
    inverted = nib.Nifti1Image(1000 - scan.voxels, scan.affine)
    inverted.to_filename(folder / "h1_T2w.nii.gz")
    truth["h1"]["scans"] = ["h1_T1w", "h1_T2w"]
    return write_truth(folder, truth)


@pytest.mark.slow
def test_a_set_made_by_rule(painted_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, csv = tmp_path / "log.jsonl", tmp_path / "scans.csv"
    command = ["evaluate", "--scans", str(painted_set), "--log", str(log), "-d", "cpu", "-q"]
    assert main([*command, "--json", "--csv", str(csv)]) == 0
    out = json.loads(capsys.readouterr().out)
    found = {name: row["value"] for name, row in out["as_it_came"]["figures"].items()}
    assert found["known findings found"] == found["side right, of those found"] == found["region right"] == 1.0
    assert found["healthy heads with an invented finding"] == 0.0
    assert out["other_contrasts"] == {"images": 1, "refused": 1} and out["as_it_came"]["persons"] == 3
    assert len(csv.read_text().splitlines()) > 4
    # The second run takes everything from the log, but the line that a kill cut off.
    whole = log.read_text()
    log.write_text(whole[:-40])
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["as_it_came"] == out["as_it_came"] and log.read_text() == whole
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "2 of 2" in table and "0 of 1" in table and "3 persons" in table and "few" in table
    log.write_text("{}\n")
    assert main(command) == 65


@pytest.mark.slow
def test_a_refused_scan_is_counted_with_its_reason(painted_set: Path) -> None:
    def refuse(scan: Scan):
        raise ScanError("it lies askew", seen="much")

    out = evaluate_scans(painted_set, refuse)
    assert [one.refused for one in out.refused] == ["it lies askew (much)"] * 3
    values = out.figures().values
    assert values["T1w scans refused"].top == 3 and values["known findings found"].value is None
    assert values["the same, refused scans counted as missed"].of == 2
    assert "p1_T1w.nii.gz: it lies askew" in out.table()


@pytest.mark.slow
def test_real_scans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = REAL / "truth.json"
    if not truth.is_file():
        pytest.skip(f"no real scans in {REAL}: set NEUROFLAMINGO_REAL_SCANS to a folder with a truth.json")
    known = read_truth(truth)
    assert known
    chosen = next((one for one in known if one.masks), known[0])
    listed = json.loads(truth.read_text())[chosen.name]
    listed["scans"] = [str(path) for path in chosen.scans]
    listed["mask"] = [str(path) for path in chosen.masks]
    listed["mask"] = listed["mask"][0] if len(listed["mask"]) == 1 else listed["mask"]
    path = write_truth(tmp_path, {chosen.name: {key: value for key, value in listed.items() if value}})
    assert main(["evaluate", "--scans", str(path), "-d", "cpu", "-q", "--json"]) in (0, 1)
    out = json.loads(capsys.readouterr().out)
    assert out["as_it_came"]["scans"] and all(row["known"] for row in out["results"] if not row["refused"])
