"""`check_scan`: what a file is, what would be done to it for an encoder, what is odd, and whether it can be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import NeuroFlamingoError, ScanError
from neuroflamingo_preprocessing.files import printable
from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input, refuse_series, shown_name
from neuroflamingo_preprocessing.formats.dicom.read_dicom import open_dicom
from neuroflamingo_preprocessing.formats.nifti.xform import Xform, checked_xform, refuse_xform
from neuroflamingo_preprocessing.functional.denoised_run import denoise_run
from neuroflamingo_preprocessing.functional.denoising import Denoising
from neuroflamingo_preprocessing.functional.denoising_plan import plan_denoising
from neuroflamingo_preprocessing.functional.parcel_series import target_seconds
from neuroflamingo_preprocessing.functional.prepare_run import TO_GRID, prepare_run
from neuroflamingo_preprocessing.functional.run_quality import assess_run
from neuroflamingo_preprocessing.read import is_run, read_run, read_scan
from neuroflamingo_preprocessing.spec import InputCard, Step
from neuroflamingo_preprocessing.structural.prepare_volume import GEOMETRIC_STEPS, prepare

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.formats.nifti.run import Run
    from neuroflamingo_preprocessing.functional.run_quality import RunQuality
    from neuroflamingo_preprocessing.geometry import Affine, GeometryStep
    from neuroflamingo_preprocessing.scan import Provenance, Scan

Cards = tuple[InputCard | None, InputCard | None]
WAYS = {"R": "left to right", "L": "right to left", "A": "back to front", "P": "front to back", "S": "up", "I": "down"}
FIGURES = {
    "coverage": "coverage",
    "tsnr": "tSNR",
    "dvars": "DVARS %",
    "spikes": "spikes",
    "empty": "empty frames",
    "repeated": "repeated frames",
    "fd_mean": "mean FD mm",
    "fd_max": "largest FD mm",
    "fd_moved": "frames above 0.5 mm",
}
"""Of `RunQuality`, in words."""


@dataclass
class ScanCheck:
    """What there is to say about a scan file.

    Attributes:
        file: its name without the folder; of DICOM, often called after the patient, the number of the series.
        series: those of a DICOM input, with what is known of each.
        kind: `volume` or `run`; None where the header could not be read.
        sha256, header: of the file, and the facts that are used of its header.
        stored: the axes in words.
        voxel_mm: sizes of a voxel along the stored axes.
        encoder: which one it was checked for; None for a run without one.
        steps: what would be done, in order.
        quality: figures of the preparation or of the run.
        warnings: what is odd but usable.
        cleaning: what would be done to a run's frames, see `DenoisingPlan.about`.
        fault: why it cannot be used; None if it can.
    """

    file: str
    kind: str | None = None
    sha256: str | None = None
    header: dict[str, str] = field(default_factory=dict)
    stored: str | None = None
    voxel_mm: list[float] = field(default_factory=list)
    encoder: str | None = None
    steps: list[str] = field(default_factory=list)
    quality: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)
    cleaning: dict[str, Any] = field(default_factory=dict)
    fault: NeuroFlamingoError | None = None

    @property
    def usable(self) -> bool:
        """Whether the scan can be used for the encoder."""
        return self.fault is None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = {key: value for key, value in vars(self).items() if key != "fault"}
        fault = self.fault
        said = None if fault is None else {"what": fault.what, "expected": fault.expected, "seen": fault.seen}
        return plain | {"usable": self.usable, "fault": said if fault is None else said | {"try": fault.hint}}  # type: ignore[operator]


def check_scan(
    path: str | Path,
    card: InputCard | None = None,
    repetition_time: float | None = None,
    series: int | None = None,
    cleaning: Denoising | None = None,
    *,
    xform: str = "auto",
    volume_card: InputCard | None = None,
) -> ScanCheck:
    """Read a scan and prepare it for an encoder, to see what would happen; nothing is written.

    Args:
        path: a NIfTI or MGH file, a zarr folder, or a DICOM folder, zip archive or file.
        card: of the encoder; None: `volume_card` for a volume, none for a run.
        repetition_time: of a run, where the file does not say it.
        series: of a DICOM input; None: the T1-weighted volume, else the run.
        cleaning: of a run: frames to leave out, confounds and frequencies to take out.
        xform: `auto`, `sform` or `qform`: which affine of a NIfTI header is used.
        volume_card: of the encoder that volumes are checked for where no `card` is given; None: only the file is read.

    Raises:
        UsageError: no such `xform`, or a strategy for confounds and none given.
        NotFoundError: no such file.
        ModelError: an encoder that takes no files.
    """
    path, wanted = Path(path), checked_xform(xform)
    if cleaning:
        cleaning.check_table()
    found = ScanCheck(printable(shown_name(path)))
    try:
        if is_dicom_input(path):
            refuse_xform(shown_name(path), wanted, "DICOM")
            _check_dicom(path, (card, volume_card), (repetition_time, series, cleaning), found)
        else:
            refuse_series(path, series)
            _check_file(path, (card, volume_card), (repetition_time, wanted, cleaning), found)
    except NeuroFlamingoError as fault:
        if fault.exit_code in (66, 69):
            raise
        found.fault = fault
    return found


def _check_file(path: Path, cards: Cards, how: tuple[float | None, Xform, Denoising | None], found: ScanCheck) -> None:
    card, volume_card = cards
    repetition_time, xform, cleaning = how
    if is_run(path):
        found.kind = "run"
        _check_run(read_run(path, repetition_time, xform=xform), card, cleaning, found)
    else:
        found.kind = "volume"
        _check_volume(lambda file: read_scan(file, xform=xform), path, card or volume_card, found)


def _check_dicom(
    path: Path, cards: Cards, how: tuple[float | None, int | None, Denoising | None], found: ScanCheck
) -> None:
    card, volume_card = cards
    repetition_time, series, cleaning = how
    with open_dicom(path) as examination:
        found.series = [one.as_dict() for one in examination.series]
        runs = card is not None and card.scan.modality in ("volume4d", "parcels")
        found.kind = "run" if runs else "volume" if card is not None else examination.kind(series)
        if found.kind == "run":
            _check_run(examination.run(series, repetition_time), card, cleaning, found)
        else:
            _check_volume(examination.scan, series, card or volume_card, found)


def _tell(provenance: Provenance, affine: Affine, found: ScanCheck) -> None:
    found.file = printable(provenance.file or found.file)
    found.voxel_mm = [round(float(mm), 3) for mm in np.linalg.norm(affine[:3, :3], axis=0)]
    found.sha256, found.header = provenance.sha256, dict(provenance.header)
    codes = provenance.header.get("orientation", "")
    found.stored = f"{codes}: " + ", ".join(WAYS[code] for code in codes) if codes else None
    found.warnings += provenance.warnings


def _check_volume(read: Callable[[Any], Scan], what: Any, card: InputCard | None, found: ScanCheck) -> None:
    found.encoder = card.name if card else None
    scan = read(what)
    _tell(scan.provenance, scan.affine, found)
    if card is None:
        return
    prepared = prepare(scan, card.scan)
    intensities = [_named(step) for step in card.scan.steps if step.name not in GEOMETRIC_STEPS]
    found.steps = [*_words(prepared.geometry), *intensities]
    quality = prepared.quality
    figures = {
        "coverage": quality.coverage,
        "correlation with the template": quality.correlation,
        "SNR of white matter": quality.snr,
    }
    found.quality = {name: value for name, value in figures.items() if value is not None}
    found.warnings = list(prepared.warnings)


def _check_run(run: Run, card: InputCard | None, cleaning: Denoising | None, found: ScanCheck) -> None:
    _tell(run.provenance, run.affine, found)
    plan = plan_denoising(cleaning or Denoising(), run.path, run.name, run.frames, run.repetition_time)
    run = denoise_run(run, plan)
    found.warnings += plan.warnings
    found.cleaning, found.steps = plan.about, plan.words()
    if card is not None:
        found.encoder = card.name
        found.warnings += plan.against(card.scan)
    if card is not None and card.scan.modality == "volume4d":
        prepared = prepare_run(run, card.scan)
        placed = _words(prepared.geometry)
        found.steps += [words for s in card.scan.steps for words in (placed if s.name == TO_GRID else [_named(s)])]
        found.quality = _figures(prepared.quality) | {"windows": len(prepared)}
        found.warnings = [*prepared.warnings, *plan.against(card.scan)]
        return
    if card is not None:
        _refuse_unfit(run, card, found)
    quality, said = assess_run(run)
    found.quality = _figures(quality)
    found.warnings += said


def _refuse_unfit(run: Run, card: InputCard, found: ScanCheck) -> None:
    """What can be said of a run for an encoder of parcels without an atlas; other encoders take no runs."""
    if card.scan.modality != "parcels":
        raise ScanError(
            f"{run.name} is a run", expected=f"for '{card.name}': {card.scan.describe()}", seen="a 4D time series"
        )
    found.steps += [_named(step) for step in card.scan.steps]
    target_seconds(run.repetition_time, card.scan, run.name, found.warnings)


def _figures(quality: RunQuality) -> dict[str, float]:
    return {FIGURES[key]: value for key, value in quality.as_dict().items()}


def _words(log: list[GeometryStep]) -> list[str]:
    return [f"{step.name}: {step.reason}; interpolation {step.interpolation}" for step in log]


def _named(step: Step) -> str:
    constants = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in step.constants)
    return step.name.replace("_", " ") + (f" ({constants})" if constants else "")


def as_lines(found: ScanCheck) -> list[str]:
    """For people."""
    rows: list[tuple[str, str]] = []
    rows += [("" if i else "series", _words_of(one, found)) for i, one in enumerate(found.series)]
    if found.kind:
        facts = found.header
        rows.append(
            ("what", ", ".join([f"a {found.kind}", *(facts[k] for k in ("shape", "stored type") if k in facts)]))
        )
    rows += [("stored", found.stored)] if found.stored else []
    rows += [(key, found.header[key]) for key in ("units", "repetition time") if key in found.header]
    if "affine from" in found.header:
        rows.append(("place", f"from the {found.header['affine from']}{_codes(found.header)}"))
    rows += [("for", found.encoder)] if found.encoder else []
    rows += [("" if i else "would be done", f"{i + 1}. {step}") for i, step in enumerate(found.steps)]
    quality = [f"{name} {value:.3g}" for name, value in found.quality.items()]
    rows += [("quality", ", ".join(quality))] if quality else []
    rows += [("" if i else "odd", warning) for i, warning in enumerate(found.warnings)]
    rows.append(("result", "can be used" if found.usable else "cannot be used"))
    lines = [found.file, *(f"  {head:<17}{words}" for head, words in rows)]
    return lines if found.usable else [*lines, *(f"  {line}" for line in str(found.fault).splitlines())]


def _words_of(series: dict[str, Any], found: ScanCheck) -> str:
    return series["words"] + (" (this one)" if found.header.get("series") == str(series["number"]) else "")


def _codes(header: dict[str, str]) -> str:
    said = ", ".join(f"{kind} {header[kind]}" for kind in ("sform", "qform") if kind in header)
    return f"; {said}" if said else ""
