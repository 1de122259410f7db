"""Controls made of a scan file, as files: the same scan under another name, an empty one, and the mirrored head."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.user_files import check_input

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONTROLS = ("renamed", "blank", "mirrored")


def write_controls(scan: str | Path, folder: Path) -> dict[str, Path]:
    """Write the controls of a scan into a folder, all with one header: `renamed`, `blank` (zeros) and `mirrored`.

    The mirrored head is stored with left and right exchanged along the voxel axis that lies nearest to them, so that
    its world coordinates say the opposite side of everything.

    Args:
        scan: NIfTI or MGH, `[x, y, z]` or `[x, y, z, time]`.
        folder: each control gets a folder of its own in it, so that no file lies beside it, and no
            name tells what it is.

    Raises:
        NotFoundError: there is no such file.
        ScanError: not a volume or a run that can be read.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    path = Path(scan)
    check_input(path)
    try:
        image: Any = nib.load(path)
        voxels = np.asanyarray(image.dataobj)
        if voxels.ndim not in (3, 4) or voxels.dtype.names or not np.isfinite(image.affine).all():
            raise ValueError(f"shape {voxels.shape}")
    except (OSError, ValueError, EOFError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ScanError(
            f"no controls can be made of {path.name}",
            expected="a NIfTI or MGH file, a volume or a run",
            seen=str(error)[:200],
            hint="convert it to NIfTI first",
        ) from error
    axis = int(np.argmin(nib.orientations.io_orientation(image.affine)[:, 0]))
    made: dict[str, NDArray[Any]] = {
        "renamed": voxels,
        "blank": np.zeros_like(voxels),
        "mirrored": np.flip(voxels, axis),
    }
    return {name: _write(nib, made[name], image, folder / str(at)) for at, name in enumerate(CONTROLS)}


def _write(nib: Any, voxels: NDArray[Any], image: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    header = image.header if isinstance(image, nib.Nifti1Image) else None
    out = nib.Nifti1Image(voxels, image.affine, header, dtype=voxels.dtype if voxels.dtype != np.int64 else np.int32)
    path = folder / "scan.nii.gz"
    out.to_filename(path)
    return path
