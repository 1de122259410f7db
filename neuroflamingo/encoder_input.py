"""From a file to what an encoder takes: one volume, a run's windows, a parcel series' windows, or a ready array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.xform import Xform, checked_xform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from neuroflamingo_encoders import EncoderCard
    from neuroflamingo_preprocessing.cifti_dense import DenseAtlas
    from neuroflamingo_preprocessing.cleaning import Cleaning
    from neuroflamingo_preprocessing.cleaning_plan import CleaningPlan
    from neuroflamingo_preprocessing.geometry import GeometryStep
    from neuroflamingo_preprocessing.parcel_tables import Rows
    from neuroflamingo_preprocessing.parcels import Atlas
    from neuroflamingo_preprocessing.series import RobustScaling, Window
    from neuroflamingo_preprocessing.spec import ScanSpec


@dataclass(frozen=True)
class ForEncoder:
    """One tensor for an encoder.

    Attributes:
        tensor: float32, the axes of the card.
        about: plain data: name, hash of the input, geometry log, warnings, window.
    """

    tensor: NDArray[np.float32]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Preparation:
    """What a user may say about the way from files to tensors; see `encode`.

    `series_sha256` nobody says: it is that of a DICOM series, where this was hashed for an item's key before.
    """

    repetition_time: float | None = None
    atlas: Atlas | DenseAtlas | None = None
    scaling: RobustScaling | None = None
    xform: Xform = "auto"
    rows: Rows | None = None
    raw: bool = False
    may_resample: bool = True
    series: int | None = None
    cleaning: Cleaning | None = None
    series_sha256: str | None = None

    @classmethod
    def of(
        cls,
        spec: ScanSpec,
        *,
        atlas: str | Path | None = None,
        scaling: str | Path | None = None,
        cleaning: Cleaning | None = None,
        **how: Any,
    ) -> Preparation:
        """Read the atlas and the scaling, before any scan is.

        Raises:
            UsageError: the encoder has no use for one of them; no such `xform`.
            NeuroFlamingoError: a file that is not there, or not what it should be.
        """
        checked_xform(how.get("xform", "auto"))
        if cleaning:
            _refuse_cleaning(spec)
        parcels = next((axis.size for axis in spec.axes if axis.name == "parcel"), None)
        if spec.modality != "parcels" and (
            atlas is not None or scaling is not None or how.get("raw") or how.get("rows")
        ):
            raise UsageError(
                "this encoder takes no parcels",
                expected="neither --atlas nor --scaling nor --raw nor --rows",
                seen=spec.describe(),
                hint="leave them out",
            )
        if how.get("rows") not in (None, "frames", "parcels"):
            raise UsageError("--rows says what lines are", expected="frames or parcels", seen=str(how["rows"]))
        from neuroflamingo_preprocessing.cifti_dense import is_dense_atlas, read_dense_atlas
        from neuroflamingo_preprocessing.parcels import read_atlas
        from neuroflamingo_preprocessing.series import RobustScaling

        read = read_dense_atlas if atlas is not None and is_dense_atlas(atlas) else read_atlas
        return cls(
            atlas=None if atlas is None else read(atlas, spec.parcellation, parcels),
            scaling=None if scaling is None else RobustScaling.load(scaling),
            cleaning=cleaning.anywhere() if cleaning else None,
            **how,
        )

    def at(
        self, repetition_time: float | None, series: int | None = None, confounds: Path | None = None
    ) -> Preparation:
        """The same with what is said for one scan.

        Raises:
            UsageError: confounds, but not what to do with them.
        """
        from neuroflamingo_preprocessing.cleaning import Cleaning

        said = {"repetition_time": repetition_time, "series": series}
        said["cleaning"] = confounds and replace(self.cleaning or Cleaning(), confounds=confounds)
        return replace(self, **{key: value for key, value in said.items() if value is not None})  # type: ignore[arg-type]

    def changes(self, path: Path | None = None) -> dict[str, Any]:
        """What of it changes the tensors of a file, as plain data: part of their address in a store.

        Without a file, what was said: the confounds of each run are not looked for.

        The series is not: the hash of the input is that of its images.

        Raises:
            NotFoundError: the run's confounds are not there.
        """
        used = self.scaling
        scaling = used and hashlib.sha256(used.median.tobytes() + used.spread.tobytes()).hexdigest()
        atlas = self.atlas and self.atlas.sha256
        said = {"repetition_time": self.repetition_time, "atlas": atlas, "scaling": scaling, "raw": self.raw or None}
        said["rows"] = self.rows
        said["xform"] = None if self.xform == "auto" else self.xform
        said["cleaning"] = self.cleaning and self.cleaning.changes(path)
        return {key: value for key, value in said.items() if value is not None}

    def check_tables(self, tables: Sequence[Path | None], spec: ScanSpec) -> None:
        """One table of confounds is of one run, and something must be asked of it.

        Args:
            tables: for each scan the one that a manifest says for it, or None.
            spec: `card.scan` of the encoder.

        Raises:
            UsageError: several runs for one table, a table and no strategy, a strategy and no table, or no runs at all.
        """
        said = next((table for table in tables if table is not None), None)
        if said is not None:
            _refuse_cleaning(spec)
            self.at(None, None, said)
        others = sum(table is None for table in tables)
        if self.cleaning and others:
            self.cleaning.check_table()
        if self.cleaning and self.cleaning.one_table and others > 1:
            raise UsageError(
                "one table of confounds cannot be that of several runs",
                expected="--confounds auto: for each run the table that fMRIPrep put beside it; or a manifest with "
                "`confounds` in each line",
                seen=f"one table, {others} runs",
            )


def _refuse_cleaning(spec: ScanSpec) -> None:
    if spec.modality not in ("volume4d", "parcels"):
        raise UsageError(
            "this encoder takes no runs, and nothing else has frames to clean",
            expected="no confounds, filters or choice of frames",
            seen=spec.describe(),
            hint="leave them out",
        )


def prepare_for_encoder(path: Path, card: EncoderCard, how: Preparation) -> Iterator[ForEncoder]:
    """All tensors that a file gives: one, or one for each window of a run.

    Raises:
        NeuroFlamingoError: the file cannot be read, or is not what the encoder takes.
    """
    from neuroflamingo_preprocessing.arrays import is_array_file
    from neuroflamingo_preprocessing.cifti import is_cifti

    spec = card.scan
    if is_array_file(path) and not (how.raw or is_cifti(path)):
        return _ready(path, spec, how)
    if spec.modality == "parcels":
        return _from_parcels(path, card, how)
    if spec.modality == "volume4d":
        return _from_run(path, spec, how)
    if spec.modality == "volume3d" and len(spec.channels) == 1:
        return _from_volume(path, spec, how)
    raise UsageError(
        f"{_name(path)}: files of this kind are not prepared for '{card.name}'",
        expected=f"a ready array (.npy, .npz, .tsv or .csv): {spec.describe()}",
        seen=path.suffix or "no ending",
        hint="prepare it as `neuroflamingo encoders card` says, and save it with numpy.save",
    )


def _ready(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[ForEncoder]:
    from neuroflamingo_preprocessing.arrays import read_array

    if how.cleaning:
        raise UsageError(
            f"{_name(path)} is a ready array, which is taken as it is",
            expected="no confounds, filters or choice of frames",
            hint="--raw, if it is a parcel series as measured",
        )
    ready = read_array(path, spec, how.repetition_time, rows=how.rows)
    source = {"name": _name(path), "sha256": ready.sha256, "bytes": ready.bytes, "kind": "ready array"}
    about = {"name": _name(path), "input": source, "geometry": [], "warnings": list(ready.warnings)}
    yield ForEncoder(ready.tensor, about | ready.record() | {"repetition_time_s": ready.repetition_time})


def _from_volume(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[ForEncoder]:
    from neuroflamingo_preprocessing import prepare, read_scan

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
    yield ForEncoder(prepared.tensor, about)


def _from_run(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[ForEncoder]:
    from neuroflamingo_preprocessing.cleaned_run import clean_run
    from neuroflamingo_preprocessing.run_preparing import prepare_run
    from neuroflamingo_preprocessing.runs import read_run

    stored = read_run(path, how.repetition_time, how.series, xform=how.xform, series_sha256=how.series_sha256)
    plan = _plan(how, path, stored.name, stored.frames, stored.repetition_time)
    run = clean_run(stored, plan)
    prepared = prepare_run(run, spec, may_resample=how.may_resample)
    about = _about(path, run.provenance, prepared.geometry, (*prepared.warnings, *plan.against(spec)))
    about["repetition_time_s"] = run.repetition_time
    about["quality"] = prepared.quality.as_dict()
    yield from _windows(prepared.windows(), about | _cleaning(plan))


def _from_parcels(path: Path, card: EncoderCard, how: Preparation) -> Iterator[ForEncoder]:
    from neuroflamingo_preprocessing.series import prepare_series

    got = measured_series(path, card, how)
    windows, said = prepare_series(got.series, got.seconds, card.scan, got.name, how.scaling, got.times)
    about = dict(got.about) | {"warnings": [*got.about["warnings"], *said]}
    used = how.scaling
    yield from _windows(windows, about | ({"scaling": {"runs": used.runs, "frames": used.frames}} if used else {}))


@dataclass(frozen=True)
class Measured:
    """A parcel series before the repetition time and the normalisation of an encoder.

    Attributes:
        name: of the file, for messages.
        series: float32 `[parcel, frame]`, cleaned.
        seconds: between frames; None where that is not known.
        times: seconds of each frame from the first, where frames in between were left out.
        about: as `ForEncoder.about`.
    """

    name: str
    series: NDArray[np.float32]
    seconds: float | None
    times: NDArray[np.float64] | None
    about: Mapping[str, Any]


def measured_series(path: Path, card: EncoderCard, how: Preparation) -> Measured:
    """The parcel series of a run and an atlas, or of an array, with the frames and the cleaning that were asked for.

    Raises:
        NeuroFlamingoError: the file cannot be read, is not what the encoder takes, or no atlas was given.
    """
    from neuroflamingo_preprocessing.arrays import is_array_file

    return _series_of_array(path, card.scan, how) if is_array_file(path) else _series_of_run(path, card, how)


def _series_of_run(path: Path, card: EncoderCard, how: Preparation) -> Measured:
    from neuroflamingo_preprocessing.cifti_dense import DenseAtlas
    from neuroflamingo_preprocessing.cleaned_run import clean_run
    from neuroflamingo_preprocessing.parcels import parcel_series
    from neuroflamingo_preprocessing.run_quality import FrameWatch, look_at_series
    from neuroflamingo_preprocessing.runs import read_run

    spec = card.scan
    if how.atlas is None or isinstance(how.atlas, DenseAtlas):
        wanted = spec.parcellation.identifier if spec.parcellation else f"of {spec.axes[0].describe()}"
        raise UsageError(
            f"'{card.name}' takes parcel series, and no atlas of volumes was given for {_name(path)}",
            expected=f"--atlas LABELS.nii.gz ({wanted})",
            hint="or give a parcel series: .ptseries.nii, or .tsv, .csv, .npy with --raw",
        )
    run = read_run(path, how.repetition_time, how.series, xform=how.xform, series_sha256=how.series_sha256)
    _refuse_resampling(run.repetition_time, spec, run.name, how)
    plan = _plan(how, path, run.name, run.frames, run.repetition_time)
    watch = FrameWatch()
    series, log, odd = parcel_series(run, how.atlas, may_resample=how.may_resample, watch=watch)
    series = plan.clean(series[:, plan.first : plan.stop])
    told = clean_run(run, plan)
    quality, said = look_at_series(series, watch, told)
    about = _about(path, run.provenance, log, (*told.provenance.warnings, *odd, *said, *plan.against(spec)))
    about["repetition_time_s"] = run.repetition_time
    about["quality"] = quality.as_dict()
    about |= _atlas(how.atlas) | _cleaning(plan)
    return Measured(run.name, series, run.repetition_time, plan.times, about)


def _atlas(atlas: Atlas | DenseAtlas) -> dict[str, Any]:
    return {"atlas": {"file": atlas.name, "sha256": atlas.sha256, "parcels": len(atlas.values)}}


def _series_of_array(path: Path, spec: ScanSpec, how: Preparation) -> Measured:
    from neuroflamingo_preprocessing.arrays import read_array
    from neuroflamingo_preprocessing.cifti import is_dense
    from neuroflamingo_preprocessing.cifti_dense import DenseAtlas

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
    return Measured(_name(path), series, found.repetition_time, plan.times, about | _cleaning(plan))


def _plan(how: Preparation, path: Path, name: str, frames: int, seconds: float | None) -> CleaningPlan:
    from neuroflamingo_preprocessing.cleaning import Cleaning
    from neuroflamingo_preprocessing.cleaning_plan import plan_cleaning

    return plan_cleaning(how.cleaning or Cleaning(), path, name, frames, seconds)


def _cleaning(plan: CleaningPlan) -> dict[str, Any]:
    return {"cleaning": plan.about} if plan.about else {}


def _kind(kind: str) -> str:
    return "parcel series" if kind == "array" else kind


def _refuse_resampling(seconds: float | None, spec: ScanSpec, name: str, how: Preparation) -> None:
    from neuroflamingo_preprocessing.series import target_seconds

    if not how.may_resample and target_seconds(seconds, spec, name, []) is not None:
        raise UsageError(
            f"{name} would have to be resampled in time",
            expected=f"{spec.repetition_time.seconds} s between frames" if spec.repetition_time else None,
            seen=f"{seconds} s",
            hint="leave --no-resample out",
        )


def _windows(windows: Iterable[Window], about: dict[str, Any]) -> Iterator[ForEncoder]:
    for window in windows:
        yield ForEncoder(
            window.tensor, about | {"window": {"first_frame": window.first_frame, "frames": window.frames}}
        )


def _about(path: Path, provenance: Any, geometry: list[GeometryStep], warnings: Iterable[str]) -> dict[str, Any]:
    from neuroflamingo.provenance import printable

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
    from neuroflamingo.provenance import printable
    from neuroflamingo_preprocessing.dicom_files import shown_name

    return printable(shown_name(path))
