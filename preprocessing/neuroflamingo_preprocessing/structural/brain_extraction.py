"""`find_brain`: the brain mask of a scan at about 2 mm, by deepbet's first network, or as the scan came."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import NotFoundError
from neuroflamingo_preprocessing.files import sha256_of
from neuroflamingo_preprocessing.geometry import Affine, block_mean
from neuroflamingo_preprocessing.structural.resampling import resample

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32
    from numpy.typing import NDArray

SIZE = 128
"""Voxels of the network's input along each axis, whatever the scan's shape."""
WEIGHTS = "data/models/bbox_model.pt"
WEIGHTS_SHA256 = "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa"
NORMAL_MEAN, NORMAL_SPREAD = 0.449, 0.226  # what the network was trained with
DARKEST, BRIGHTEST = 0.005, 0.995  # quantiles that are black and white to the network
BACKGROUND = 0.02  # of the brightest: what differs less from the border of the volume is background
BEYOND = 0.5  # of the range of the brain's signal that may lie below and above it
SHELL_FROM, NO_SHELL_FROM = 0.6, 0.8  # share of everything but background that the network takes for brain
ALIKE = 0.6  # share of the largest part's lengths that another one has that may be a second brain
TOUCHING, TOUCH_VOXELS = 0.3, 2  # share of the surface that lies so near to it: then nothing surrounds the brain


@dataclass(frozen=True)
class Brain:
    """Brain mask of a scan.

    Attributes:
        mask: on a grid over the whole scan, `[128, 128, 128]`.
        affine: that grid's voxel index to the scan's world, RAS mm.
        given: true if the scan came without skull; the mask is then what is not background.
        limits: what lies beyond is no signal of a brain, in the scan's units; single wrong voxels would be smeared.
        second: size of the next largest part that could be a brain, as a share of the largest: near 0 in a scan of one
            head.
    """

    mask: Bool[np.ndarray, "x y z"]
    affine: Affine
    given: bool
    limits: tuple[float, float]
    second: float = 0.0

    @property
    def volume_ml(self) -> float:
        """Volume in millilitres."""
        return float(self.mask.sum() * abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    @property
    def centre(self) -> NDArray[np.float64]:
        """Centre of mass in the scan's world, mm."""
        return self.affine[:3, :3] @ np.argwhere(self.mask).mean(axis=0) + self.affine[:3, 3]

    def on_grid(self, to_world: Affine, shape: tuple[int, int, int], affine: Affine) -> Bool[np.ndarray, "x y z"]:
        """The mask on another grid.

        Args:
            to_world: the scan's world to that of the grid, mm.
            shape, affine: the grid.
        """
        return resample(self.mask.astype(np.float32), to_world @ self.affine, shape, affine, 0.0, 0.0) > 0.5


