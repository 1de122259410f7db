"""Parcel series as measured, before an encoder's normalisation: of a run and an atlas, or of a table or an array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.arrays import is_array_file, read_array, refuse_other_tables
from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.files import printable
from neuroflamingo_preprocessing.formats.dicom.archive import shown_name
from neuroflamingo_preprocessing.formats.nifti.run import Run
from neuroflamingo_preprocessing.functional.cifti import is_dense
from neuroflamingo_preprocessing.functional.cifti_dense import DenseAtlas
from neuroflamingo_preprocessing.functional.denoised_run import denoise_run
from neuroflamingo_preprocessing.functional.denoising import Denoising
from neuroflamingo_preprocessing.functional.denoising_plan import DenoisingPlan, plan_denoising
from neuroflamingo_preprocessing.functional.parcel_series import target_seconds
from neuroflamingo_preprocessing.functional.parcellation import Atlas, parcel_series
from neuroflamingo_preprocessing.functional.run_quality import FrameWatch, assess_series
from neuroflamingo_preprocessing.read import read_run
from neuroflamingo_preprocessing.scan import Provenance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.geometry import GeometryStep
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.spec import ScanSpec


@dataclass(frozen=True)
class MeasuredSeries:
    """Parcel series before an encoder's resampling in time and normalisation.

    Attributes:
        name: name of the file, for messages.
        series: float32 `[parcel, frame]`, denoised.
        seconds: repetition time; None if unknown.
        times: seconds of each frame from the first, if frames in between were dropped.
        metadata: as `PreparedWindow.metadata`, without the window.
        geometry, provenance: as those of `PreparedInput`.
    """

    name: str
    series: NDArray[np.float32]
    seconds: float | None
    times: NDArray[np.float64] | None
    metadata: Mapping[str, Any]
    geometry: tuple[GeometryStep, ...]
    provenance: Provenance


def measured_series(source: str | Path | Run, spec: ScanSpec, options: Preparation) -> MeasuredSeries:
    """Read the parcel series of a run and an atlas, or of an array, with frames and denoising as chosen.

    Raises:
        NeuroFlamingoError: the input cannot be read or does not suit the encoder, or the atlas is missing.
    """
    if not isinstance(source, Run):
        refuse_other_tables(Path(source))
        if is_array_file(source):
            return _of_array(Path(source), spec, options)
    return _of_run(source, spec, options)


def open_run(source: str | Path | Run, options: Preparation) -> Run:
    """Open the run of a file with these options; a `Run` is returned unchanged."""
    if isinstance(source, Run):
        return source
    return read_run(
        source, options.repetition_time, options.series, xform=options.xform, series_sha256=options.series_sha256
    )


def plan_for(source: str | Path | Run, run: Run, options: Preparation) -> DenoisingPlan:
    """Plan the denoising of a run; confounds are searched for beside its file."""
    path = source.path if isinstance(source, Run) else Path(source)
    return plan_denoising(options.denoising or Denoising(), path, run.name, run.frames, run.repetition_time)


def denoising_record(plan: DenoisingPlan) -> dict[str, Any]:
    """Make the record's entry about denoising; empty if nothing was done."""
    return {"cleaning": plan.record} if plan.record else {}


