"""Quality checks of a prepared volume: what is refused, and what gives a warning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo_preprocessing.errors import ModelError, ScanError
from neuroflamingo_preprocessing.geometry import apply
from neuroflamingo_preprocessing.structural.resampling import nearest_values, resample
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE, grid_affine, load_template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.geometry import Affine
    from neuroflamingo_preprocessing.scan import Scan
    from neuroflamingo_preprocessing.spec import ScanSpec
    from neuroflamingo_preprocessing.structural.alignment import Alignment
    from neuroflamingo_preprocessing.structural.contrast import Contrast

FIT_REFUSE, FIT_WARN = 0.3, 0.45
OVERLAP_REFUSE, OVERLAP_WARN = 0.8, 0.88
SECOND_BRAIN = 0.4
"""Size of a second brain, as a share of the first, above which a volume shows two heads."""
BRAIN_ML = (330.0, 4200.0)
"""Volumes of brains that are placed: 70 to 130 % of an adult's size (1,000 to 1,900 ml) along each axis."""
ADULT_ML = (900.0, 2000.0)
COVERAGE_REFUSE, COVERAGE_WARN = 0.8, 0.98
STRETCH_REFUSE, STRETCH_WARN = 1.6, 1.3
SURE_WHITE = 0.9
SNR_WARN = 5.0
"""Rose's criterion (1948): at a lower SNR, details cannot be told from noise with certainty."""


@dataclass(frozen=True)
class Quality:
    """Quality measures of a prepared volume.

    Attributes:
        correlation: correlation of the aligned scan with the template inside the brain, below 0 where light and dark
            are exchanged; None without alignment.
        coverage: share of the template brain (of the grid, for an encoder without template) inside the field of view.
        snr: median of the white matter divided by its standard deviation, as MRIQC's SNR of one tissue (bias field and
            noise both lower it); None without a template, or where little white matter is in view.
        smoothness, ghosts, spikes: see `Artefacts`; None without a template.
        overlap: Dice coefficient of the aligned brain mask and the template's; None without alignment.
        brain_ml: volume of the scan's brain mask in millilitres; None without alignment.
        contrast: what kind of image it is; None without alignment.
    """

    correlation: float | None
    coverage: float
    snr: float | None = None
    smoothness: float | None = None
    ghosts: float | None = None
    spikes: float | None = None
    overlap: float | None = None
    brain_ml: float | None = None
    contrast: Contrast | None = None


def name_of(scan: Scan) -> str:
    """Name of the scan in messages."""
    return scan.provenance.file or "the scan"


def on_template_grid(spec: ScanSpec) -> bool:
    """True if the encoder's grid is the model grid, on which the template is kept."""
    return spec.grid_shape == GRID_SHAPE and np.allclose(spec.grid_affine, grid_affine())


def judge_alignment(alignment: Alignment, contrast: Contrast, scan: Scan, warnings: list[str]) -> None:
    """Refuse what is no head, or one that is too small, too large or not placed; warn about a doubtful pose.

    Args:
        alignment: result of `align`.
        contrast: what kind of image it is; agreement inside the brain is asked of T1-weighted heads alone.
        scan: for messages.
        warnings: extended in place.

    Raises:
        ScanError: no brain, more than one, a brain of another size, or none that fits the template (exit 65).
    """
    volume = alignment.brain.volume_ml
    if not volume:
        raise ScanError(
            f"{name_of(scan)}: no brain was found",
            expected="an MRI of a head",
            seen=f"{' x '.join(str(n) for n in scan.voxels.shape)} voxels without anything like a brain",
            hint="look at the scan",
        )
    if not BRAIN_ML[0] <= volume <= BRAIN_ML[1]:
        raise ScanError(
            f"{name_of(scan)} is far {'smaller' if volume < BRAIN_ML[0] else 'larger'} than an adult's head",
            expected=f"a brain of {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} ml: 70 to 130 % of an adult's along each axis",
            seen=f"{volume:.0f} ml",
            hint="check the voxel size in the header; heads of infants and animals are not read",
        )
    if alignment.brain.second > SECOND_BRAIN:
        raise ScanError(
            f"{name_of(scan)} shows more than one brain",
            expected="one head",
            seen=f"a second part, {alignment.brain.second:.0%} as large as the largest that looks like a brain",
            hint="give one head at a time: cut the volume, or take the files that it was joined from",
        )
    _judge_pose(alignment, contrast, scan, warnings)
    if not ADULT_ML[0] <= volume <= ADULT_ML[1]:
        warnings.append(
            f"the brain has {volume:.0f} ml, an adult's has 1,000 to 1,900: the voxel sizes in the header may be "
            "wrong, or it is a child's"
        )
    if alignment.turned:
        warnings.append(
            "the head is turned by 90 degrees or more against its header: the header may be wrong, and then left and "
            "right may be wrong too"
        )


