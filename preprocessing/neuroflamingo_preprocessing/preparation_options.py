"""`Preparation`: the user's options for preparing scans: atlas, scaling, denoising, repetition time, affine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.formats.nifti.xform import Xform, checked_xform
from neuroflamingo_preprocessing.functional.cifti_dense import is_dense_atlas, read_dense_atlas
from neuroflamingo_preprocessing.functional.denoising import Denoising
from neuroflamingo_preprocessing.functional.parcel_series import RobustScaling
from neuroflamingo_preprocessing.functional.parcellation import read_atlas

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.functional.cifti_dense import DenseAtlas
    from neuroflamingo_preprocessing.functional.parcel_tables import Rows
    from neuroflamingo_preprocessing.functional.parcellation import Atlas
    from neuroflamingo_preprocessing.spec import ScanSpec


@dataclass(frozen=True)
class Preparation:
    """User's options for preparing scans; see `neuroflamingo encode --help`.

    `series_sha256` is not a user's option: it is the hash of a DICOM series if it was computed before.
    """

    repetition_time: float | None = None
    atlas: Atlas | DenseAtlas | None = None
    scaling: RobustScaling | None = None
    xform: Xform = "auto"
    rows: Rows | None = None
    raw: bool = False
    may_resample: bool = True
    series: int | None = None
    denoising: Denoising | None = None
    series_sha256: str | None = None
    force: bool = False

    @classmethod
    def of(
        cls,
        spec: ScanSpec,
        *,
        atlas: str | Path | None = None,
        scaling: str | Path | None = None,
        denoising: Denoising | None = None,
        **others: Any,
    ) -> Preparation:
        """Read the atlas and the scaling, so that their errors come before any scan is read.

        Raises:
            UsageError: an option that does not apply to the encoder; an unknown `xform`.
            NeuroFlamingoError: a missing or invalid file.
        """
        checked_xform(others.get("xform", "auto"))
        if denoising:
            _refuse_denoising(spec)
        parcels = next((axis.size for axis in spec.axes if axis.name == "parcel"), None)
        if spec.modality != "parcels" and (
            atlas is not None or scaling is not None or others.get("raw") or others.get("rows")
        ):
            raise UsageError(
                "this encoder does not take parcel series",
                expected="neither --atlas nor --scaling nor --raw nor --rows",
                seen=spec.describe(),
                hint="leave them out",
            )
        if others.get("rows") not in (None, "frames", "parcels"):
            raise UsageError("unknown value of --rows", expected="frames or parcels", seen=str(others["rows"]))

        read = read_dense_atlas if atlas is not None and is_dense_atlas(atlas) else read_atlas
        return cls(
            atlas=None if atlas is None else read(atlas, spec.parcellation, parcels),
            scaling=None if scaling is None else RobustScaling.load(scaling),
            denoising=denoising.anywhere() if denoising else None,
            **others,
        )

    def at(
        self, repetition_time: float | None, series: int | None = None, confounds: Path | None = None
    ) -> Preparation:
        """Copy the options with those of one scan.

        Raises:
            UsageError: confounds without a strategy.
        """
        said = {"repetition_time": repetition_time, "series": series}
        said["denoising"] = confounds and replace(self.denoising or Denoising(), confounds=confounds)
        return replace(self, **{key: value for key, value in said.items() if value is not None})  # type: ignore[arg-type]

    def changes(self, path: Path | None = None) -> dict[str, Any]:
        """Return the options that change the tensors of a file, as plain data for the item's address in a store.

        Without a file, the confounds of each run are not searched for. The DICOM series is not included, since the
        hash of the input is that of its images.

        Raises:
            NotFoundError: the run has no confounds table.
        """
        used = self.scaling
        scaling = used and hashlib.sha256(used.median.tobytes() + used.spread.tobytes()).hexdigest()
        atlas = self.atlas and self.atlas.sha256
        said = {"repetition_time": self.repetition_time, "atlas": atlas, "scaling": scaling, "raw": self.raw or None}
        said["rows"] = self.rows
        said["xform"] = None if self.xform == "auto" else self.xform
        said["cleaning"] = self.denoising and self.denoising.changes(path)
        return {key: value for key, value in said.items() if value is not None}

    def check_tables(self, tables: Sequence[Path | None], spec: ScanSpec) -> None:
        """Check that confounds tables match runs one to one and come with a strategy.

        Args:
            tables: for each scan its table in the manifest, or None.
            spec: `card.scan` of the encoder.

        Raises:
            UsageError: one table for several runs, a table without strategy or the reverse, or an encoder without runs.
        """
        said = next((table for table in tables if table is not None), None)
        if said is not None:
            _refuse_denoising(spec)
            self.at(None, None, said)
        others = sum(table is None for table in tables)
        if self.denoising and others:
            self.denoising.check_table()
        if self.denoising and self.denoising.one_table and others > 1:
            raise UsageError(
                "one confounds table cannot belong to several runs",
                expected="--confounds auto: for each run the table that fMRIPrep wrote beside it; or a manifest with "
                "a column `confounds`",
                seen=f"one table, {others} runs",
            )


def _refuse_denoising(spec: ScanSpec) -> None:
    if not spec.takes_runs:
        raise UsageError(
            "this encoder does not take runs, so there are no frames to denoise",
            expected="no confounds, filters or choice of frames",
            seen=spec.describe(),
            hint="leave them out",
        )
