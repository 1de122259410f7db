"""From a file to what an encoder takes: one volume, a run's windows, a parcel series' windows, or a ready array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from neuroflamingo_encoders import EncoderCard
    from neuroflamingo_preprocessing.geometry import GeometryStep
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
    """What a user may say about the way from files to tensors; see `encode`."""

    repetition_time: float | None = None
    atlas: Atlas | None = None
    scaling: RobustScaling | None = None
    raw: bool = False
    may_resample: bool = True
    series: int | None = None

    @classmethod
    def of(
        cls, spec: ScanSpec, *, atlas: str | Path | None = None, scaling: str | Path | None = None, **how: Any
    ) -> Preparation:
        """Read the atlas and the scaling, before any scan is.

        Raises:
            UsageError: the encoder has no use for one of them.
            NeuroFlamingoError: a file that is not there, or not what it should be.
        """
        parcels = next((axis.size for axis in spec.axes if axis.name == "parcel"), None)
        if spec.modality != "parcels" and (atlas is not None or scaling is not None or how.get("raw")):
            raise UsageError(
                "this encoder takes no parcels",
                expected="neither --atlas nor --scaling nor --raw",
                seen=spec.describe(),
                hint="leave them out",
            )
        from neuroflamingo_preprocessing.parcels import read_atlas
        from neuroflamingo_preprocessing.series import RobustScaling

        return cls(
            atlas=None if atlas is None else read_atlas(atlas, spec.parcellation, parcels),
            scaling=None if scaling is None else RobustScaling.load(scaling),
            **how,
        )

    def at(self, repetition_time: float | None, series: int | None = None) -> Preparation:
        """The same with what is said for one scan."""
        said = {"repetition_time": repetition_time, "series": series}
        return replace(self, **{key: value for key, value in said.items() if value is not None})  # type: ignore[arg-type]

    def changes(self) -> dict[str, Any]:
        """What of it changes the tensors, as plain data: part of their address in a store.

        The series is not: the hash of the input is that of its images.
        """
        used = self.scaling
        scaling = used and hashlib.sha256(used.median.tobytes() + used.spread.tobytes()).hexdigest()
        atlas = self.atlas and self.atlas.sha256
        said = {"repetition_time": self.repetition_time, "atlas": atlas, "scaling": scaling, "raw": self.raw or None}
        return {key: value for key, value in said.items() if value is not None}


def said_beside(path: Path, spec: ScanSpec, how: Preparation) -> dict[str, Any]:
    """What a run's sidecars say that changes its tensors: the repetition time, if the user gave none.

    Raises:
        ScanError: sidecars that cannot be read, or two that apply at one level.
    """
    from neuroflamingo_preprocessing.bids_choice import is_run
    from neuroflamingo_preprocessing.dicom_files import is_dicom_input
    from neuroflamingo_preprocessing.sidecars import read_sidecar

    if how.repetition_time is not None or not is_run(spec) or is_dicom_input(path):
        return {}
    said = read_sidecar(path).values.get("RepetitionTime")
    return {} if said is None else {"sidecar_repetition_time": said}


def prepare_for_encoder(path: Path, card: EncoderCard, how: Preparation) -> Iterator[ForEncoder]:
    """All tensors that a file gives: one, or one for each window of a run.

    Raises:
        NeuroFlamingoError: the file cannot be read, or is not what the encoder takes.
    """
    from neuroflamingo_preprocessing.arrays import is_array_file

    spec = card.scan
    if is_array_file(path):
        return _from_series(path, spec, how) if how.raw else _ready(path, spec, how)
    if spec.modality == "parcels":
        return _from_parcels(path, card, how)
    if spec.modality == "volume4d":
        return _from_run(path, spec, how)
    if spec.modality == "volume3d" and len(spec.channels) == 1:
        return _from_volume(path, spec, how)
    raise UsageError(
        f"{_name(path)}: files of this kind are not prepared for '{card.name}'",
        expected=f"a ready array (.npy, .npz or .tsv): {spec.describe()}",
        seen=path.suffix or "no ending",
        hint="prepare it as `neuroflamingo encoders card` says, and save it with numpy.save",
    )


def _ready(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[ForEncoder]:
    from neuroflamingo_preprocessing.arrays import read_array

    ready = read_array(path, spec, how.repetition_time)
    source = {"name": _name(path), "sha256": ready.sha256, "bytes": ready.bytes, "kind": "ready array"}
    about = {"name": _name(path), "input": source, "geometry": [], "warnings": list(ready.warnings)}
    yield ForEncoder(ready.tensor, about | {"repetition_time_s": ready.repetition_time})


def _from_volume(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[ForEncoder]:
    from neuroflamingo_preprocessing import prepare, read_scan

    if not how.may_resample:
        raise UsageError(
            f"{_name(path)} would have to be resampled",
            expected="volumes are aligned to the template and interpolated once",
            hint="leave --no-resample out, or give a ready array",
        )
    scan = read_scan(path, how.series)
    prepared = prepare(scan, spec)
    about = _about(path, scan.provenance, prepared.geometry, prepared.warnings)
    about["scan_to_template"] = prepared.scan_to_template.tolist()
    about["quality"] = {"correlation": prepared.quality.correlation, "coverage": prepared.quality.coverage}
    yield ForEncoder(prepared.tensor, about)


def _from_run(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[ForEncoder]:
    from neuroflamingo_preprocessing.run_preparing import prepare_run
    from neuroflamingo_preprocessing.runs import read_run

    run = read_run(path, how.repetition_time, how.series)
    prepared = prepare_run(run, spec, may_resample=how.may_resample)
    about = _about(path, run.provenance, prepared.geometry, prepared.warnings)
    about["repetition_time_s"] = run.repetition_time
    about["quality"] = {"coverage": prepared.quality.coverage, "tsnr": prepared.quality.tsnr}
    yield from _windows(prepared.windows(), about)


def _from_parcels(path: Path, card: EncoderCard, how: Preparation) -> Iterator[ForEncoder]:
    from neuroflamingo_preprocessing.parcels import parcel_series
    from neuroflamingo_preprocessing.runs import read_run
    from neuroflamingo_preprocessing.series import prepare_series

    spec = card.scan
    if how.atlas is None:
        wanted = spec.parcellation.identifier if spec.parcellation else f"of {spec.axes[0].describe()}"
        raise UsageError(
            f"'{card.name}' takes parcel series, and no atlas was given for {_name(path)}",
            expected=f"--atlas LABELS.nii.gz ({wanted})",
            hint="or give a parcel series (.tsv, .npy) with --raw",
        )
    run = read_run(path, how.repetition_time, how.series)
    _refuse_resampling(run.repetition_time, spec, run.name, how)
    series, log, odd = parcel_series(run, how.atlas, may_resample=how.may_resample)
    windows, said = prepare_series(series, run.repetition_time, spec, run.name, how.scaling)
    about = _about(path, run.provenance, log, (*run.provenance.warnings, *odd, *said))
    about["repetition_time_s"] = run.repetition_time
    about["atlas"] = {"file": how.atlas.name, "sha256": how.atlas.sha256, "parcels": len(how.atlas.values)}
    yield from _windows(windows, about | _scaling(how))


def _from_series(path: Path, spec: ScanSpec, how: Preparation) -> Iterator[ForEncoder]:
    from neuroflamingo_preprocessing.arrays import read_array
    from neuroflamingo_preprocessing.series import prepare_series

    axes = tuple(a if a.name == "parcel" else a.model_copy(update={"size": None, "minimum": 2}) for a in spec.axes)
    anything = spec.model_copy(update={"axes": axes, "repetition_time": None})
    found = read_array(path, anything, how.repetition_time)
    _refuse_resampling(found.repetition_time, spec, _name(path), how)
    windows, said = prepare_series(found.tensor, found.repetition_time, spec, _name(path), how.scaling)
    source = {"name": _name(path), "sha256": found.sha256, "bytes": found.bytes, "kind": "parcel series"}
    about = {"name": _name(path), "input": source, "geometry": [], "warnings": said}
    about["repetition_time_s"] = found.repetition_time
    yield from _windows(windows, about | _scaling(how))


def _refuse_resampling(seconds: float | None, spec: ScanSpec, name: str, how: Preparation) -> None:
    from neuroflamingo_preprocessing.series import target_seconds

    if not how.may_resample and target_seconds(seconds, spec, name, []) is not None:
        raise UsageError(
            f"{name} would have to be resampled in time",
            expected=f"{spec.repetition_time.seconds} s between frames" if spec.repetition_time else None,
            seen=f"{seconds} s",
            hint="leave --no-resample out",
        )


def _scaling(how: Preparation) -> dict[str, Any]:
    used = how.scaling
    return {} if used is None else {"scaling": {"runs": used.runs, "frames": used.frames}}


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
        source |= {"bytes": path.stat().st_size, "kind": "NIfTI"}
    source |= {"header_sha256": provenance.header_sha256, "header": dict(provenance.header)}
    return {
        "name": name,
        "input": source,
        "geometry": [step.as_dict() for step in geometry],
        "warnings": list(warnings),
    }


def _name(path: Path) -> str:
    from neuroflamingo.provenance import printable
    from neuroflamingo_preprocessing.dicom_files import shown_name

    return printable(shown_name(path))
