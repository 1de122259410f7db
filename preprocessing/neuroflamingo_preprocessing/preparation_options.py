"""What a user may say about the way from files to tensors: atlas, scaling, denoising, repetition time, affine."""

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
    cleaning: Denoising | None = None
    series_sha256: str | None = None
    force: bool = False

    @classmethod
    def of(
        cls,
        spec: ScanSpec,
        *,
        atlas: str | Path | None = None,
        scaling: str | Path | None = None,
        cleaning: Denoising | None = None,
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
        said = {"repetition_time": repetition_time, "series": series}
        said["cleaning"] = confounds and replace(self.cleaning or Denoising(), confounds=confounds)
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
    if not spec.takes_runs:
        raise UsageError(
            "this encoder takes no runs, and nothing else has frames to clean",
            expected="no confounds, filters or choice of frames",
            seen=spec.describe(),
            hint="leave them out",
        )
