"""Export of painted cases: scan (NIfTI), findings (JSON) and report (text)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from isal import igzip

from neuroflamingo.painting.anatomy import load_anatomy
from neuroflamingo.painting.case import Case, paint_case
from neuroflamingo.painting.follow_up import paint_follow_up
from neuroflamingo.painting.heads import TEMPLATE
from neuroflamingo.painting.outliers import HeadsSeen
from neuroflamingo.painting.outlines import load_outlines
from neuroflamingo_preprocessing.files import write_bytes_atomic, write_text_atomic

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.scan import Scan

SCHEMA = 3
PAINTERS = 4
"""Number of cases painted in parallel; each takes about 400 MB."""


def nifti_bytes(scan: Scan) -> bytes:
    """Encode a painted scan as gzipped int16 NIfTI-1 with equal sform and qform; the same scan gives the same bytes."""
    import nibabel as nib

    largest = max(float(scan.voxels.max()), 1.0)
    voxels = np.round(scan.voxels * (32000.0 / largest)).astype(np.int16)
    image = nib.Nifti1Image(voxels, scan.affine)
    image.set_qform(scan.affine, 1)
    image.set_sform(scan.affine, 1)
    image.header.set_xyzt_units("mm")
    return igzip.compress(image.to_bytes(), compresslevel=2, mtime=0)


def truth_record(case: Case) -> dict:
    """Contents of the JSON file of a case; what is said of single lesions has an entry for each finding.

    That of a finding without a centre (atrophy, ventricles, white matter) is null. A follow-up has a `comparison` too.
    """
    numbers = case.lesion_numbers()
    placed = [None if number is None else case.blueprint.lesions[number] for number in numbers]
    seen = [None if number is None else case.visibility[number] for number in numbers]
    record = {
        "schema_version": SCHEMA,
        "seed": case.blueprint.seed,
        "anatomy": case.anatomy.name,
        "findings": [f.model_dump(mode="json", exclude_none=True) for f in case.findings],
        "centres_mni_mm": [one and one.centre.round(1).tolist() for one in placed],
        "contrasts": [one and round(one.contrast, 3) for one in placed],
        "contrasts_to_noise": [one and round(one.contrast_to_noise, 2) for one in seen],
        "volumes_ml": [one and round(one.volume_ml, 2) for one in seen],
        "visible": [one is None or one.visible for one in seen],
    }
    if case.comparison is not None:
        record["comparison"] = case.comparison.model_dump(mode="json", exclude_none=True)
    return record


def write_case(
    case: Case, folder: Path, *, name: str | None = None, more: dict[str, Any] | None = None, overwrite: bool = False
) -> Path:
    """Write `NAME_T1w.nii.gz`, `NAME.json` and `NAME.txt`; returns the scan's path.

    Args:
        name: of the files; None: the case's.
        more: what the JSON file states beside `truth_record`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = name or case.name
    record = json.dumps(truth_record(case) | (more or {}), indent=1)
    write_text_atomic(folder / f"{name}.json", record + "\n", overwrite=overwrite)
    write_text_atomic(folder / f"{name}.txt", case.text + "\n", overwrite=overwrite)
    return write_bytes_atomic(folder / f"{name}_T1w.nii.gz", nifti_bytes(case.scan()), overwrite=overwrite)


def write_follow_up(baseline: Case, follow_up: Case, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write both scans of a pair as `write_case` does, named `_baseline` and `_follow-up`; returns the scans' paths.

    The JSON file of the follow-up also has the name of the baseline's scan.
    """
    first = write_case(baseline, folder, name=f"{follow_up.name}_baseline", overwrite=overwrite)
    more = {"baseline": first.name}
    return [first, write_case(follow_up, folder, name=f"{follow_up.name}_follow-up", more=more, overwrite=overwrite)]


def paint_cases(
    cases: int,
    seed: int,
    folder: str | Path,
    *,
    anatomy: str | Sequence[str] = TEMPLATE,
    outlines: str | Path | None = None,
    follow_up: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[Path]:
    """Paint cases with seeds `seed`, `seed + 1`, ... into a folder; returns the paths of the scans.

    Args:
        cases: how many.
        seed: of the first case.
        folder: where they go.
        anatomy: the head to paint into, or several that take turns by the seed (see `neuroflamingo.painting.heads`).
        outlines: masks of real lesions for infarcts, without the fifth that is held out (see `load_outlines`).
        follow_up: paint a baseline and a follow-up of each case, see `paint_follow_up`; with several heads 15 % of the
            baselines show another person's.
        overwrite: replace files that are there.
        progress: called with (done, all) after each case.
        warn: called with a sentence about each head that differs from the others in one place, as a patient's does.
    """
    heads = [anatomy] if isinstance(anatomy, str) else list(anatomy)
    # Head by head: a head of the user's own takes some seconds to be read.
    seeds = sorted(range(seed, seed + cases), key=lambda number: (number % len(heads), number))
    load_anatomy(heads[seeds[0] % len(heads)])
    drawn_from = () if outlines is None else load_outlines(outlines)
    seen = HeadsSeen()

    def write(case_seed: int) -> list[Path]:
        head, other = (heads[number % len(heads)] for number in (case_seed, case_seed + 1))
        pair = paint_follow_up(case_seed, head, drawn_from, None if other == head else other) if follow_up else None
        case = pair[1] if pair else paint_case(case_seed, head, outlines=drawn_from)
        if case.anatomy.real:
            seen.add(case.anatomy)
        if pair:
            return write_follow_up(*pair, Path(folder), overwrite=overwrite)
        return [write_case(case, Path(folder), overwrite=overwrite)]

    written, threads = list[list[Path]](), torch.get_num_threads()
    # One thread per case: otherwise the last digits depend on the number of threads in a matrix product.
    pool = ThreadPoolExecutor(min(PAINTERS, os.cpu_count() or 1), initializer=torch.set_num_threads, initargs=(1,))
    try:
        for paths in pool.map(write, seeds):
            written.append(paths)
            if progress:
                progress(len(written), cases)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    if warn:
        for sentence in seen.unlike_the_others():
            warn(sentence)
    return sorted(path for paths in written for path in paths)