def _judge_pose(alignment: Alignment, contrast: Contrast, scan: Scan, warnings: list[str]) -> None:
    """Refuse a head that is not placed, or doubtful in two ways; warn of one that is doubtful in one."""
    stretch = np.linalg.svd(alignment.scan_to_template[:3, :3], compute_uv=False)
    stretched = stretch.max() / stretch.min()
    fit = alignment.fit if contrast.kind in ("T1w", "unknown") else 1.0
    doubts = (fit < FIT_WARN, alignment.overlap < OVERLAP_WARN, stretched > STRETCH_WARN)
    lost = fit < FIT_REFUSE or alignment.overlap < OVERLAP_REFUSE or stretched > STRETCH_REFUSE
    # Half a brain can be stretched to a whole one's outline, but then it is doubtful in every way.
    if lost or sum(doubts) > 1:
        raise ScanError(
            f"{name_of(scan)} cannot be placed in the template brain",
            expected=f"outline and structure of one whole brain (overlap of the outlines at least {OVERLAP_WARN}, "
            f"agreement inside at least {FIT_WARN}, scaling alike within {STRETCH_WARN:g}: at most one of them less)",
            seen=f"overlap {alignment.overlap:.2f}, agreement {alignment.fit:.2f}, scaling {stretch.min():.2f} to "
            f"{stretch.max():.2f} along the axes, {alignment.starts} starting poses tried",
            hint="look at the scan: is it one whole head, is anything cut off, is the voxel size right?",
        )
    if any(doubts):
        warnings.append(
            f"alignment is doubtful (the outlines of the brains overlap by {alignment.overlap:.2f}, agreement inside "
            f"{alignment.fit:.2f}, one axis is scaled {stretched:.2f} times as much as another)"
        )


def judge_contrast(contrast: Contrast, spec: ScanSpec, scan: Scan, warnings: list[str], *, force: bool) -> str | None:
    """Hold what the image is against what the encoder takes.

    Args:
        contrast: result of `find_contrast`.
        spec: `card.scan` of the encoder.
        scan: for messages.
        warnings: extended in place.
        force: go on with an image of another kind.

    Returns:
        What was forced, for the top of the report; None if nothing was.

    Raises:
        ScanError: the image is of another kind (exit 65).
    """
    wanted = spec.channels[0]
    if contrast.enhanced:
        warnings.append(
            f"{contrast.bright_share:.1%} of the brain is far brighter than white matter: contrast agent or artefacts, "
            "which may be taken for lesions"
        )
    if wanted != "T1w" or contrast.kind == wanted:
        return None
    if contrast.kind == "unknown":
        warnings.append("by its tissues, this may not be a T1-weighted head")
        return None
    seen = _KINDS[contrast.kind]
    if force:
        return f"Forced: by its tissues, {name_of(scan)} is {seen}, and the model reads T1-weighted heads only."
    if contrast.fluid is not None:
        seen += f": white matter being 1, fluid is {contrast.fluid:.2f} and deep grey matter {contrast.deep_grey:.2f}"
    raise ScanError(
        f"{name_of(scan)} does not look T1-weighted",
        expected="white matter brighter than grey matter, and that brighter than fluid",
        seen=seen,
        hint="give the T1-weighted series, or --force if this is one",
    )


_KINDS = {
    "T2w": "T2-weighted, or has light and dark exchanged",
    "FLAIR": "a FLAIR image",
    "PDw": "proton-density-weighted",
    "CT": "computed tomography",
}


def brain_on_grid(spec: ScanSpec) -> NDArray[np.bool_]:
    """Mask of the template brain on the encoder's grid, `[x, y, z]`."""
    if on_template_grid(spec):
        return load_template().grid_mask
    return _resampled_brain(spec.grid_shape, tuple(spec.grid_affine.ravel().tolist()))