def find_brain(voxels: Float32[np.ndarray, "x y z"], affine: Affine, size: int = SIZE) -> Brain:
    """Find the brain of a T1-weighted head (others work less well), in some 0.5 CPU seconds.

    The network of Fisch et al. 2024 (deepbet, MIT) sees the whole volume as 128 x 128 x 128 voxels. It was trained on
    whole heads; a scan that comes without skull is recognised by it, and keeps the mask that it came with.

    Args:
        voxels: `[x, y, z]`, axes nearest to right, anterior, superior; any units.
        affine: voxel index to world, RAS mm.
        size: voxels along each axis of what the network sees, a multiple of 32; 96 takes less than half the time.

    Raises:
        NotFoundError: deepbet is missing, or is another version (exit 66).
    """
    sampled, grid = _sample(voxels, affine, size)
    low, high = (float(limit) for limit in np.quantile(sampled, (DARKEST, BRIGHTEST)))
    brain = anything = np.zeros(sampled.shape, bool)
    second = other = 0.0
    if high > low:
        scaled = np.clip((sampled - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
        brain, second = _solid(_network_mask(scaled))
        anything, other = _solid(_not_background(sampled, high))
    given = bool(brain.any() and _without_skull(brain, anything))
    mask = anything if given else brain
    limits = _limits(sampled[mask]) if mask.any() else (low, high)
    return Brain(mask, grid, given, limits, max(second, other) if given else second)


def _without_skull(brain: NDArray[np.bool_], anything: NDArray[np.bool_]) -> bool:
    """Whether nothing but the brain is in a scan: it fills what is there, or in doubt reaches its surface."""
    from scipy.ndimage import binary_dilation, binary_erosion

    filled = (brain & anything).sum() / max(1, anything.sum())
    if not SHELL_FROM < filled < NO_SHELL_FROM:
        return bool(filled >= NO_SHELL_FROM)
    surface = anything & ~np.asarray(binary_erosion(anything))
    near = np.asarray(binary_dilation(brain, iterations=TOUCH_VOXELS))
    return bool((near & surface).sum() > TOUCHING * surface.sum())


def _limits(values: NDArray[np.float32]) -> tuple[float, float]:
    low, high = np.quantile(values, (DARKEST, BRIGHTEST))
    return float(low - BEYOND * (high - low)), float(high + BEYOND * (high - low))


def _sample(voxels: NDArray[Any], affine: Affine, size: int) -> tuple[NDArray[np.float32], Affine]:
    """Nearest voxels at the centres of equal parts of each axis, after averaging of finer ones."""
    x, y, z = (max(1, n // (2 * size)) for n in voxels.shape)
    voxels, affine = block_mean(voxels, affine, (x, y, z))
    factors = np.array(voxels.shape) / size
    picks = [
        np.minimum(((np.arange(size) + 0.5) * f).astype(int), n - 1) for f, n in zip(factors, voxels.shape, strict=True)
    ]
    to_grid = np.diag([*factors, 1.0])
    to_grid[:3, 3] = (factors - 1) / 2
    return np.ascontiguousarray(voxels[np.ix_(*picks)], dtype=np.float32), affine @ to_grid


def _not_background(sampled: NDArray[np.float32], high: float) -> NDArray[np.bool_]:
    """What differs from the median of the volume's six faces."""
    faces = [sampled.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
    background = float(np.median(np.concatenate(faces)))
    return np.abs(sampled - background) > BACKGROUND * abs(high - background)


def _solid(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
    """The largest connected part, its holes filled, and the size of the next one as a share of it.

    A next one that is much flatter or shorter than the largest is a frame or a piece of something: it counts as none.
    """
    from scipy.ndimage import binary_fill_holes, label

    parts, count = label(mask)  # type: ignore[misc]
    second = 0.0
    if count > 1:
        sizes = np.bincount(parts.ravel())[1:]
        next_one, largest = np.argsort(sizes)[-2:].tolist()
        mask = parts == 1 + largest
        lengths = np.array([_lengths(parts == 1 + part) for part in (next_one, largest)])
        if (lengths[0] > ALIKE * lengths[1]).all():
            second = float(sizes[next_one] / sizes[largest])
    return np.asarray(binary_fill_holes(mask)), second


def _lengths(part: NDArray[np.bool_]) -> list[int]:
    """Voxels along each axis from the first to the last one that a part has."""
    filled = (np.flatnonzero(part.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return [int(along[-1] - along[0]) + 1 for along in filled]


def _network_mask(scaled: NDArray[np.float32]) -> NDArray[np.bool_]:
    import torch

    values = torch.from_numpy(scaled)
    values = NORMAL_SPREAD * (values - values.mean()) / values.std() + NORMAL_MEAN
    with torch.inference_mode():
        return (_network()(values[None, None])[0, 1] > 0.5).numpy()


@lru_cache(maxsize=1)
def _network() -> Any:
    """The network, loaded once in each process from the file in deepbet's own list of files, if it is the known one."""
    import torch

    path = _weights_file()
    if sha256_of(path) != WEIGHTS_SHA256:
        raise _missing("another version of it")
    return torch.jit.load(str(path), map_location="cpu").eval()


def _weights_file() -> Path:
    try:
        files = distribution("deepbet").files or ()
    except PackageNotFoundError:
        raise _missing("no package deepbet") from None
    for file in files:
        if file.as_posix() == WEIGHTS:
            return Path(str(file.locate()))
    raise _missing("a package deepbet without it")


def _missing(seen: str) -> NotFoundError:
    return NotFoundError(
        "the network that finds the brain is missing",
        expected="deepbet 1.0.2",
        seen=seen,
        hint="pip install --force-reinstall deepbet==1.0.2",
    )
