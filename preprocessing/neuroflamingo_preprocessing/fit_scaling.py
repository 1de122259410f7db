"""`fit_scaling`: fit the robust scaling of a training set, for parcel encoders that normalise by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError
from neuroflamingo_preprocessing.files import check_writable, printable
from neuroflamingo_preprocessing.functional.parcel_series import RobustScaling, at_repetition_time, check_series_spec
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.measured_series import measured_series
from neuroflamingo_preprocessing.preparation_options import Preparation

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.spec import InputCard


@dataclass(frozen=True)
class FittedScaling:
    """Result of `fit_scaling`.

    Attributes:
        path: the file, for `--scaling`.
        runs, frames, parcels: numbers of runs, frames and parcels it was fitted on.
        failures: names of runs that could not be used, with their errors.
        notes: what was chosen or left out of the input.
    """

    path: Path
    runs: int
    frames: int
    parcels: int
    failures: tuple[tuple[str, NeuroFlamingoError], ...]
    notes: tuple[str, ...] = ()


def fit_scaling(
    source: str | Path,
    output: str | Path,
    card: InputCard,
    preparation: Preparation,
    *,
    filters: Mapping[str, tuple[str, ...]] | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> FittedScaling:
    """Fit centre and spread of each parcel over all runs of an input, and write them.

    Runs are prepared as for the encoder, up to the normalisation: parcel means, denoising, repetition time.

    Args:
        source: runs, or parcel series with `preparation.raw`: a file, a folder, a BIDS dataset or a manifest.
        output: path of a JSON file.
        card: card of a parcel encoder with robust scaling.
        preparation: options, the atlas among them; see `Preparation`.
        filters: see `find_inputs`.
        overwrite: replace an existing file.
        progress: called with (stage, done, total).

    Raises:
        UsageError: the encoder does not use a scaling.
        NeuroFlamingoError: no run could be read (the error of the first one), or the file cannot be written (73).
    """
    step = check_series_spec(card.scan) if card.scan.modality == "parcels" else None
    if step is None or not step.name.startswith("robust"):
        raise UsageError(
            f"'{card.name}' does not scale by a training set",
            expected="an encoder of parcels whose card names robust_fixed or robust_as_published",
            seen=card.scan.describe() + (f", {step.name}" if step else ""),
            hint="leave out --scaling for it",
        )
    check_writable(output, overwrite=overwrite)  # before hours of reading, not after
    notes: list[str] = []
    inputs = find_inputs(source, card.scan, filters, notes=notes)
    preparation.check_tables([scan.confounds for scan in inputs], card.scan)
    parts, failures = [], []
    for number, scan in enumerate(inputs, start=1):
        at = preparation.at(scan.repetition_time, scan.series, scan.confounds)
        try:
            measured = measured_series(scan.path, card.scan, at)
            parts.append(
                at_repetition_time(measured.series, measured.seconds, card.scan, measured.name, measured.times)[0]
            )
        except NeuroFlamingoError as error:
            failures.append((printable(scan.name), error))
        if progress:
            progress("runs", number, len(inputs))
    if not parts:
        raise failures[0][1]
    scaling = RobustScaling.fit(parts)
    scaling.save(output, overwrite=overwrite)
    return FittedScaling(Path(output), scaling.runs, scaling.frames, len(scaling.median), tuple(failures), tuple(notes))
