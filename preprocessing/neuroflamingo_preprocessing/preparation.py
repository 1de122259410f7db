"""`prepare`: the single way from any input (file, folder, DICOM series, `Scan`, run) to an encoder's tensors."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.arrays import is_array_file, read_array
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, ScanError, UsageError, noting
from neuroflamingo_preprocessing.formats.nifti.run import Run
from neuroflamingo_preprocessing.functional.cifti import is_cifti
from neuroflamingo_preprocessing.functional.denoised_run import denoise_run
from neuroflamingo_preprocessing.functional.parcel_series import Window, prepare_series
from neuroflamingo_preprocessing.functional.prepare_run import COVERAGE_WARN as RUN_COVERAGE_WARN
from neuroflamingo_preprocessing.functional.prepare_run import prepare_run
from neuroflamingo_preprocessing.measured_series import (
    denoising_record,
    describe_input,
    input_name,
    measured_series,
    open_run,
    plan_for,
)
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.prepared_input import (
    ArrayView,
    PreparedInput,
    PreparedWindow,
    QualityCheck,
    RunView,
    SeriesView,
    VolumeView,
)
from neuroflamingo_preprocessing.read import read_channels, read_scan
from neuroflamingo_preprocessing.scan import Provenance, Scan
from neuroflamingo_preprocessing.sequence import is_sequence_file, read_sequence
from neuroflamingo_preprocessing.structural.prepare_volume import prepare_volume
from neuroflamingo_preprocessing.structural.volume_quality import COVERAGE_WARN, OVERLAP_WARN

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.spec import ScanSpec

Source = str | Path | Scan | Run
"""File or folder, or a scan or run in memory."""
MakesScan = Callable[[], Scan]
"""Picklable function that makes a scan, so that a worker can call it."""


def prepare(source: Source, spec: ScanSpec, options: Preparation | None = None) -> PreparedInput:
    """Prepare an input as an encoder's card declares.

    A volume is resampled to the grid and template space of `spec` and normalised (see `prepare_volume`). A run becomes
    windows of volumes (see `prepare_run`); a run with an atlas, a table or a CIFTI file becomes windows of a parcel
    series (see `prepare_series`); a sequence file becomes token ids; a prepared array is used unchanged.

    Args:
        source: NIfTI, MGH, zarr, a DICOM folder or archive, CIFTI, an array (`.npy`, `.npz`), a table (`.tsv`,
            `.csv`), a sequence (`.fa`, `.fasta`, `.txt`); or a `Scan` or `Run` in memory.
        spec: `card.scan` of the encoder.
        options: see `Preparation`.

    Raises:
        NeuroFlamingoError: the input cannot be read, or does not suit the encoder.
    """
    options = options or Preparation()
    if not isinstance(source, Scan | Run):
        source = Path(source)
        if is_array_file(source) and not (options.raw or is_cifti(source)):
            return _from_array(source, spec, options)
    for takes, way in _WAYS:
        if takes(source, spec):
            return way(source, spec, options)
    if isinstance(source, Scan | Run):
        raise ScanError(
            f"{_called(source)} is {'a run' if isinstance(source, Run) else 'one volume'}",
            expected=spec.describe(),
            seen="a 4D time series" if isinstance(source, Run) else "a 3D volume",
            hint="use a model whose encoder takes it, or give another input",
        )
    raise UsageError(
        f"{_called(source)}: files of this kind are not prepared for this encoder",
        expected=f"a prepared array (.npy, .npz, .tsv or .csv): {spec.describe()}",
        seen=source.suffix or "no ending",
        hint="prepare it as `neuroflamingo encoders card` says, and save it with numpy.save",
    )


def prepare_many(
    sources: Iterable[Source | MakesScan], spec: ScanSpec, processes: int = 1
) -> Iterator[PreparedInput | NeuroFlamingoError]:
    """Prepare many inputs, in order; for an input that fails its error is yielded instead.

    What the spec itself asks for and cannot be done is no input's fault: it is raised.

    Args:
        sources: see `prepare`; or picklable functions that make a scan in a worker.
        spec: `card.scan` of the encoder.
        processes: workers; 1 works in this process. Workers are spawned, so a script that asks for more than one
            needs the usual `if __name__ == "__main__":`. At most two scans a worker are under way at a time. What comes
            back has no `view`: it would be the scan again.

    Raises:
        ModelError: the spec asks for a step or a grid that there is not.
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