@lru_cache(maxsize=8)
def _resampled_brain(shape: tuple[int, int, int], affine: tuple[float, ...]) -> NDArray[np.bool_]:
    template = load_template()
    return resample(template.mask, template.affine, shape, np.reshape(affine, (4, 4)), 0.0, 0.0) > 0.5


def judge_coverage(covered: NDArray[np.bool_], spec: ScanSpec, scan: Scan, warnings: list[str]) -> float:
    """Share of the brain inside the field of view; refuses a low one, warns about a middling one.

    Args:
        covered: see `covered_voxels`.
        spec: `card.scan` of the encoder.
        scan: for messages.
        warnings: extended in place.

    Raises:
        ScanError: less than 80 % of the brain (exit 65).
        ModelError: the encoder's grid holds no brain (exit 65).
    """
    if spec.template is None:
        return float(covered.mean())
    brain = brain_on_grid(spec)
    if not brain.any():
        raise ModelError(
            "the encoder's grid does not lie in the brain",
            expected=f"a grid in {spec.template}",
            seen=f"spacing {spec.spacing_mm}, origin {spec.origin_mm}, {spec.grid_shape} voxels",
            hint="correct origin_mm in the encoder's card",
            exit_code=65,
        )
    coverage = float(covered[brain].mean())
    if coverage < COVERAGE_REFUSE:
        raise ScanError(
            f"{name_of(scan)} shows only {coverage:.0%} of the brain",
            expected=f"at least {COVERAGE_REFUSE:.0%}",
            seen=f"a field of view of {' x '.join(f'{n * s:.0f}' for n, s in _extent(scan))} mm",
            hint="give the whole-head series",
        )
    if coverage < COVERAGE_WARN:
        warnings.append(f"{1 - coverage:.0%} of the brain lies outside the field of view and was not read")
    return coverage


def judge_crop(cropped: NDArray[np.float32], voxels: NDArray[np.float32], warnings: list[str]) -> float:
    """Share of what is not 0 that a crop keeps, with a warning that the rest is not read."""
    kept = float(np.count_nonzero(cropped) / max(np.count_nonzero(voxels), 1))
    if kept < COVERAGE_WARN:
        size = " x ".join(map(str, cropped.shape))
        warnings.append(
            f"the encoder reads {size} voxels: {1 - kept:.0%} of what is not 0 lies outside, and is not read"
        )
    return kept


def judge_overlap(
    first: NDArray[np.bool_], other: NDArray[np.bool_], scan: Scan, further: Scan, warnings: list[str]
) -> None:
    """Refuse a further channel that lies elsewhere, and warn where it does not cover what the first one does.

    Args:
        first, other: `covered_voxels` of the two.
        scan, further: for messages.
        warnings: extended in place.

    Raises:
        ScanError: less than 80 % of the first one's field (exit 65).
    """
    warnings += [f"{name_of(further)}: {words}" for words in further.provenance.warnings]
    shared = float(other[first].mean()) if first.any() else 0.0
    if shared < COVERAGE_REFUSE:
        raise ScanError(
            f"{name_of(further)} does not lie where {name_of(scan)} does",
            expected="channels that are registered to each other",
            seen=f"it covers {shared:.0%} of what is read of the other",
            hint="register them to each other, and write both on one grid",
        )
    if shared < COVERAGE_WARN:
        warnings.append(f"{name_of(further)} does not cover {1 - shared:.0%} of what is read of {name_of(scan)}")


def white_matter_snr(scan: Scan, scan_to_template: Affine) -> float | None:
    """SNR of white matter at the scan's resolution, over the voxels nearest to the template's certain white matter."""
    points = apply(grid_affine(), np.argwhere(load_template().grid_white > SURE_WHITE))
    values = nearest_values(scan.voxels, scan_to_template @ scan.affine, points)
    if len(values) < 100:
        return None
    spread = float(values.std(ddof=1))
    return float(np.median(values)) / spread if spread > 0 else None


def judge_noise(scan: Scan, scan_to_template: Affine, spec: ScanSpec, warnings: list[str]) -> float | None:
    """SNR of a scan for an encoder in template space, with a warning if it is low."""
    snr = white_matter_snr(scan, scan_to_template) if spec.template else None
    if snr is not None and snr < SNR_WARN:
        warnings.append(f"the white matter is noisy or uneven (signal-to-noise ratio {snr:.1f}, below {SNR_WARN:g})")
    return snr


def _extent(scan: Scan) -> zip[tuple[int, float]]:
    return zip(scan.voxels.shape, scan.spacing, strict=True)