def describe_input(
    source: object, provenance: Provenance, geometry: Iterable[GeometryStep], warnings: Iterable[str]
) -> dict[str, Any]:
    """Describe an input as plain data: name, hashes, header, geometry log and warnings.

    Args:
        source: the path, for its size; anything else counts as in memory.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    name = printable(provenance.file) if provenance.file else input_name(path)
    record: dict[str, Any] = {"name": name, "sha256": provenance.sha256}
    if provenance.header.get("format", "").startswith("DICOM"):
        record["kind"] = "DICOM"
    else:
        record |= {"bytes": _bytes(path)} if path else {}
        record["kind"] = provenance.header.get("format", "scan").partition(",")[0]
    record |= {"header_sha256": provenance.header_sha256, "header": dict(provenance.header)}
    return {
        "name": name,
        "input": record,
        "geometry": [step.as_dict() for step in geometry],
        "warnings": list(warnings),
    }


def input_name(source: object) -> str:
    """Name an input without its folder; DICOM inputs get a neutral name, since theirs may contain the patient's."""
    return printable(shown_name(source)) if isinstance(source, str | Path) else "scan in memory"


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _of_run(source: str | Path | Run, spec: ScanSpec, options: Preparation) -> MeasuredSeries:
    if options.atlas is None or isinstance(options.atlas, DenseAtlas):
        wanted = spec.parcellation.identifier if spec.parcellation else f"of {spec.axes[0].describe()}"
        raise UsageError(
            f"this encoder takes parcel series, and {input_name(source)} needs an atlas (a label image)",
            expected=f"--atlas LABELS.nii.gz ({wanted})",
            hint="or give a parcel series: .ptseries.nii, or .tsv, .csv, .npy with --raw",
        )
    run = open_run(source, options)
    _refuse_resampling(run.repetition_time, spec, run.name, options)
    plan = plan_for(source, run, options)
    watch = FrameWatch()
    series, log, odd = parcel_series(run, options.atlas, may_resample=options.may_resample, watch=watch)
    series = plan.clean(series[:, plan.first : plan.stop])
    denoised = denoise_run(run, plan)
    quality, seen = assess_series(series, watch, denoised)
    warnings = (*denoised.provenance.warnings, *odd, *seen, *plan.against(spec))
    metadata = describe_input(source, run.provenance, log, warnings)
    metadata["repetition_time_s"] = run.repetition_time
    metadata["quality"] = quality.as_dict()
    metadata |= _atlas_record(options.atlas) | denoising_record(plan)
    return MeasuredSeries(run.name, series, run.repetition_time, plan.times, metadata, tuple(log), run.provenance)


def _of_array(path: Path, spec: ScanSpec, options: Preparation) -> MeasuredSeries:
    axes = tuple(a if a.name == "parcel" else a.model_copy(update={"size": None, "minimum": 2}) for a in spec.axes)
    anything = spec.model_copy(update={"axes": axes, "repetition_time": None})
    dense = options.atlas if isinstance(options.atlas, DenseAtlas) else None
    found, name = read_array(path, anything, options.repetition_time, rows=options.rows, atlas=dense), input_name(path)
    _refuse_resampling(found.repetition_time, spec, name, options)
    plan = plan_denoising(options.denoising or Denoising(), path, name, found.tensor.shape[1], found.repetition_time)
    kind = "parcel series" if found.kind == "array" else found.kind
    source = {"name": name, "sha256": found.sha256, "bytes": found.bytes, "kind": kind}
    warnings = [*found.warnings, *plan.warnings, *plan.against(spec)]
    metadata = {"name": name, "input": source, "geometry": [], "warnings": warnings}
    metadata |= found.record() | (_atlas_record(dense) if dense is not None and is_dense(path) else {})
    metadata["repetition_time_s"] = found.repetition_time
    series = plan.clean(found.tensor[:, plan.first : plan.stop])
    provenance = Provenance(file=name, sha256=found.sha256, header={"format": kind})
    metadata |= denoising_record(plan)
    return MeasuredSeries(name, series, found.repetition_time, plan.times, metadata, (), provenance)


def _atlas_record(atlas: Atlas | DenseAtlas) -> dict[str, Any]:
    return {"atlas": {"file": atlas.name, "sha256": atlas.sha256, "parcels": len(atlas.values)}}


def _refuse_resampling(seconds: float | None, spec: ScanSpec, name: str, options: Preparation) -> None:
    if not options.may_resample and target_seconds(seconds, spec, name, []) is not None:
        raise UsageError(
            f"{name} would have to be resampled in time",
            expected=f"{spec.repetition_time.seconds} s between frames" if spec.repetition_time else None,
            seen=f"{seconds} s",
            hint="leave out --no-resample",
        )
