"""Estimates for `--dry-run`: memory, time and disk space of a store, from the headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError

if TYPE_CHECKING:
    from neuroflamingo.cli.store_options import StoreRequest
    from neuroflamingo_preprocessing.preparation_options import Preparation

SHOWN = 10
BLOCK_BYTES, CHUNK_BYTES = 2**26, 2**24
"""Sizes of a block of frames prepared at once, and of a chunk of float64 signals denoised at once (`denoised_run`)."""


class Cost(NamedTuple):
    """Cost of a worker on one 2.8 GHz core: memory before any scan, start-up time, seconds per volume or frame."""

    megabytes: int
    start: float
    each: float


COSTS = {"volume3d": Cost(800, 7.0, 1.5), "volume4d": Cost(480, 7.0, 0.09), "parcels": Cost(200, 2.0, 0.01)}
"""Measured: heads at 1 mm and of twice the voxels (830 and 863 MB, 8.7 s; three more heads 4.7 s); runs of 100 and 400
frames at 2 mm to frames (1,285 and 3,324 MB, 17 and 44 s) and to 424 parcels (308 MB, 2.8 and 5.3 s)."""


class DenoisingCost(NamedTuple):
    """Cost of denoising signals: seconds per value, and the number of copies of the float64 signals held meanwhile."""

    seconds: float
    copies: int


REGRESSION, FILTERING = DenoisingCost(65e-9, 6), DenoisingCost(145e-9, 11)
"""Measured on a core of 2.8 GHz with nilearn 0.14.1: all blocks of `denoise_run` read once, of noise in 40^3 voxels and
100 or 400 frames, and in 64^3 voxels and 100 frames; processor time (without denoising 2 ns per value), and peak memory
above the run as float32. Detrending takes 57 to 61 ns per value, 30 regressors 56 to 64 (both 83 MB), a band-pass
filter 111 to 144 (up to 157 MB), all together 138 to 148 (up to 163 MB). Voxels that are always 0 take no time but are
counted.
"""


class ExtraCost(NamedTuple):
    """Bytes and seconds on top of what a scan takes without denoising."""

    bytes: int
    seconds: float


def estimate(
    source: str, output: str, card: Any, request: StoreRequest, preparation: Preparation, *, tokens: str | None = None
) -> dict[str, Any]:
    """Plan of a run with rough estimates from the headers; nothing is written.

    Args:
        source: a scan, a folder, a BIDS dataset or a manifest.
        output: the store folder.
        card: the encoder's card.
        request: the store options.
        preparation: the preparation options.
        tokens: dtype of the tokens, if the scans are to be encoded too.

    Raises:
        NeuroFlamingoError: see `find_inputs` and `Preparation.check_tables`.
    """
    from neuroflamingo_preprocessing.inputs import find_inputs
    from neuroflamingo_preprocessing.stores.build import StoreOptions

    if (Path(source) / "store.json").is_file():
        raise UsageError(
            "--dry-run works on scans, not on a store",
            hint="run without --dry-run; interrupt it any time",
        )
    notes: list[str] = []
    found = find_inputs(source, card.scan, request.labels, filter_file=request.bids_filter_file, notes=notes)
    inputs = StoreOptions(part=request.part).share(found)
    preparation.check_tables([one.confounds for one in inputs], card.scan)
    wanted: Literal["T1w", "bold"] = "bold" if card.scan.takes_runs else "T1w"
    hows = [preparation.at(one.repetition_time, one.series, one.confounds) for one in inputs]
    looked = [_look(one.path, wanted, at.series) for one, at in zip(inputs, hows, strict=True)]
    known = [one for one in looked if one is not None]
    added = [_denoising_cost(*one, at, card.scan) for one, at in zip(looked, hows, strict=True) if one is not None]
    cost = COSTS.get(card.scan.modality, COSTS["volume3d"])
    seconds = sum(cost.each * frames for _, frames in known) + sum(more.seconds for more in added)
    sizes_held = [_held(*one, card.scan) + more.bytes for one, more in zip(known, added, strict=True)]
    out = sum(_stored(frames, card.scan) for _, frames in known)
    if tokens is not None:
        sizes = {axis.name: axis.size for axis in card.scan.axes if axis.size is not None}
        windows = sum(max(1, frames // sizes.get("time", frames)) for _, frames in known)
        count = card.output.token_count(sizes) if len(sizes) == len(card.scan.axes) else 0
        out = windows * count * card.output.width * (2 if tokens == "float16" else 4)
        seconds += windows * (card.cost.cpu_seconds or 0.0)
    return {
        "encoder": card.name,
        "input": card.scan.describe(),
        "scans": len(inputs),
        "unreadable": len(looked) - len(known),
        "output": output,
        "workers": request.workers,
        "memory_per_worker_mb": round(cost.megabytes + max(sizes_held, default=0) / 2**20),
        "store_mb_before_compression": round(out / 2**20, 1),
        "minutes": round((cost.start * bool(known) + seconds / request.workers) / 60, 1),
        "notes": notes,
        "first": [one.name for one in inputs[:SHOWN]],
    }


def _stored(frames: int, spec: Any) -> int:
    """Bytes of one scan's float32 tensors: whole windows of a run, or all frames if the encoder takes any length."""
    item = 4 * math.prod(axis.size or 1 for axis in spec.axes)
    time = next((axis for axis in spec.axes if axis.name == "time"), None)
    return item if time is None else item * (max(1, frames // time.size) if time.size else frames)


def _held(voxels: int, frames: int, spec: Any) -> int:
    """Bytes in memory for one scan: a volume and its tensor once; for a run, a block and all windows twice."""
    if frames == 1:
        return 4 * voxels + _stored(frames, spec)
    return 2 * (min(4 * voxels * frames, BLOCK_BYTES) + _stored(frames, spec))


def _denoising_cost(voxels: int, frames: int, preparation: Preparation, spec: Any) -> ExtraCost:
    """Extra cost of removing confounds, trends or frequencies from the signals of voxels or parcels.

    A run that is denoised voxel by voxel is held in memory as a whole; see `denoise_run`.
    """
    wanted = preparation.denoising
    if not wanted or not wanted.changes_values or frames == 1:
        return ExtraCost(0, 0.0)
    cost = FILTERING if wanted.filters else REGRESSION
    if spec.modality == "parcels":
        size = next((axis.size for axis in spec.axes if axis.name == "parcel"), None)
        count = frames * (size or (len(preparation.atlas.values) if preparation.atlas else 0))
        return ExtraCost(8 * cost.copies * count, cost.seconds * count)
    count = voxels * frames
    return ExtraCost(4 * count + cost.copies * min(8 * count, CHUNK_BYTES), cost.seconds * count)


def _look(path: Path, wanted: Literal["T1w", "bold"], series: int | None) -> tuple[int, int] | None:
    """Voxels per volume and number of volumes from the header; None if it is unreadable, (0, 1) for arrays."""
    from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input
    from neuroflamingo_preprocessing.read import claimed_sizes

    if is_dicom_input(path):
        return _look_at_dicom(path, wanted, series)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return 0, 1
    try:
        sizes = claimed_sizes(path)
    except NeuroFlamingoError:
        return None
    return math.prod(sizes[:3]), math.prod(sizes[3:])


def _look_at_dicom(path: Path, wanted: Literal["T1w", "bold"], series: int | None) -> tuple[int, int] | None:
    from neuroflamingo_preprocessing.formats.dicom.read_dicom import list_series
    from neuroflamingo_preprocessing.formats.dicom.series_selection import choose_series

    try:
        chosen, _ = choose_series(list_series(path), wanted, series)
    except NeuroFlamingoError as error:
        if error.exit_code == 69:
            raise
        return None
    return chosen.rows * chosen.columns * chosen.slices, chosen.volumes


def plan_in_words(plan: Mapping[str, Any]) -> str:
    """Format a plan for the terminal."""
    files = ", ".join(plan["first"]) + (", ..." if plan["scans"] > len(plan["first"]) else "")
    lines = [
        f"{plan['scans']} scans for {plan['encoder']}: {plan['input']}",
        f"  files    {files}",
        f"  into     {plan['output']}, at most {plan['store_mb_before_compression']} MB before compression",
        f"  memory   about {plan['memory_per_worker_mb']} MB for each of {plan['workers']} workers",
        f"  time     {_time_in_words(plan['minutes'])}, estimated from the headers; scans done already take none",
    ]
    if plan["unreadable"]:
        lines.append(f"  headers  {plan['unreadable']} are missing or unreadable: check-scan says why")
    lines += [f"  note     {note}" for note in plan["notes"]]
    return "\n".join(lines)


def _time_in_words(minutes: float) -> str:
    if minutes < 1:
        return "under a minute"
    return f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.0f} hours"
