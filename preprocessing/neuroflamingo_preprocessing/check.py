"""`check_scan`: identify a scan file, show its preparation for an encoder, its problems, and whether it is usable."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.files import printable
from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input, refuse_series, shown_name
from neuroflamingo_preprocessing.formats.dicom.read_dicom import open_dicom
from neuroflamingo_preprocessing.formats.nifti.xform import checked_xform, refuse_xform
from neuroflamingo_preprocessing.functional.denoised_run import denoise_run
from neuroflamingo_preprocessing.functional.parcel_series import target_seconds
from neuroflamingo_preprocessing.functional.prepare_run import TO_GRID
from neuroflamingo_preprocessing.functional.run_quality import assess_run
from neuroflamingo_preprocessing.measured_series import open_run, plan_for
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.read import is_run, read_scan
from neuroflamingo_preprocessing.structural.prepare_volume import GEOMETRIC_STEPS
from neuroflamingo_preprocessing.user_files import check_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from neuroflamingo_preprocessing.formats.nifti.run import Run
    from neuroflamingo_preprocessing.functional.denoising import Denoising
    from neuroflamingo_preprocessing.geometry import Affine, GeometryStep
    from neuroflamingo_preprocessing.scan import Provenance, Scan
    from neuroflamingo_preprocessing.spec import InputCard, Step

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
"""Names of the measures of `RunQuality` in the output."""


@dataclass
class ScanCheck:
    """Result of checking a scan file.

    Attributes:
        file: file name without its folder; for DICOM the series number, since names may contain the patient's.
        series: the series of a DICOM input, with their properties.
        kind: `volume` or `run`; None if the header could not be read.
        sha256, header: hash of the file, and the header fields that were used.
        stored: the stored axes in words.
        voxel_mm: voxel size along the stored axes.
        encoder: name of the encoder; None if none was given.
        steps: preparation steps, in order.
        quality: quality measures of the preparation or of the run.
        contrast: kind of image that the tissues of a volume show, such as `T1w`; None if not examined.
        warnings: problems that do not make the scan unusable.
        cleaning: denoising of a run, see `DenoisingPlan.record`.
        fault: why the scan is unusable; None if it is usable.
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
    contrast: str | None = None
    warnings: list[str] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)
    cleaning: dict[str, Any] = field(default_factory=dict)
    fault: NeuroFlamingoError | None = None

    @property
    def usable(self) -> bool:
        """Whether the scan can be used for the encoder."""
        return self.fault is None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {key: value for key, value in vars(self).items() if key != "fault"}
        fault = self.fault
        said = None if fault is None else {"what": fault.what, "expected": fault.expected, "seen": fault.seen}
        return plain | {"usable": self.usable, "fault": said if fault is None else said | {"try": fault.hint}}  # type: ignore[operator]


def check_scan(
    path: str | Path,
    card: InputCard | None = None,
    repetition_time: float | None = None,
    series: int | None = None,
    denoising: Denoising | None = None,
    *,
    xform: str = "auto",
    volume_card: InputCard | None = None,
) -> ScanCheck:
    """Read a scan and prepare it for an encoder, as a trial; nothing is written.

    Args:
        path: a NIfTI or MGH file, a zarr folder, or a DICOM folder, zip archive or file.
        card: card of the encoder; None: `volume_card` for a volume, none for a run.
        repetition_time: seconds between frames of a run, if the file does not state it.
        series: number of a DICOM series; None: the T1-weighted volume, otherwise the run.
        denoising: denoising of a run: frames to drop, confounds, filters.
        xform: `auto`, `sform` or `qform`: the affine of a NIfTI header to use.
        volume_card: card of the encoder for volumes if `card` is None; None: volumes are only read.

    Raises:
        UsageError: unknown `xform`, or a confound strategy without a table.
        NotFoundError: no such file.
        ModelError: the encoder takes no files.
    """
    check_input(path)
    path, wanted = Path(path), checked_xform(xform)
    if denoising:
        denoising.check_table()
    result = ScanCheck(printable(shown_name(path)))
    options = Preparation(repetition_time=repetition_time, series=series, xform=wanted, denoising=denoising)
    try:
        if is_dicom_input(path):
            refuse_xform(shown_name(path), wanted, "DICOM")
            kind = _list_series(path, card, series, result)
        else:
            refuse_series(path, series)
            kind = "run" if is_run(path) else "volume"
        result.kind = kind
        if kind == "run":
            _check_run(open_run(path, options), card, options, result)
        else:
            _check_volume(read_scan(path, series, xform=wanted), path, card or volume_card, options, result)
    except NeuroFlamingoError as fault:
        if fault.exit_code in (66, 69):
            raise
        result.warnings += [note for note in fault.noted if note not in result.warnings]
        fault.noted, result.fault = (), fault
    return result


def _list_series(path: Path, card: InputCard | None, series: int | None, result: ScanCheck) -> str:
    """List the series of a DICOM input, and return the kind that would be used."""
    with open_dicom(path) as examination:
        result.series = [one.as_dict() for one in examination.series]
        if card is None:
            return examination.kind(series)
        return "run" if card.scan.takes_runs else "volume"