def _prepare_one(source: Source | MakesScan, spec: ScanSpec) -> PreparedInput | NeuroFlamingoError:
    try:
        made = source() if callable(source) else source
        return replace(prepare(made, spec), view=None)
    except ModelError:
        raise
    except NeuroFlamingoError as error:
        return error


def _from_array(path: Path, spec: ScanSpec, options: Preparation) -> PreparedInput:
    name = input_name(path)
    if options.denoising:
        raise UsageError(
            f"{name} is a prepared array, which is used unchanged",
            expected="no confounds, filters or choice of frames",
            hint="--raw, if it is a parcel series as measured",
        )
    ready = read_array(path, spec, options.repetition_time, rows=options.rows)
    source = {"name": name, "sha256": ready.sha256, "bytes": ready.bytes, "kind": "ready array"}
    metadata = {"name": name, "input": source, "geometry": [], "warnings": list(ready.warnings)}
    metadata |= ready.record() | {"repetition_time_s": ready.repetition_time}
    return PreparedInput(
        name=name,
        windows=(PreparedWindow(ready.tensor, metadata),),
        provenance=Provenance(file=name, sha256=ready.sha256, header={"format": "ready array"}),
        spacing=(),
        geometry=(),
        warnings=ready.warnings,
        checks=(),
        timings={},
        view=ArrayView(ready.tensor, tuple(axis.name for axis in spec.axes)),
    )


def _from_sequence(path: Source, spec: ScanSpec, options: Preparation) -> PreparedInput:
    assert isinstance(path, Path)
    read = read_sequence(path, spec)
    name = input_name(path)
    source = {"name": name, "sha256": read.sha256, "bytes": read.bytes, "kind": "sequence"}
    metadata = {"name": name, "input": source, "geometry": [], "warnings": list(read.warnings)}
    return PreparedInput(
        name=name,
        windows=(PreparedWindow(read.ids, metadata),),
        provenance=Provenance(
            file=name, sha256=read.sha256, header={"format": "sequence", "letters": str(read.letters)}
        ),
        spacing=(),
        geometry=(),
        warnings=read.warnings,
        checks=(),
        timings={},
        view=ArrayView(read.ids, tuple(axis.name for axis in spec.axes)),
    )


def _from_volume(source: Source, spec: ScanSpec, options: Preparation) -> PreparedInput:
    if not options.may_resample:
        raise UsageError(
            f"{_called(source)} would have to be resampled",
            expected="volumes are aligned to the template and interpolated once",
            hint="leave out --no-resample, or give a prepared array",
        )
    further: list[Scan] = []
    if isinstance(source, str | Path):
        scan = read_scan(source, options.series, xform=options.xform, series_sha256=options.series_sha256)
        further = read_channels(source, spec, options.xform)
        scan = replace(scan, provenance=_with_channels(scan.provenance, further, spec))
    else:
        assert isinstance(source, Scan)
        scan = source
    with noting(scan.provenance.warnings):
        prepared = prepare_volume(scan, spec, *further, force=options.force)
    metadata = describe_input(source, scan.provenance, prepared.geometry, prepared.warnings)
    metadata["scan_to_template"] = prepared.scan_to_template.tolist()
    metadata["quality"] = asdict(prepared.quality)
    quality, checks = prepared.quality, []
    if quality.overlap is not None:
        subject, measure = "alignment", "overlap of the brain's outline with the template's"
        checks.append(QualityCheck(subject, measure, quality.overlap, OVERLAP_WARN))
    checks.append(QualityCheck("brain inside the field of view", "", quality.coverage, COVERAGE_WARN))
    return PreparedInput(
        name=metadata["name"],
        windows=(PreparedWindow(prepared.tensor, metadata),),
        provenance=scan.provenance,
        spacing=scan.spacing,
        geometry=tuple(prepared.geometry),
        warnings=prepared.warnings,
        checks=tuple(checks),
        timings=prepared.timings,
        view=VolumeView(scan, prepared),
        forced=prepared.forced,
    )


