"""`check_scan`: what a file is, what would be done to it for an encoder, what is odd, and whether it can be used."""

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
        contrast: what kind of image a volume is by its tissues, such as `T1w`; None where that was not looked at.
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
    check_input(path)
    path, wanted = Path(path), checked_xform(xform)
    if cleaning:
        cleaning.check_table()
    found = ScanCheck(printable(shown_name(path)))
    options = Preparation(repetition_time=repetition_time, series=series, xform=wanted, cleaning=cleaning)
    try:
        if is_dicom_input(path):
            refuse_xform(shown_name(path), wanted, "DICOM")
            kind = _list_series(path, card, series, found)
        else:
            refuse_series(path, series)
            kind = "run" if is_run(path) else "volume"
        found.kind = kind
        if kind == "run":
            _check_run(open_run(path, options), card, options, found)
        else:
            _check_volume(read_scan(path, series, xform=wanted), path, card or volume_card, options, found)
    except NeuroFlamingoError as fault:
        if fault.exit_code in (66, 69):
            raise
        found.warnings += [note for note in fault.noted if note not in found.warnings]
        fault.noted, found.fault = (), fault
    return found


def _list_series(path: Path, card: InputCard | None, series: int | None, found: ScanCheck) -> str:
    """The series of a DICOM input, and what would be taken of it."""
    with open_dicom(path) as examination:
        found.series = [one.as_dict() for one in examination.series]
        if card is None:
            return examination.kind(series)
        return "run" if card.scan.takes_runs else "volume"


def _tell(provenance: Provenance, affine: Affine, found: ScanCheck) -> None:
    found.file = printable(provenance.file or found.file)
    found.voxel_mm = [round(float(mm), 3) for mm in np.linalg.norm(affine[:3, :3], axis=0)]
    found.sha256, found.header = provenance.sha256, dict(provenance.header)
    codes = provenance.header.get("orientation", "")
    found.stored = f"{codes}: " + ", ".join(WAYS[code] for code in codes) if codes else None
    found.warnings += provenance.warnings


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


def _check_volume(scan: Scan, path: Path, card: InputCard | None, options: Preparation, found: ScanCheck) -> None:
    found.encoder = card.name if card else None
    _tell(scan.provenance, scan.affine, found)
    if card is None:
        return
    prepared = prepare(path if len(card.scan.channels) > 1 else scan, card.scan, options)
    intensities = [_named(step) for step in card.scan.steps if step.name not in GEOMETRIC_STEPS]
    found.steps = [*_words(prepared.geometry), *intensities]
    quality = prepared.windows[0].about.get("quality", {})
    found.quality = {words: quality[key] for key, words in _FIGURES.items() if quality.get(key) is not None}
    if quality.get("contrast"):
        found.contrast = quality["contrast"]["kind"]
    found.warnings = list(prepared.warnings)


def _check_run(run: Run, card: InputCard | None, options: Preparation, found: ScanCheck) -> None:
    _tell(run.provenance, run.affine, found)
    plan = plan_for(run, run, options)
    found.warnings += plan.warnings
    found.cleaning, found.steps = plan.about, plan.words()
    if card is not None:
        found.encoder = card.name
        found.warnings += plan.against(card.scan)
        if card.scan.parcellation is None:
            _check_prepared_run(run, card, options, found)
            return
        found.steps += [_named(step) for step in card.scan.steps]
        target_seconds(run.repetition_time, card.scan, run.name, found.warnings)
    quality, odd = assess_run(denoise_run(run, plan))
    found.quality = _figures(quality.as_dict())
    found.warnings += odd


def _check_prepared_run(run: Run, card: InputCard, options: Preparation, found: ScanCheck) -> None:
    prepared = prepare(run, card.scan, options)
    placed = _words(prepared.geometry)
    found.steps += [words for s in card.scan.steps for words in (placed if s.name == TO_GRID else [_named(s)])]
    found.quality = _figures(prepared.windows[0].about["quality"]) | {"windows": len(prepared.windows)}
    found.warnings = list(prepared.warnings)


def _figures(quality: Mapping[str, float]) -> dict[str, float]:
    return {FIGURES[key]: value for key, value in quality.items()}


def _words(log: Iterable[GeometryStep]) -> list[str]:
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
    rows += [("by its tissues", found.contrast)] if found.contrast else []
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
