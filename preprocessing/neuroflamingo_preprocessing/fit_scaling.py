"""`fit_scaling`: the robust scaling of a training set, for encoders of parcels that divide by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError
from neuroflamingo_preprocessing.files import check_writable, printable
from neuroflamingo_preprocessing.functional.parcel_series import RobustScaling, at_repetition_time, check_series_spec
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.preparation import measured_series

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.spec import InputCard


@dataclass(frozen=True)
class FittedScaling:
    """What `fit_scaling` wrote.

    Attributes:
        path: the file, for `--scaling`.
        runs, frames, parcels: how many it comes from.
        failures: runs that are not in it, with their errors.
    """

    path: Path
    runs: int
    frames: int
    parcels: int
    failures: tuple[tuple[str, NeuroFlamingoError], ...]


def fit_scaling(
    source: str | Path,
    output: str | Path,
    card: InputCard,
    how: Preparation,
    *,
    filters: Mapping[str, tuple[str, ...]] | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> FittedScaling:
    """Fit centre and spread of each parcel over all runs of an input, and write them.

    Runs go the way that `prepare` takes them, up to the normalisation: parcel means, cleaning, repetition time.

    Args:
        source: runs, or parcel series with `how.raw`: a file, a folder, a BIDS dataset or a manifest.
        output: a JSON file.
        card: of an encoder of parcels that scales robustly.
        how: see `Preparation`; with the atlas.
        filters: see `find_inputs`.
        overwrite: replace an existing file.
        progress: called with (part, done, all).

    Raises:
        UsageError: the encoder has no use for a scaling.
        NeuroFlamingoError: no run could be read (the first one's error), or the file cannot be written (73).
    """
    step = check_series_spec(card.scan) if card.scan.modality == "parcels" else None
    if step is None or not step.name.startswith("robust"):
        raise UsageError(
            f"'{card.name}' does not scale by a training set",
            expected="an encoder of parcels whose card names robust_fixed or robust_as_published",
            seen=card.scan.describe() + (f", {step.name}" if step else ""),
            hint="leave --scaling out for it",
        )
    check_writable(output, overwrite=overwrite)  # before hours of reading, not after
    inputs = find_inputs(source, card.scan, filters)
    how.check_tables([one.confounds for one in inputs], card.scan)
    parts, failures = [], []
    for number, one in enumerate(inputs, start=1):
        at = how.at(one.repetition_time, one.series, one.confounds)
        try:
            got = measured_series(one.path, card.scan, at)
            parts.append(at_repetition_time(got.series, got.seconds, card.scan, got.name, got.times)[0])
        except NeuroFlamingoError as error:
            failures.append((printable(one.name), error))
        if progress:
            progress("runs", number, len(inputs))
    if not parts:
        raise failures[0][1]
    scaling = RobustScaling.fit(parts)
    scaling.save(output, overwrite=overwrite)
    return FittedScaling(Path(output), scaling.runs, scaling.frames, len(scaling.median), tuple(failures))
