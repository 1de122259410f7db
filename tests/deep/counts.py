"""The deep counts, printed: `python -m tests.deep.counts [SHARE]`, for a nightly run; SHARE 0.01 is what CI tries.

Mutants of files by the hundred thousand, kills of verbs by the hundred, and the memory of one process over many scans.
The seeds are fixed: a fault is tried again by its number. Exit code 1 if there was any fault.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.deep import kills, mutants, worker_kills

KILLS = {"report": 250, "encode": 250, "prepare": 250, "convert": 250, "train": 250}
WORKER_KILLS = {"workers": (worker_kills.workers, 50), "Dask workers": (worker_kills.dask, 50)}
SCANS = 200


def memory_slope(count: int, folder: Path) -> tuple[float, float]:
    """Resident memory of one process over reports, each on another file: MB at the end, kB each over the later half."""
    from neuroflamingo.inference.loaded_model import open_model
    from neuroflamingo.inference.pipeline import write_report

    model, held = open_model("tiny-t1w", device="cpu"), []
    image = nib.Nifti1Image.from_filename(folder / "head.nii.gz")
    voxels, rng = np.asarray(image.dataobj), np.random.default_rng(0)
    for number in range(count):
        noisy = (voxels + rng.normal(0, 5, voxels.shape)).clip(0).astype(np.int16)
        file = folder / f"head-{number}.nii.gz"
        nib.Nifti1Image(noisy, image.affine).to_filename(file)
        write_report(file, model=model, max_new_tokens=8, pictures=False)
        file.unlink()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held.append(pages * 4096 / 1e6)
    later = np.array(held[count // 2 :])
    return held[-1], float(np.polyfit(np.arange(len(later)), later, 1)[0] * 1000) if len(later) > 1 else 0.0


def main(share: float) -> int:
    """Try everything, print the counts as they come, and give the exit code."""
    faults = 0
    for kind, (_, count) in mutants.KINDS.items():
        begin, number = time.process_time(), max(1, round(count * share))
        with tempfile.TemporaryDirectory(dir=mutants.memory_folder()) as folder:
            outcome = mutants.run(kind, number, Path(folder))
        faults += len(outcome.faults)
        spent = time.process_time() - begin
        print(
            f"{kind}: {number:,} tried, {dict(outcome.counts)}, {len(outcome.faults)} faults; {spent:.0f} s", flush=True
        )
        print("".join(f"  {fault}\n" for fault in outcome.faults[:20]), end="")
    with tempfile.TemporaryDirectory() as name:
        kills.inputs(Path(name))
        for verb, count in KILLS.items():
            try:
                counts: object = dict(kills.run(verb, max(2, round(count * share)), Path(name)))
            except AssertionError as error:
                faults, counts = faults + 1, f"FAULT: {error}"
            print(f"kills of {verb}: {counts}", flush=True)
        for what, (kill, count) in WORKER_KILLS.items():
            (place := Path(name) / what).mkdir()
            try:
                counts = dict(kill(max(2, round(count * share)), place))
            except AssertionError as error:
                faults, counts = faults + 1, f"FAULT: {error}"
            print(f"kills of {what}: {counts}", flush=True)
        scans = max(4, round(SCANS * share))
        end, slope = memory_slope(scans, Path(name))
        print(
            f"memory: {scans} reports in one process, {end:.0f} MB at the end, {slope:+.0f} kB each in the later half"
        )
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0))
