"""From a file to what an encoder takes: one volume, a run's windows, a parcel series' windows, or a ready array."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.arrays import is_array_file, read_array
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError
from neuroflamingo_preprocessing.files import printable
from neuroflamingo_preprocessing.formats.dicom.archive import shown_name
from neuroflamingo_preprocessing.functional.cifti import is_cifti, is_dense
from neuroflamingo_preprocessing.functional.cifti_dense import DenseAtlas
from neuroflamingo_preprocessing.functional.denoised_run import denoise_run
from neuroflamingo_preprocessing.functional.denoising import Denoising
from neuroflamingo_preprocessing.functional.denoising_plan import plan_denoising
from neuroflamingo_preprocessing.functional.parcel_series import prepare_series, target_seconds
from neuroflamingo_preprocessing.functional.parcellation import parcel_series
from neuroflamingo_preprocessing.functional.prepare_run import prepare_run
from neuroflamingo_preprocessing.functional.run_quality import FrameWatch, assess_series
from neuroflamingo_preprocessing.read import read_run, read_scan
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.spec import ScanSpec
from neuroflamingo_preprocessing.structural.prepare_volume import Prepared, prepare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.functional.denoising_plan import DenoisingPlan
    from neuroflamingo_preprocessing.functional.parcel_series import Window
    from neuroflamingo_preprocessing.functional.parcellation import Atlas
    from neuroflamingo_preprocessing.geometry import GeometryStep
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.spec import ScanSpec


@dataclass(frozen=True)
class PreparedInput:
    """One tensor for an encoder.

    Attributes:
        tensor: float32, the axes of the card.
        about: plain data: name, hash of the input, geometry log, warnings, window.
    """

    tensor: NDArray[np.float32]
    about: Mapping[str, Any]


def prepare_for_encoder(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[PreparedInput]:
    """All tensors that a file gives: one, or one for each window of a run.

    Raises:
        NeuroFlamingoError: the file cannot be read, or is not what the encoder takes.
    """
    if is_array_file(path) and not (how.raw or is_cifti(path)):
        return _ready(path, spec, how)
    if spec.modality == "parcels":
        return _from_parcels(path, spec, how)
    if spec.modality == "volume4d":
        return _from_run(path, spec, how)
    if spec.modality == "volume3d" and len(spec.channels) == 1:
        return _from_volume(path, spec, how)
    raise UsageError(
        f"{_name(path)}: files of this kind are not prepared for this encoder",
        expected=f"a ready array (.npy, .npz, .tsv or .csv): {spec.describe()}",
        seen=path.suffix or "no ending",
        hint="prepare it as `neuroflamingo encoders card` says, and save it with numpy.save",
    )


def _ready(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[PreparedInput]:
    if how.cleaning:
        raise UsageError(
            f"{_name(path)} is a ready array, which is taken as it is",
            expected="no confounds, filters or choice of frames",
            hint="--raw, if it is a parcel series as measured",
        )
    ready = read_array(path, spec, how.repetition_time, rows=how.rows)
    source = {"name": _name(path), "sha256": ready.sha256, "bytes": ready.bytes, "kind": "ready array"}
    about = {"name": _name(path), "input": source, "geometry": [], "warnings": list(ready.warnings)}
    yield PreparedInput(ready.tensor, about | ready.record() | {"repetition_time_s": ready.repetition_time})


def _from_volume(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[PreparedInput]:
    if not how.may_resample:
        raise UsageError(
            f"{_name(path)} would have to be resampled",
            expected="volumes are aligned to the template and interpolated once",
            hint="leave --no-resample out, or give a ready array",
        )
    scan = read_scan(path, how.series, xform=how.xform, series_sha256=how.series_sha256)
    prepared = prepare(scan, spec)
    about = _about(path, scan.provenance, prepared.geometry, prepared.warnings)
    about["scan_to_template"] = prepared.scan_to_template.tolist()
    about["quality"] = asdict(prepared.quality)
    yield PreparedInput(prepared.tensor, about)


def _from_run(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[PreparedInput]:
    stored = read_run(path, how.repetition_time, how.series, xform=how.xform, series_sha256=how.series_sha256)
    plan = _plan(how, path, stored.name, stored.frames, stored.repetition_time)
    run = denoise_run(stored, plan)
    prepared = prepare_run(run, spec, may_resample=how.may_resample)
    about = _about(path, run.provenance, prepared.geometry, (*prepared.warnings, *plan.against(spec)))
    about["repetition_time_s"] = run.repetition_time
    about["quality"] = prepared.quality.as_dict()
    yield from _windows(prepared.windows(), about | _cleaning(plan))


def _from_parcels(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[PreparedInput]:
    got = measured_series(path, spec, how)
    windows, said = prepare_series(got.series, got.seconds, spec, got.name, how.scaling, got.times)
    about = dict(got.about) | {"warnings": [*got.about["warnings"], *said]}
    used = how.scaling
    yield from _windows(windows, about | ({"scaling": {"runs": used.runs, "frames": used.frames}} if used else {}))


@dataclass(frozen=True)
class MeasuredSeries:
    """A parcel series before the repetition time and the normalisation of an encoder.

    Attributes:
        name: of the file, for messages.
        series: float32 `[parcel, frame]`, cleaned.
        seconds: between frames; None where that is not known.
        times: seconds of each frame from the first, where frames in between were left out.
        about: as `PreparedInput.about`.
    """

    name: str
    series: NDArray[np.float32]
    seconds: float | None
    times: NDArray[np.float64] | None
    about: Mapping[str, Any]


def measured_series(path: Path, spec: ScanSpec, how: Preparation) -> MeasuredSeries:
    """The parcel series of a run and an atlas, or of an array, with the frames and the cleaning that were asked for.

    Raises:
        NeuroFlamingoError: the file cannot be read, is not what the encoder takes, or no atlas was given.
    """
    return _series_of_array(path, spec, how) if is_array_file(path) else _series_of_run(path, spec, how)


def _series_of_run(path: Path, spec: ScanSpec, how: Preparation) -> MeasuredSeries:
    if how.atlas is None or isinstance(how.atlas, DenseAtlas):
        wanted = spec.parcellation.identifier if spec.parcellation else f"of {spec.axes[0].describe()}"
        raise UsageError(
            f"this encoder takes parcel series, and no atlas of volumes was given for {_name(path)}",
            expected=f"--atlas LABELS.nii.gz ({wanted})",
            hint="or give a parcel series: .ptseries.nii, or .tsv, .csv, .npy with --raw",
        )
    run = read_run(path, how.repetition_time, how.series, xform=how.xform, series_sha256=how.series_sha256)
    _refuse_resampling(run.repetition_time, spec, run.name, how)
    plan = _plan(how, path, run.name, run.frames, run.repetition_time)
    watch = FrameWatch()
    series, log, odd = parcel_series(run, how.atlas, may_resample=how.may_resample, watch=watch)
    series = plan.clean(series[:, plan.first : plan.stop])
    told = denoise_run(run, plan)
    quality, said = assess_series(series, watch, told)
    about = _about(path, run.provenance, log, (*told.provenance.warnings, *odd, *said, *plan.against(spec)))
    about["repetition_time_s"] = run.repetition_time
    about["quality"] = quality.as_dict()
    about |= _atlas(how.atlas) | _cleaning(plan)
    return MeasuredSeries(run.name, series, run.repetition_time, plan.times, about)


def _atlas(atlas: Atlas | DenseAtlas) -> dict[str, Any]:
    return {"atlas": {"file": atlas.name, "sha256": atlas.sha256, "parcels": len(atlas.values)}}


def _series_of_array(path: Path, spec: ScanSpec, how: Preparation) -> MeasuredSeries:
    axes = tuple(a if a.name == "parcel" else a.model_copy(update={"size": None, "minimum": 2}) for a in spec.axes)
    anything = spec.model_copy(update={"axes": axes, "repetition_time": None})
    dense = how.atlas if isinstance(how.atlas, DenseAtlas) else None
    found = read_array(path, anything, how.repetition_time, rows=how.rows, atlas=dense)
    _refuse_resampling(found.repetition_time, spec, _name(path), how)
    plan = _plan(how, path, _name(path), found.tensor.shape[1], found.repetition_time)
    source = {"name": _name(path), "sha256": found.sha256, "bytes": found.bytes, "kind": _kind(found.kind)}
    said = [*found.warnings, *plan.warnings, *plan.against(spec)]
    about = {"name": _name(path), "input": source, "geometry": [], "warnings": said}
    about |= found.record() | (_atlas(dense) if dense is not None and is_dense(path) else {})
    about["repetition_time_s"] = found.repetition_time
    series = plan.clean(found.tensor[:, plan.first : plan.stop])
    return MeasuredSeries(_name(path), series, found.repetition_time, plan.times, about | _cleaning(plan))


def _plan(how: Preparation, path: Path, name: str, frames: int, seconds: float | None) -> DenoisingPlan:
    return plan_denoising(how.cleaning or Denoising(), path, name, frames, seconds)


def _cleaning(plan: DenoisingPlan) -> dict[str, Any]:
    return {"cleaning": plan.about} if plan.about else {}


def _kind(kind: str) -> str:
    return "parcel series" if kind == "array" else kind


def _refuse_resampling(seconds: float | None, spec: ScanSpec, name: str, how: Preparation) -> None:
    if not how.may_resample and target_seconds(seconds, spec, name, []) is not None:
        raise UsageError(
            f"{name} would have to be resampled in time",
            expected=f"{spec.repetition_time.seconds} s between frames" if spec.repetition_time else None,
            seen=f"{seconds} s",
            hint="leave --no-resample out",
        )


def _windows(windows: Iterable[Window], about: dict[str, Any]) -> Iterator[PreparedInput]:
    for window in windows:
        yield PreparedInput(
            window.tensor, about | {"window": {"first_frame": window.first_frame, "frames": window.frames}}
        )


def _about(path: Path, provenance: Any, geometry: list[GeometryStep], warnings: Iterable[str]) -> dict[str, Any]:
    name = printable(provenance.file) if provenance.file else _name(path)
    source = {"name": name, "sha256": provenance.sha256}
    if provenance.header.get("format", "").startswith("DICOM"):
        source["kind"] = "DICOM"
    else:
        source |= {"bytes": _bytes(path), "kind": provenance.header.get("format", "scan").partition(",")[0]}
    source |= {"header_sha256": provenance.header_sha256, "header": dict(provenance.header)}
    return {
        "name": name,
        "input": source,
        "geometry": [step.as_dict() for step in geometry],
        "warnings": list(warnings),
    }


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _name(path: Path) -> str:
    return printable(shown_name(path))


ScanSource = str | Path | Scan | Callable[[], Scan]


def prepare_many(
    sources: Iterable[ScanSource], spec: ScanSpec, processes: int = 1
) -> Iterator[Prepared | NeuroFlamingoError]:
    """Prepare many scans, in order; a scan that fails gives its error in its place, and the others go on.

    Args:
        sources: paths, scans, or picklable functions that make a scan (so that workers can do the making).
        spec: `card.scan` of the encoder.
        processes: workers; 1 works in this process. Workers are spawned, so a script that asks for more than one
            needs the usual `if __name__ == "__main__":`. At most two scans a worker are under way at a time.
    """
    if processes <= 1:
        yield from (_prepare_one(source, spec) for source in sources)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        under_way: deque[Any] = deque()
        for source in sources:
            under_way.append(pool.submit(_prepare_one, source, spec))
            if len(under_way) >= 2 * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _prepare_one(source: ScanSource, spec: ScanSpec) -> Prepared | NeuroFlamingoError:
    try:
        scan = source if isinstance(source, Scan) else source() if callable(source) else read_scan(source)
        return prepare(scan, spec)
    except NeuroFlamingoError as error:
        return error
