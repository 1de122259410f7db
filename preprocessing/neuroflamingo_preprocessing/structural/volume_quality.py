"""Quality checks of a prepared volume: what is refused, and what gives a warning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.structural.resampling import resample
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE, grid_affine, load_template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.geometry import Affine
    from neuroflamingo_preprocessing.scan import Scan
    from neuroflamingo_preprocessing.spec import ScanSpec
    from neuroflamingo_preprocessing.structural.alignment import Alignment

CORRELATION_REFUSE, CORRELATION_WARN = 0.3, 0.4
COVERAGE_REFUSE, COVERAGE_WARN = 0.8, 0.98
SCALE_RANGE = (0.6, 1.6)
ADULT_SIZES = (0.78, 1.3)
"""Scaling to the template, as the cube root of the change of volume, outside of which a head is not an adult's: 21 real
adults' lay between 1.09 and 1.25 (the template is a large head)."""
SURE_WHITE = 0.9
SNR_WARN = 5.0
"""Rose's criterion (1948): at a lower SNR, details cannot be told from noise with certainty."""


@dataclass(frozen=True)
class Quality:
    """Quality measures of a prepared volume.

    Attributes:
        correlation: correlation of the aligned scan with the template inside the brain; None without alignment.
        coverage: share of the template brain (of the grid, for an encoder without template) inside the field of view.
        snr: median of the white matter divided by its standard deviation, as MRIQC's SNR of one tissue (bias field and
            noise both lower it); None without a template, or where little white matter is in view.
        smoothness, ghosts, spikes: see `Artefacts`; None without a template.
    """

    correlation: float | None
    coverage: float
    snr: float | None = None
    smoothness: float | None = None
    ghosts: float | None = None
    spikes: float | None = None


def name_of(scan: Scan) -> str:
    """Name of the scan in messages."""
    return scan.provenance.file or "the scan"


def on_template_grid(spec: ScanSpec) -> bool:
    """True if the encoder's grid is the model grid, on which the template is kept."""
    return spec.grid_shape == GRID_SHAPE and np.allclose(spec.grid_affine, grid_affine())


def judge_alignment(alignment: Alignment, scan: Scan, warnings: list[str]) -> None:
    """Refuse an alignment that cannot be a head's, and warn about a doubtful pose.

    Args:
        alignment: result of `align`.
        scan: for messages.
        warnings: extended in place.

    Raises:
        ScanError: low correlation, or implausible scaling (exit 65).
    """
    stretch = np.linalg.svd(alignment.scan_to_template[:3, :3], compute_uv=False)
    upright = np.linalg.det(alignment.scan_to_template[:3, :3]) > 0
    in_range = SCALE_RANGE[0] <= stretch.min() and stretch.max() <= SCALE_RANGE[1]
    if alignment.correlation < CORRELATION_REFUSE or not upright:
        raise ScanError(
            f"{name_of(scan)} cannot be aligned to the template brain",
            expected=f"a T1-weighted head (correlation with the template at least {CORRELATION_REFUSE})",
            seen=f"correlation {alignment.correlation:.2f}, scaling {stretch.min():.2f} to {stretch.max():.2f}, "
            f"{alignment.starts} starting poses tried",
            hint="check that the file is a T1-weighted whole head and that its orientation is right",
        )
    size = float(np.prod(stretch) ** (1 / 3))
    if not in_range:
        raise ScanError(
            f"{name_of(scan)} is far {'smaller' if size > 1 else 'larger'} than an adult's head",
            expected=f"a head that is scaled by {SCALE_RANGE[0]:g} to {SCALE_RANGE[1]:g} to fit the adult template",
            seen=f"scaled by {stretch.min():.2f} to {stretch.max():.2f} (correlation {alignment.correlation:.2f})",
            hint="check the voxel sizes in the header; heads of infants are not what this encoder was made for",
        )
    if not ADULT_SIZES[0] <= size <= ADULT_SIZES[1]:
        warnings.append(
            f"the head has {1 / size:.0%} of the adult template's size along each axis: the voxel sizes in the header "
            "may be wrong, or it is a child's"
        )
    if alignment.correlation < CORRELATION_WARN:
        warnings.append(f"alignment is doubtful (correlation with the template {alignment.correlation:.2f})")
    if alignment.turned:
        warnings.append(
            "the head is turned by 90 degrees or more against its header: the header may be wrong, and then left and "
            "right may be wrong too"
        )


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
    """
    if spec.template is None:
        return float(covered.mean())
    coverage = float(covered[brain_on_grid(spec)].mean())
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


def white_matter_snr(scan: Scan, scan_to_template: Affine) -> float | None:
    """SNR of white matter at the scan's resolution, over the voxels nearest to the template's certain white matter."""
    index = np.argwhere(load_template().grid_white > SURE_WHITE)
    world = index @ grid_affine()[:3, :3].T + grid_affine()[:3, 3]
    to_voxel = np.linalg.inv(scan_to_template @ scan.affine)
    voxel = np.rint(world @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)
    values = scan.voxels[tuple(voxel[((voxel >= 0) & (voxel < scan.voxels.shape)).all(axis=1)].T)].astype(np.float64)
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
