"""The README's examples of reports, run as they stand on a head with a known finding: the findings must be right."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from neuroflamingo.demo import PAINTED
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.painting.case import paint_into_head
from neuroflamingo.painting.export import nifti_bytes
from neuroflamingo_preprocessing import Scan
from tests.preprocessing.formats.dicom.dicom_heads import LPS_TO_RAS, MPRAGE, PLANES, Slab, write_series

pytestmark = pytest.mark.slow
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINES = [
    line.split("   #")[0].strip()
    for language, body in FENCE.findall(README)
    if language == "bash"
    for line in body.splitlines()
    if line.startswith("neuroflamingo report ")
]
PYTHON = [body for language, body in FENCE.findall(README) if language == "python" and "write_report" in body]
SLAB = Slab(PLANES["sagittal"], 110, 100, 90, (2.0, 2.0, 2.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every scan that the README names: with the demo's finding, and, as `baseline.nii.gz`, without one."""
    place = tmp_path_factory.mktemp("readme")
    painted, plain = paint_into_head([PAINTED])[1], paint_into_head([])[1]
    for name, scan in (("scan", painted), ("followup", painted), ("baseline", plain), ("other", plain)):
        (place / f"{name}.nii.gz").write_bytes(nifti_bytes(scan))
    (place / "other.txt").write_text("FINDINGS: No abnormality.\nIMPRESSION: Normal MRI of the brain.")
    write_series(place / "dicom", SLAB, {**MPRAGE, "SeriesNumber": 3}, voxels=on_slab(painted))
    with zipfile.ZipFile(place / "examination.zip", "w") as archive:
        for file in (place / "dicom").iterdir():
            archive.write(file, file.name)
    return place


def on_slab(scan: Scan) -> np.ndarray[Any, Any]:
    """A scan on the voxels of `SLAB`."""
    k, j, i = np.indices((SLAB.slices, SLAB.rows, SLAB.columns))
    world = (np.stack([i, j, k], axis=-1) @ SLAB.steps.T + SLAB.origin) * LPS_TO_RAS
    back = np.linalg.inv(scan.affine)
    index = world @ back[:3, :3].T + back[:3, 3]
    values = map_coordinates(scan.voxels, index.reshape(-1, 3).T, order=1).reshape(world.shape[:3])
    return (values.clip(0) * 1000 / values.max()).astype(np.uint16)


def run(line: str, folder: Path) -> str:
    """Run a line of the README in a shell; every output file is new."""
    line = line.replace("neuroflamingo ", f"{shlex.quote(sys.executable)} -m neuroflamingo ", 1)
    answer = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("| head", "| cat")], cwd=folder, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def check(findings: list[Finding], name: str) -> None:
    """Nothing on the plain head; on the others the painted hematoma, with its place and nearly its size."""
    if name == "baseline":
        assert findings == []
        return
    (found,) = findings
    assert (found.kind, found.side, found.region) == (PAINTED.kind, PAINTED.side, PAINTED.region)
    assert found.size_mm is not None and PAINTED.size_mm is not None and abs(found.size_mm - PAINTED.size_mm) <= 10


def findings_of(text: str) -> list[Finding]:
    if text.startswith("{"):
        return [Finding.model_validate(finding) for finding in json.loads(text)["findings"]]
    said = text.split("<h3>Findings</h3>")[1].split("<h3>")[0]
    words = re.sub(r"<sup.*?</sup>|<strong.*?</strong>|<[^>]*>", "", said)
    return list(parse_report(words).findings)


def test_the_readme_shows_reports() -> None:
    assert len(LINES) >= 4 and len(PYTHON) == 1


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_finds_what_is_there(line: str, folder: Path) -> None:
    before = set(folder.rglob("*"))
    printed = run(line, folder)
    if " -o - " in line:
        return check(findings_of(printed), "scan")
    written = sorted(set(folder.rglob("*")) - before)
    reports = [path for path in written if path.suffix == ".json" and ".report" in path.name]
    pages = [path for path in written if path.suffix == ".html"]
    scans = [word for word in shlex.split(line) if word.endswith((".nii.gz", ".zip"))]
    assert len(pages) == len(scans)
    for path in reports or pages:
        check(findings_of(path.read_text(encoding="utf-8")), path.name.split(".")[0])
    return None


def test_the_python_of_the_readme_finds_what_is_there(folder: Path) -> None:
    code = f"{PYTHON[0]}\nprint(report.model_dump_json(include={{'findings'}}))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    *words, last = answer.stdout.splitlines()
    check(findings_of(last), "scan")
    assert f"{PAINTED.kind} left frontal lobe" in words[-1]
    assert ast.literal_eval(words[-1].split()[-1]) == json.loads(last)["findings"][0]["size_mm"]
