"""Header checks, made before any voxel is read: what keeps left left and a lying header harmless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.geometry import Affine, apply, corners, orientation_codes

MAX_VOXELS = 2**29  # 2 GiB as float32; a whole head at 0.25 mm has 450 million
MIN_EXTENT_MM, MAX_EXTENT_MM = 110.0, 700.0
SHEAR_WARN, SHEAR_REFUSE = 0.002, 0.05  # cosine between voxel axes
ZOOM_WARN, ZOOM_REFUSE, ZOOM_REFUSE_ALIGNED = 0.01, 0.10, 0.50  # pixdim against the affine's columns
UNIT_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
UNIT_NAME = {0: "not stated, taken as mm", 1: "m", 2: "mm", 3: "um"}
CODE_NAME = {0: "unknown", 1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI152", 5: "other template"}
NUMBERS = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # NIfTI codes of real integers and floats up to 64 bit


@dataclass(frozen=True)
class CheckedHeader:
    """What a header says, after the checks.

    Attributes:
        shape: x, y, z.
        frames: volumes, 1 for a single one.
        dtype: stored type, in the file's byte order.
        offset: first byte of the voxels.
        slope, inter: scaling of stored values.
        affine: voxel to world, RAS mm.
        facts: for the provenance.
        warnings: what is odd but usable.
    """

    shape: tuple[int, int, int]
    frames: int
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine: Affine
    facts: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of voxels that the file must hold after the offset."""
        return self.frames * self.frame_bytes

    @property
    def frame_bytes(self) -> int:
        """Bytes of one volume."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def check_header(header: Any, name: str, *, run: bool = False) -> CheckedHeader:
    """Check a nibabel NIfTI-1 or NIfTI-2 header.

    Args:
        header: as parsed, not yet believed.
        name: the file, for messages.
        run: a time series of volumes is wanted, not a single one.

    Raises:
        ScanError: anything that would make voxels, their place or their side uncertain.
    """
    warnings: list[str] = []
    shape, frames = _check_shape(header, name, run)
    dtype = _check_dtype(header, name)
    offset = float(header["vox_offset"])
    smallest = int(header["sizeof_hdr"]) + 4
    if not (smallest <= offset <= 2**24 and offset == int(offset)):
        raise ScanError(
            f"{name}: the header points to voxels at an impossible place",
            expected=f"vox_offset from {smallest} to {2**24}",
            seen=str(offset),
            hint="the header is damaged: convert the scan again from its source",
        )
    slope, inter = _check_scaling(header, name)
    affine, source = _check_affine(header, shape, name, warnings)
    facts = {
        "format": "NIfTI-2" if int(header["sizeof_hdr"]) == 540 else "NIfTI-1",
        "shape": " x ".join(map(str, (*shape, frames) if run else shape)),
        "stored type": str(dtype),
        "units": UNIT_NAME[int(header["xyzt_units"]) % 8],
        "sform": CODE_NAME[int(header["sform_code"])],
        "qform": CODE_NAME[int(header["qform_code"])],
        "affine from": source,
        "orientation": orientation_codes(affine),
    }
    return CheckedHeader(shape, frames, dtype, int(offset), slope, inter, affine, facts, tuple(warnings))


def _check_shape(header: Any, name: str, run: bool) -> tuple[tuple[int, int, int], int]:
    dim = [int(n) for n in header["dim"]]
    count = dim[0]
    if not 1 <= count <= 7 or min(dim[1 : count + 1]) < 1:
        raise ScanError(
            f"{name}: the header's dimensions are impossible",
            expected="1 to 7 axes of at least one voxel",
            seen=f"dim = {dim}",
            hint="the header is damaged: convert the scan again from its source",
        )
    sizes = dim[1 : count + 1]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    seen = " x ".join(map(str, sizes))
    if run and len(sizes) != 4:
        raise ScanError(
            f"{name} is no time series",
            expected="a run of at least two 3D volumes",
            seen=seen,
            hint="give the fMRI run (its name often ends in _bold.nii.gz)",
        )
    if len(sizes) > 3 and not run:
        raise ScanError(
            f"{name} holds {int(np.prod(sizes[3:], dtype=object))} volumes",
            expected="one 3D volume",
            seen=seen,
            hint="extract one volume first, or give the T1-weighted scan instead of the time series",
        )
    if len(sizes) < 3 or min(sizes[:3]) < 2:
        raise ScanError(
            f"{name} is a single slice",
            expected="a 3D volume of a whole head",
            seen=f"a {len(sizes)}D picture, {seen}",
            hint="stack the slices of the series into one volume (dcm2niix does it)",
        )
    voxels = int(np.prod(sizes[:3], dtype=object))
    if voxels > MAX_VOXELS:
        raise ScanError(
            f"{name}: the header claims {voxels:.3g} voxels",
            expected=f"at most {MAX_VOXELS:.3g}",
            seen=seen,
            hint="a whole head has a few million voxels: the header is damaged, or resample the scan to 0.5 mm",
        )
    return (sizes[0], sizes[1], sizes[2]), sizes[3] if run else 1


def _check_dtype(header: Any, name: str) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in NUMBERS:
        raise ScanError(
            f"{name}: voxels of this type cannot be read",
            expected="integers or floats up to 64 bit",
            seen=f"NIfTI datatype code {code}",
            hint="save the scan as float32 (colours and complex numbers are no T1-weighted scan)",
        )
    dtype = header.get_data_dtype()
    if int(header["bitpix"]) != dtype.itemsize * 8:
        raise ScanError(
            f"{name}: the header contradicts itself about the size of a voxel",
            expected=f"bitpix {dtype.itemsize * 8} for {dtype}",
            seen=f"bitpix {int(header['bitpix'])}",
            hint="the header is damaged: convert the scan again from its source",
        )
    return dtype


def _check_scaling(header: Any, name: str) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means unscaled, as the NIfTI standard and nibabel say."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(inter):
        raise ScanError(
            f"{name}: the scaling of the voxels is not finite",
            expected="finite scl_slope and scl_inter",
            seen=f"{slope}, {inter}",
            hint="save the scan again without scaling",
        )
    return slope, inter


def _check_affine(header: Any, shape: tuple[int, int, int], name: str, warnings: list[str]) -> tuple[Affine, str]:
    codes = {kind: int(header[f"{kind}_code"]) for kind in ("sform", "qform")}
    unit = int(header["xyzt_units"]) % 8
    if unit not in UNIT_TO_MM or any(code not in CODE_NAME for code in codes.values()):
        raise ScanError(
            f"{name}: the header has impossible codes",
            expected="units 0 to 3, sform and qform codes 0 to 5",
            seen=f"units {unit}, sform {codes['sform']}, qform {codes['qform']}",
            hint="the header is damaged: convert the scan again from its source",
        )
    scale = np.diag([UNIT_TO_MM[unit]] * 3 + [1.0])
    with np.errstate(all="ignore"):  # numbers that are not finite are refused below
        found = {kind: scale @ _matrix_of(header, kind, name) for kind, code in codes.items() if code > 0}
    if not found:
        raise ScanError(
            f"{name} does not say how it lies in the world, so left and right cannot be told",
            expected="an sform or a qform with a code above 0",
            seen="both codes are 0",
            hint="convert the scan again from DICOM, or set the orientation that you are certain of",
        )
    source = "sform" if "sform" in found else "qform"
    affine = found[source]
    _check_columns(affine, name, source, warnings)
    zooms = np.abs(np.asarray(header["pixdim"][1:4], dtype=float)) * UNIT_TO_MM[unit]
    _check_zooms(affine, zooms, codes[source], name, warnings)
    if len(found) == 2:
        _check_agreement(found["sform"], found["qform"], codes, shape, name, warnings)
    _check_extent(affine, shape, name, unit)
    return affine, source


def _matrix_of(header: Any, kind: str, name: str) -> Affine:
    try:
        matrix = header.get_sform() if kind == "sform" else header.get_qform()
    except Exception as error:  # nibabel raises several types for impossible quaternions and zooms
        raise ScanError(
            f"{name}: the {kind} cannot be decoded",
            expected="a rotation and three voxel sizes",
            seen=str(error),
            hint="the header is damaged: convert the scan again from its source",
        ) from error
    return np.asarray(matrix, dtype=np.float64)


def _check_columns(affine: Affine, name: str, source: str, warnings: list[str]) -> None:
    """Finite, invertible, and (nearly) rectangular."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        usable = np.isfinite(affine).all() and bool((lengths > 1e-3).all()) and bool((np.abs(affine) < 1e6).all())
    if not usable:
        raise ScanError(
            f"{name}: the {source} is not a usable affine",
            expected="finite numbers and voxels of a positive size",
            seen=np.array2string(affine[:3], precision=4, separator=", "),
            hint="the header is damaged: convert the scan again from its source",
        )
    directions = affine[:3, :3] / lengths
    volume = abs(float(np.linalg.det(directions)))
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, 1)].max()
    if volume < 0.1 or cosines > SHEAR_REFUSE:
        raise ScanError(
            f"{name}: the {source} is {'singular' if volume < 1e-3 else 'sheared'}",
            expected=f"voxel axes at right angles (cosine at most {SHEAR_REFUSE})",
            seen=f"cosine {cosines:.3f}, unit volume {volume:.3f}",
            hint="resample the scan to a rectangular grid first (gantry tilt), or convert it again",
        )
    if cosines > SHEAR_WARN:
        warnings.append(f"the {source} is slightly sheared (cosine {cosines:.4f} between voxel axes)")


