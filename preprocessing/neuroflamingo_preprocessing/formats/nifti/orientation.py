"""Affine of a NIfTI header: choice between sform and qform, checks against each other and the voxel sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.geometry import Affine, apply, corners, orientation_codes

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.formats.nifti.xform import Xform

MIN_EXTENT_MM, MAX_EXTENT_MM = 110.0, 700.0
SHEAR_WARN, SHEAR_REFUSE = 0.002, 0.05  # cosine between voxel axes
ZOOM_WARN, ZOOM_REFUSE, ZOOM_REFUSE_ALIGNED = 0.01, 0.10, 0.50  # pixdim against the affine's columns
SAME_PLACE_MM = 0.25  # a qform is stored in single precision, an error of up to a tenth of a millimetre at the edge
UNIT_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
UNIT_NAME = {0: "not stated, taken as mm", 1: "m", 2: "mm", 3: "um"}
CODE_NAME = {0: "unknown", 1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI152", 5: "other template"}
DAMAGED = "the header is damaged: convert the scan again from its source"


@dataclass(frozen=True)
class AffineChoice:
    """Affine in use (voxel index to world, RAS mm), the form it comes from, and the code of that form."""

    affine: Affine
    source: str
    code: int


def place_by_forms(
    header: Any, shape: tuple[int, int, int], name: str, xform: Xform, warnings: list[str]
) -> AffineChoice:
    """Affine of a NIfTI header, checked against the other form and the voxel sizes.

    With `auto` the sform if its code is above 0, else the qform, as nibabel and FSL choose. Two forms of different
    handedness are refused rather than chosen between: one of them swaps left and right, and only the user can find out
    which. A form that the user names is used even then, with a warning.

    Args:
        header: nibabel's, unchecked.
        shape: x, y, z.
        name: name of the file, for messages.
        xform: which form to use.
        warnings: extended in place.

    Raises:
        ScanError: no form with a code, not the one asked for, an unusable one; with `auto` also two forms of different
            handedness.
    """
    codes = {kind: int(header[f"{kind}_code"]) for kind in ("sform", "qform")}
    unit = int(header["xyzt_units"]) % 8
    if unit not in UNIT_TO_MM or any(code not in CODE_NAME for code in codes.values()):
        raise ScanError(
            f"{name}: the header has impossible codes",
            expected="units 0 to 3, sform and qform codes 0 to 5",
            seen=f"units {unit}, sform {codes['sform']}, qform {codes['qform']}",
            hint=DAMAGED,
        )
    source = _chosen(codes, xform, name)
    header = _with_qfac(header, codes, warnings)
    scale = np.diag([UNIT_TO_MM[unit]] * 3 + [1.0])
    with np.errstate(all="ignore"):  # numbers that are not finite are refused below
        affine = scale @ _matrix_of(header, source, name)
    check_columns(affine, name, source, warnings)
    zooms = np.abs(np.asarray(header["pixdim"][1:4], dtype=float)) * UNIT_TO_MM[unit]
    check_zooms(affine, zooms, name, warnings, aligned=codes[source] >= 3)
    _check_other(header, AffineChoice(affine, source, codes[source]), scale, shape, name, xform, warnings)
    check_extent(affine, shape, name, UNIT_NAME[unit])
    return AffineChoice(affine, source, codes[source])


def _chosen(codes: dict[str, int], xform: Xform, name: str) -> str:
    coded = [kind for kind, code in codes.items() if code > 0]
    if not coded:
        raise ScanError(
            f"{name} does not define its orientation, so left and right cannot be told apart",
            expected="an sform or a qform with a code above 0",
            seen="both codes are 0",
            hint="convert the scan again from DICOM, or set the orientation if you are certain of it",
        )
    if xform != "auto" and xform not in coded:
        raise ScanError(
            f"{name} has no {xform}, which was asked for",
            expected=f"a {xform} with a code above 0",
            seen=f"{xform} code 0, {coded[0]} code {codes[coded[0]]}",
            hint=f"--xform {coded[0]}, or leave out --xform",
        )
    return coded[0] if xform == "auto" else xform


def _with_qfac(header: Any, codes: dict[str, int], warnings: list[str]) -> Any:
    """Header with a qfac of 0 set to 1, as the NIfTI standard says; nibabel refuses 0."""
    if float(header["pixdim"][0]) != 0:
        return header
    if codes["qform"] > 0:
        warnings.append("the qform's handedness (pixdim[0]) is 0; it is taken as 1, as the NIfTI standard says")
    header = header.copy()
    header["pixdim"][0] = 1
    return header


def _matrix_of(header: Any, kind: str, name: str) -> Affine:
    try:
        matrix = header.get_sform() if kind == "sform" else header.get_qform()
    except Exception as error:  # nibabel raises several types for impossible quaternions and zooms
        raise ScanError(
            f"{name}: the {kind} cannot be decoded",
            expected="a rotation and three voxel sizes",
            seen=str(error),
            hint=DAMAGED,
        ) from error
    return np.asarray(matrix, dtype=np.float64)


def check_columns(affine: Affine, name: str, source: str, warnings: list[str]) -> None:
    """Check that an affine is finite, invertible and (nearly) without shear.

    Args:
        affine: voxel index to world mm.
        name, source: name of the file, and of the affine, for messages.
        warnings: extended in place.

    Raises:
        ScanError: an affine that cannot be used.
    """
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        usable = np.isfinite(affine).all() and bool((lengths > 1e-3).all()) and bool((np.abs(affine) < 1e6).all())
    if not usable:
        raise ScanError(
            f"{name}: the {source} is not a usable affine",
            expected="finite numbers and voxels of a positive size",
            seen=np.array2string(affine[:3], precision=4, separator=", "),
            hint=DAMAGED,
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


def check_zooms(
    affine: Affine, zooms: np.ndarray[Any, Any], name: str, warnings: list[str], *, aligned: bool = False
) -> None:
    """Check that the two statements of the voxel sizes agree; an sform to a template (`aligned`) may stretch them.

    Args:
        affine: voxel index to world mm.
        zooms: voxel sizes from `pixdim`, mm.
        name: name of the file, for messages.
        warnings: extended in place.
        aligned: True for an affine to a template.

    Raises:
        ScanError: they differ by more than 10 % (50 % if aligned).
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    with np.errstate(all="ignore"):
        off = float(np.max(np.abs(zooms / lengths - 1))) if np.isfinite(zooms).all() else np.inf
    words = f"pixdim {np.round(zooms, 3).tolist()} mm, affine columns {np.round(lengths, 3).tolist()} mm"
    if off > (ZOOM_REFUSE_ALIGNED if aligned else ZOOM_REFUSE):
        raise ScanError(
            f"{name}: the header states two different voxel sizes",
            expected="pixdim equal to the lengths of the affine's columns",
            seen=words,
            hint="convert the scan again from its source",
        )
    if off > ZOOM_WARN:
        warnings.append(f"voxel sizes are stated twice and differ; the affine is used: {words}")