def _tell(provenance: Provenance, affine: Affine, result: ScanCheck) -> None:
    result.file = printable(provenance.file or result.file)
    result.voxel_mm = [round(float(mm), 3) for mm in np.linalg.norm(affine[:3, :3], axis=0)]
    result.sha256, result.header = provenance.sha256, dict(provenance.header)
    codes = provenance.header.get("orientation", "")
    result.stored = f"{codes}: " + ", ".join(WAYS[code] for code in codes) if codes else None
    result.warnings += provenance.warnings


_FIGURES = {
    "coverage": "coverage",
    "overlap": "overlap with the template's brain",
    "correlation": "correlation with the template",
    "brain_ml": "brain in ml",
    "snr": "SNR of white matter",
    "smoothness": "smoothness",
    "ghosts": "ghosts",
    "spikes": "spikes",
}


def _check_volume(scan: Scan, path: Path, card: InputCard | None, options: Preparation, result: ScanCheck) -> None:
    result.encoder = card.name if card else None
    _tell(scan.provenance, scan.affine, result)
    if card is None:
        return
    prepared = prepare(path if len(card.scan.channels) > 1 else scan, card.scan, options)
    intensities = [_named(step) for step in card.scan.steps if step.name not in GEOMETRIC_STEPS]
    result.steps = [*_words(prepared.geometry), *intensities]
    quality = prepared.windows[0].metadata.get("quality", {})
    result.quality = {words: quality[key] for key, words in _FIGURES.items() if quality.get(key) is not None}
    if quality.get("contrast"):
        result.contrast = quality["contrast"]["kind"]
    result.warnings = list(prepared.warnings)


def _check_run(run: Run, card: InputCard | None, options: Preparation, result: ScanCheck) -> None:
    _tell(run.provenance, run.affine, result)
    plan = plan_for(run, run, options)
    result.warnings += plan.warnings
    result.cleaning, result.steps = plan.record, plan.words()
    if card is not None:
        result.encoder = card.name
        result.warnings += plan.against(card.scan)
        if card.scan.parcellation is None:
            _check_prepared_run(run, card, options, result)
            return
        result.steps += [_named(step) for step in card.scan.steps]
        target_seconds(run.repetition_time, card.scan, run.name, result.warnings)
    quality, odd = assess_run(denoise_run(run, plan))
    result.quality = _figures(quality.as_dict())
    result.warnings += odd


def _check_prepared_run(run: Run, card: InputCard, options: Preparation, result: ScanCheck) -> None:
    prepared = prepare(run, card.scan, options)
    placed = _words(prepared.geometry)
    result.steps += [words for s in card.scan.steps for words in (placed if s.name == TO_GRID else [_named(s)])]
    result.quality = _figures(prepared.windows[0].metadata["quality"]) | {"windows": len(prepared.windows)}
    result.warnings = list(prepared.warnings)


def _figures(quality: Mapping[str, float]) -> dict[str, float]:
    return {FIGURES[key]: value for key, value in quality.items()}


def _words(log: Iterable[GeometryStep]) -> list[str]:
    return [f"{step.name}: {step.reason}; interpolation {step.interpolation}" for step in log]


def _named(step: Step) -> str:
    constants = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in step.constants)
    return step.name.replace("_", " ") + (f" ({constants})" if constants else "")


def as_lines(result: ScanCheck) -> list[str]:
    """Format a result as lines of text."""
    rows: list[tuple[str, str]] = []
    rows += [("" if i else "series", _words_of(one, result)) for i, one in enumerate(result.series)]
    if result.kind:
        facts = result.header
        rows.append(
            ("what", ", ".join([f"a {result.kind}", *(facts[k] for k in ("shape", "stored type") if k in facts)]))
        )
    rows += [("stored", result.stored)] if result.stored else []
    rows += [(key, result.header[key]) for key in ("units", "repetition time") if key in result.header]
    if "affine from" in result.header:
        rows.append(("place", f"from the {result.header['affine from']}{_codes(result.header)}"))
    rows += [("for", result.encoder)] if result.encoder else []
    rows += [("" if i else "would be done", f"{i + 1}. {step}") for i, step in enumerate(result.steps)]
    quality = [f"{name} {value:.4g}" for name, value in result.quality.items()]
    rows += [("by its tissues", result.contrast)] if result.contrast else []
    rows += [("quality", ", ".join(quality))] if quality else []
    rows += [("" if i else "odd", warning) for i, warning in enumerate(result.warnings)]
    rows.append(("result", "can be used" if result.usable else "cannot be used"))
    lines = [result.file, *(f"  {head:<17}{words}" for head, words in rows)]
    return lines if result.usable else [*lines, *(f"  {line}" for line in str(result.fault).splitlines())]


def _words_of(series: dict[str, Any], result: ScanCheck) -> str:
    return series["words"] + (" (this one)" if result.header.get("series") == str(series["number"]) else "")


def _codes(header: dict[str, str]) -> str:
    said = ", ".join(f"{kind} {header[kind]}" for kind in ("sform", "qform") if kind in header)
    return f"; {said}" if said else ""
