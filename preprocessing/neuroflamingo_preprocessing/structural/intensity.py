"""`match_to_template`: remove bias field, gain and contrast of the scanner, so that only the patient differs."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo_preprocessing.structural.template import GRID_SHAPE, Template, load_template

if TYPE_CHECKING:
    from jaxtyping import Float32
    from numpy.typing import NDArray

POLYNOMIAL_ORDER = 3
REWEIGHTINGS = 2
SINGLE_SHARE = 0.01  # of all voxels: more of them are no single ones
FIT_EVERY = 3  # fit to every third brain voxel: 23 unknowns need no more


@lru_cache(maxsize=1)
def _regressors() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Polynomial basis `[voxel, 20]`, tissue regressors `[voxel, 4]` and the brain mask on the model grid."""
    template = load_template()
    mask = template.grid_mask
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in GRID_SHAPE), indexing="ij")
    powers = [p for p in product(range(POLYNOMIAL_ORDER + 1), repeat=3) if sum(p) <= POLYNOMIAL_ORDER]
    basis = np.stack([np.prod([a[mask] ** k for a, k in zip(axes, p, strict=True)], axis=0) for p in powers], axis=1)
    t1, grey, white = (m[mask] for m in (template.grid_t1, template.grid_grey, template.grid_white))
    return basis.astype(np.float32), np.stack([t1, grey, white, np.ones_like(t1)], axis=1), mask


def _robust_fit(design: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Least squares with outliers (lesions) down-weighted twice, and a slight ridge to keep it solvable.

    In double precision: the normal matrix of a cubic polynomial is so ill-conditioned that in single precision the
    number of BLAS threads changes the third digit of the result.
    """
    rows, targets = design[::FIT_EVERY].astype(np.float64), values[::FIT_EVERY].astype(np.float64)
    weights = np.ones_like(targets)
    coefficients = np.zeros(rows.shape[1])
    for _ in range(1 + REWEIGHTINGS):
        weighted = rows * weights[:, None]
        normal = weighted.T @ rows
        normal += np.eye(len(normal)) * 1e-5 * np.trace(normal) / len(normal)
        coefficients = np.linalg.solve(normal, weighted.T @ targets)
        residual = targets - rows @ coefficients
        scale = 1.4826 * float(np.median(np.abs(residual))) + 1e-6
        weights = 1.0 / (1.0 + (residual / (2.0 * scale)) ** 2)
    return coefficients.astype(np.float32)


def within(voxels: Float32[np.ndarray, "x y z"], low: float, high: float) -> Float32[np.ndarray, "x y z"]:
    """Replace what lies beyond limits: single voxels by the median of their neighbours, larger parts by the limit.

    Without it one voxel of a million times the signal would be smeared into a lesion by the filter.
    """
    clipped = np.clip(voxels, low, high)
    places = np.argwhere(clipped != voxels)
    if not 0 < len(places) < SINGLE_SHARE * voxels.size:
        return clipped
    around = np.array(list(product((-1, 0, 1), repeat=3)))
    near = np.clip(places[:, None] + around, 0, np.array(voxels.shape) - 1)
    clipped[tuple(places.T)] = np.median(clipped[tuple(np.moveaxis(near, -1, 0))], axis=1)
    return clipped


def match_to_template(
    volume: Float32[np.ndarray, "x y z"], template: Template | None = None
) -> Float32[np.ndarray, "x y z"]:
    """Remove bias field, gain and tissue contrast of the scanner, so that a healthy head looks like the template.

    Inside the brain the scan is first fitted by `template * cubic polynomial`, which gives the gain field it is divided
    by, then by `a * template + b * grey + c * white + d`; the residual, in units of the scan's contrast, is added
    to the template. Both fits are linear and down-weight outliers, so lesions stay (differs from N4, which takes far
    longer and keeps the scanner's contrast).

    Args:
        volume: aligned scan on the model grid, any units, `[56, 64, 56]`.
        template: by default the one of `load_template`.

    Returns:
        float32 `[56, 64, 56]`, 0 outside the template brain, clipped to -1..3 (template white matter is about 0.8).

    Raises:
        ValueError: the brain of the volume is constant or not finite.
    """
    basis, tissue, mask = _regressors()
    values = volume[mask].astype(np.float32)
    spread = float(values.std())
    if not np.isfinite(spread) or spread <= 1e-12:
        raise ValueError("the volume is constant or not finite inside the template brain")
    values = values / np.float32(spread)
    gain = basis @ _robust_fit(basis * tissue[:, :1], values)
    typical = float(np.median(np.abs(gain))) + 1e-6
    values = values / np.clip(np.abs(gain), 0.4 * typical, 2.5 * typical)
    fitted = tissue @ _robust_fit(tissue, values)  # pyright: ignore[reportArgumentType]
    contrast = float(np.clip(fitted.std() / tissue[:, 0].std(), 0.3, 3.0))
    residual = (values - fitted) / contrast
    out = np.zeros(GRID_SHAPE, dtype=np.float32)
    out[mask] = np.clip((template or load_template()).grid_t1[mask] + residual, -1.0, 3.0)
    return out