def _check_other(
    header: Any,
    used: AffineChoice,
    scale: Affine,
    shape: tuple[int, int, int],
    name: str,
    xform: Xform,
    warnings: list[str],
) -> None:
    """Check the form that is not used: another handedness is refused with `auto`, another position gives a warning.

    A form without a code is meant to be ignored, so it can only give a warning, and only if it was ever set.
    """
    kind = "qform" if used.source == "sform" else "sform"
    coded = int(header[f"{kind}_code"]) > 0
    if not coded and not _was_set(header, kind):
        return
    try:
        with np.errstate(all="ignore"):
            other = scale @ _matrix_of(header, kind, name)
    except ScanError:
        if coded and xform == "auto":
            raise
        other = np.full((4, 4), np.nan)
    used_form = f"{used.source} ({CODE_NAME[used.code]}, {orientation_codes(used.affine)})"
    with np.errstate(all="ignore"):
        other_form = f"{kind} ({CODE_NAME[int(header[f'{kind}_code'])]}, {_codes_or_unusable(other)})"
        turned = np.linalg.det(used.affine[:3, :3]) * np.linalg.det(other[:3, :3])
        apart = np.linalg.norm(apply(used.affine, corners(shape)) - apply(other, corners(shape)), axis=1).max()
    if not (np.isfinite(other).all() and turned > 0):
        if coded and xform == "auto":
            raise ScanError(
                f"{name}: sform and qform disagree about which side is left",
                expected="two affines of the same handedness",
                seen=f"{used_form}, {other_form}",
                hint="find out which one is right, then --xform sform or --xform qform",
            )
        warnings.append(
            f"{used_form} and {other_form} disagree about which side is left; the {used.source} is used"
            if np.isfinite(other).all()
            else f"the {kind} cannot be used; the {used.source} is"
        )
    elif apart > SAME_PLACE_MM:
        distance = f"{apart:.{0 if apart > 1 else 1}f} mm"
        other_way = f" (--xform {kind} takes the other)" if coded and xform == "auto" else ""
        warnings.append(
            f"{used_form} and {other_form} differ by up to {distance}; the {used.source} is used{other_way}"
        )


def _was_set(header: Any, kind: str) -> bool:
    names = ("srow_x", "srow_y", "srow_z")
    if kind == "qform":
        names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    return any(np.any(np.asarray(header[field]) != 0) for field in names)


def _codes_or_unusable(affine: Affine) -> str:
    usable = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    return orientation_codes(affine) if usable else "unusable"


def check_extent(affine: Affine, shape: tuple[int, int, int], name: str, unit: str) -> None:
    """Check that the field of view can be a head's.

    Raises:
        ScanError: less than 110 mm along an axis, or more than 700 mm.
    """
    extent = np.linalg.norm(affine[:3, :3], axis=0) * shape
    seen = " x ".join(f"{mm:.0f}" for mm in extent) + f" mm (units {unit})"
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