def _check_zooms(affine: Affine, zooms: np.ndarray[Any, Any], code: int, name: str, warnings: list[str]) -> None:
    """Voxel sizes said twice must agree; an sform to a template may stretch them."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    with np.errstate(all="ignore"):
        off = float(np.max(np.abs(zooms / lengths - 1))) if np.isfinite(zooms).all() else np.inf
    words = f"pixdim {np.round(zooms, 3).tolist()} mm, affine columns {np.round(lengths, 3).tolist()} mm"
    if off > (ZOOM_REFUSE_ALIGNED if code >= 3 else ZOOM_REFUSE):
        raise ScanError(
            f"{name}: the header states two different voxel sizes",
            expected="pixdim equal to the lengths of the affine's columns",
            seen=words,
            hint="convert the scan again from its source",
        )
    if off > ZOOM_WARN:
        warnings.append(f"voxel sizes are stated twice and differ; the affine is used: {words}")


def _check_agreement(
    sform: Affine, qform: Affine, codes: dict[str, int], shape: tuple[int, int, int], name: str, warnings: list[str]
) -> None:
    """The sform is used; a qform of the other handedness would swap left and right, so that is refused."""
    if not np.isfinite(qform).all() or np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) <= 0:
        raise ScanError(
            f"{name}: sform and qform disagree about which side is left",
            expected="two affines of one handedness",
            seen=f"sform {orientation_codes(sform)}, qform {_codes_or_unusable(qform)}",
            hint="find out which one is right and delete the other, or convert the scan again from DICOM",
        )
    apart = float(np.linalg.norm(apply(sform, corners(shape)) - apply(qform, corners(shape)), axis=1).max())
    if apart > 1.0:
        warnings.append(
            f"sform ({CODE_NAME[codes['sform']]}, {orientation_codes(sform)}) and qform ({CODE_NAME[codes['qform']]}, "
            f"{orientation_codes(qform)}) differ by up to {apart:.0f} mm; the sform is used"
        )


def _codes_or_unusable(affine: Affine) -> str:
    usable = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    return orientation_codes(affine) if usable else "unusable"


def _check_extent(affine: Affine, shape: tuple[int, int, int], name: str, unit: int) -> None:
    extent = np.linalg.norm(affine[:3, :3], axis=0) * shape
    seen = " x ".join(f"{mm:.0f}" for mm in extent) + f" mm (units {UNIT_NAME[unit]})"
    if extent.min() < MIN_EXTENT_MM:
        raise ScanError(
            f"{name} does not show a whole head",
            expected=f"a field of view of at least {MIN_EXTENT_MM:.0f} mm along every axis",
            seen=seen,
            hint="give the whole-head series; if the units are wrong, correct the header",
        )
    if extent.max() > MAX_EXTENT_MM:
        raise ScanError(
            f"{name} is too large for a head",
            expected=f"a field of view of at most {MAX_EXTENT_MM:.0f} mm",
            seen=seen,
            hint="the header's units or voxel sizes are wrong: correct them",
        )