def _with_channels(provenance: Provenance, further: list[Scan], spec: ScanSpec) -> Provenance:
    """The record of the first channel's file, with the further ones' files and hashes."""
    files = {
        f"channel {channel}": f"{scan.provenance.file}, SHA-256 {scan.provenance.sha256}"
        for channel, scan in zip(spec.channels[1:], further, strict=True)
    }
    return replace(provenance, header=provenance.header | files)


def _from_run(source: Source, spec: ScanSpec, options: Preparation) -> PreparedInput:
    assert not isinstance(source, Scan)
    stored = open_run(source, options)
    plan = plan_for(source, stored, options)
    run = denoise_run(stored, plan)
    with noting(run.provenance.warnings):
        prepared = prepare_run(run, spec, may_resample=options.may_resample)
    warnings = (*prepared.warnings, *plan.against(spec))
    metadata = describe_input(source, run.provenance, prepared.geometry, warnings)
    metadata["repetition_time_s"] = run.repetition_time
    metadata["quality"] = prepared.quality.as_dict()
    coverage = prepared.quality.coverage or 0.0
    return PreparedInput(
        name=metadata["name"],
        windows=_windows(prepared.windows(), metadata | denoising_record(plan)),
        provenance=run.provenance,
        spacing=tuple(float(size) for size in np.linalg.norm(run.affine[:3, :3], axis=0)),
        geometry=tuple(prepared.geometry),
        warnings=warnings,
        checks=(QualityCheck("brain inside the field of view", "", coverage, RUN_COVERAGE_WARN),),
        timings={},
        view=RunView(prepared.mean, prepared.affine, prepared.dvars, run.displacement, run.repetition_time),
    )


def _from_parcels(source: Source, spec: ScanSpec, options: Preparation) -> PreparedInput:
    assert not isinstance(source, Scan)
    found = measured_series(source, spec, options)
    windows, odd = prepare_series(found.series, found.seconds, spec, found.name, options.scaling, found.times)
    warnings = (*found.metadata["warnings"], *odd)
    metadata = dict(found.metadata) | {"warnings": list(warnings)}
    used = options.scaling
    metadata |= {"scaling": {"runs": used.runs, "frames": used.frames}} if used else {}
    return PreparedInput(
        name=found.name,
        windows=_windows(windows, metadata),
        provenance=found.provenance,
        spacing=(),
        geometry=found.geometry,
        warnings=warnings,
        checks=(),
        timings={},
        view=SeriesView(found.series, found.seconds),
    )


_WAYS: tuple[
    tuple[Callable[[Source, ScanSpec], bool], Callable[[Source, ScanSpec, Preparation], PreparedInput]], ...
] = (
    (lambda source, spec: spec.modality == "parcels" and not isinstance(source, Scan), _from_parcels),
    (lambda source, spec: spec.modality == "volume4d" and not isinstance(source, Scan), _from_run),
    (lambda source, spec: spec.modality == "sequence" and is_sequence_file(source), _from_sequence),
    (
        lambda source, spec: spec.modality == "volume3d" and _gives_channels(source, spec),
        _from_volume,
    ),
)
"""Ways to prepare an input; the first that takes it is used."""


def _gives_channels(source: Source, spec: ScanSpec) -> bool:
    """Whether a volume gives all channels: a scan in memory has one, a file may have others beside it."""
    return not isinstance(source, Run) and (len(spec.channels) == 1 or not isinstance(source, Scan))


def _called(source: Source) -> str:
    """Name an input in messages."""
    return (isinstance(source, Scan | Run) and source.provenance.file) or input_name(source)


def _windows(windows: Iterable[Window], metadata: Mapping[str, Any]) -> tuple[PreparedWindow, ...]:
    return tuple(
        PreparedWindow(
            window.tensor, dict(metadata) | {"window": {"first_frame": window.first_frame, "frames": window.frames}}
        )
        for window in windows
    )
