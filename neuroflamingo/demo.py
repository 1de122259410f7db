"""`python -m neuroflamingo.demo`: write reports on two scans with known findings, and print both side by side.

The scans are nilearn's MNI152 T1 head as it is, and the same head with one finding painted in. Both go through the
command line exactly as a user's own scan would.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isal import igzip

from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side, Signal
from neuroflamingo.painting.case import paint_into_head
from neuroflamingo.painting.export import nifti_bytes
from neuroflamingo.progress import say
from neuroflamingo.report.render import describe
from neuroflamingo_preprocessing.files import write_bytes_atomic, write_text_atomic

if TYPE_CHECKING:
    import nibabel as nib

PAINTED = Finding(kind=FindingClass.HEMATOMA, side=Side.LEFT, region=Region.FRONTAL, size_mm=34.0, signal=Signal.HIGH)
_WIDTH = 100


@dataclass(frozen=True)
class Example:
    """A scan on disk and its known findings."""

    scan: Path
    what: str
    truth: tuple[Finding, ...]


def write_scans(folder: Path) -> list[Example]:
    """Write the two scans, replacing older ones of the same names; returns them with their findings."""
    from nilearn.datasets import load_mni152_template

    folder.mkdir(parents=True, exist_ok=True)
    plain: nib.Nifti1Image = load_mni152_template(resolution=1)
    case, scan = paint_into_head([PAINTED])
    examples = [
        Example(folder / "mni152_T1w.nii.gz", "the MNI152 T1 head, as nilearn ships it", ()),
        Example(folder / "painted_T1w.nii.gz", "the same head with one finding painted in", case.findings),
    ]
    write_bytes_atomic(examples[0].scan, _gzipped(plain), overwrite=True)
    write_bytes_atomic(examples[1].scan, nifti_bytes(scan), overwrite=True)
    truth = [finding.model_dump(mode="json", exclude_none=True) for finding in case.findings]
    write_text_atomic(folder / "painted_truth.json", json.dumps(truth, indent=2) + "\n", overwrite=True)
    return examples


def report(example: Example, folder: Path, device: str) -> dict:
    """Run `neuroflamingo report` on a scan and return the JSON report."""
    command = [sys.executable, "-m", "neuroflamingo", "report", str(example.scan), "--output", str(folder)]
    subprocess.run([*command, "--device", device, "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    name = example.scan.name.removesuffix(".nii.gz")
    return json.loads((folder / f"{name}.report.json").read_text(encoding="utf-8"))


def beside(example: Example, written: dict) -> str:
    """Format report and known findings for a terminal."""
    found = [Finding.model_validate(finding) for finding in written["findings"]]
    lines = [f"{example.scan.name}: {example.what}", ""]
    for paragraph in written["text"].splitlines():
        lines += textwrap.wrap(paragraph, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    lines += ["", f"  read from the text: {'; '.join(map(describe, found)) or 'no finding'}"]
    lines += [f"  known truth:        {'; '.join(map(describe, example.truth)) or 'no finding'}", ""]
    return "\n".join(lines)


def _gzipped(image: nib.Nifti1Image) -> bytes:
    return igzip.compress(image.to_bytes(), compresslevel=2, mtime=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the scans, report on them and compare; returns the exit code of the first report that failed."""
    parser = argparse.ArgumentParser(prog="python -m neuroflamingo.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="demo", type=Path, help="folder for scans and reports (default: demo)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    say("writing two scans", file=sys.stderr, flush=True)
    examples = write_scans(options.output)
    try:
        written = [report(example, options.output, options.device) for example in examples]
    except subprocess.CalledProcessError as failure:
        return failure.returncode
    say()
    for example, form in zip(examples, written, strict=True):
        say(beside(example, form))
    for example in examples:
        say(f"page: {options.output / example.scan.name.removesuffix('.nii.gz')}.report.html")
    say("Research use only, not for diagnosis. The embedded model has seen painted findings only.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
