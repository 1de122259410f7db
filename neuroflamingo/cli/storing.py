"""The verb `prepare`: scans to a store."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from neuroflamingo.cli.asking import card_options
from neuroflamingo.cli.failures import say_error
from neuroflamingo.cli.progress import Progress
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError

SOME_FAILED = 1
SHOWN = 10
BASE_BYTES = 400 * 2**20
"""What a worker holds before it opens a scan: the libraries and the template."""
SECONDS_PER_VOLUME, SECONDS_PER_FRAME = 1.0, 0.05
"""On one core of 2.8 GHz: a head at 1 mm with alignment; a frame at 2 mm from .nii.gz."""


def prepare_scans(
    source: str,
    output: str,
    *,
    encoder: str,
    options: Sequence[str],
    processes: int,
    filters: Mapping[str, Sequence[str] | None],
    parts: tuple[int | None, int | None],
    preparation: dict[str, Any],
    verify: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Prepare and say what became of it; 1 if some scans failed, the scan's own code if there was one only."""
    from neuroflamingo.encoder_input import Preparation
    from neuroflamingo.store_making import prepare_into_store
    from neuroflamingo_encoders.registry import encoder_card

    part = _part(*parts)
    wanted = {
        entity: tuple(w for v in values or () for w in v.replace(",", " ").split())
        for entity, values in filters.items()
    }
    card = encoder_card(encoder, **card_options(options))
    how = Preparation.of(card.scan, **preparation)
    workers = processes or os.cpu_count() or 1
    if dry_run:
        plan = estimate(source, output, card, wanted, part, workers, how.series)
        print(json.dumps(plan, indent=2) if as_json else _plan_in_words(plan))
        return 0
    with Progress(quiet=quiet) as progress:
        progress(f"preparing for {card.name}")
        done = prepare_into_store(
            source,
            output,
            card,
            how,
            filters=wanted,
            processes=workers,
            part=part,
            verify=verify,
            progress=progress.count,
        )
    for failure in done.failures[:SHOWN]:
        say_error(str(failure["error"]))
    if len(done.failures) > SHOWN:
        say_error(f"and {len(done.failures) - SHOWN} more: see {Path(output) / 'log.jsonl'}")
    if as_json:
        print(json.dumps(asdict(done), indent=2))
    else:
        again = f", {done.dropped} damaged ones dropped" if done.dropped else ""
        counts = f"{done.done} prepared, {done.present} were there, {done.failed} failed{again}"
        print(f"{output}: {counts}; {done.seconds:.1f} s")
    if not done.failed:
        return 0
    return int(done.failures[0]["exit_code"]) if done.scans == 1 else SOME_FAILED


def _part(number: int | None, count: int | None) -> tuple[int, int] | None:
    if number is None and count is None:
        return None
    if number is None or count is None:
        raise UsageError("--num-parts and --part-id go together", expected="both or neither")
    return number, count


def estimate(
    source: str,
    output: str,
    card: Any,
    filters: Mapping[str, tuple[str, ...]],
    part: tuple[int, int] | None,
    workers: int,
    series: int | None = None,
) -> dict[str, Any]:
    """The plan of a run, with rough figures from the headers; nothing is written."""
    from neuroflamingo.store_making import share_of
    from neuroflamingo_preprocessing.inputs import find_inputs

    inputs = share_of(find_inputs(source, card.scan, filters), part)
    wanted: Literal["T1w", "bold"] = "bold" if card.scan.modality in ("volume4d", "parcels") else "T1w"
    looked = [_look(one.path, wanted, one.series or series) for one in inputs]
    known = [one for one in looked if one is not None]
    shape = [axis.size or 0 for axis in card.scan.axes]
    window = next((axis.size for axis in card.scan.axes if axis.name == "time"), None)
    item = 4 * math.prod(shape)
    out = sum(item * max(1, frames // window if window else 1) for _, frames in known)
    largest = max(
        (4 * voxels * min(frames, 64) + (4 * math.prod(shape) * frames // (window or 1)) for voxels, frames in known),
        default=0,
    )
    seconds = sum(SECONDS_PER_VOLUME if frames == 1 else SECONDS_PER_FRAME * frames for _, frames in known)
    return {
        "encoder": card.name,
        "input": card.scan.describe(),
        "scans": len(inputs),
        "unreadable": len(looked) - len(known),
        "output": output,
        "workers": workers,
        "memory_per_worker_mb": round((BASE_BYTES + 2 * largest) / 2**20),
        "store_mb_before_compression": round(out / 2**20, 1),
        "minutes": round(seconds / workers / 60, 1),
        "first": [one.name for one in inputs[:SHOWN]],
    }


def _look(path: Path, wanted: Literal["T1w", "bold"], series: int | None) -> tuple[int, int] | None:
    """Voxels of a volume and how many volumes, from the header; None if that cannot be read, (0, 1) for arrays."""
    from neuroflamingo_preprocessing.dicom_files import is_dicom_input
    from neuroflamingo_preprocessing.runs import look

    if is_dicom_input(path):
        return _look_at_dicom(path, wanted, series)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return 0, 1
    try:
        sizes = look(path)
    except NeuroFlamingoError:
        return None
    return math.prod(sizes[:3]), math.prod(sizes[3:])


def _look_at_dicom(path: Path, wanted: Literal["T1w", "bold"], series: int | None) -> tuple[int, int] | None:
    from neuroflamingo_preprocessing.dicom import list_series
    from neuroflamingo_preprocessing.dicom_choice import choose_series

    try:
        chosen, _ = choose_series(list_series(path), wanted, series)
    except NeuroFlamingoError as error:
        if error.exit_code == 69:
            raise
        return None
    return chosen.rows * chosen.columns * chosen.slices, chosen.volumes


def _plan_in_words(plan: Mapping[str, Any]) -> str:
    files = ", ".join(plan["first"]) + (", ..." if plan["scans"] > len(plan["first"]) else "")
    lines = [
        f"{plan['scans']} scans for {plan['encoder']}: {plan['input']}",
        f"  files    {files}",
        f"  into     {plan['output']}, at most {plan['store_mb_before_compression']} MB before compression",
        f"  memory   about {plan['memory_per_worker_mb']} MB for each of {plan['workers']} workers",
        f"  time     about {plan['minutes']} minutes, from the headers; scans that are there already take none",
    ]
    if plan["unreadable"]:
        lines.append(f"  headers  {plan['unreadable']} cannot be read: check-scan says why")
    return "\n".join(lines)
