"""Damage done to a scan by rule: motion, blur, stripes."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage


def moved(voxels: np.ndarray, axis: int, share: float = 0.35, voxels_sd: float = 3.0, seed: int = 1) -> np.ndarray:
    """A head that moved: a share of its k-space's lines along `axis` were taken of the head shifted along another."""
    rng = np.random.default_rng(seed)
    other = (axis + 1) % 3
    count = voxels.shape[axis]
    shift = np.where(rng.random(count) < share, rng.normal(0, voxels_sd, count), 0)
    lines = np.moveaxis(shift[:, None, None], 0, axis)
    speed = np.moveaxis(fft.fftfreq(voxels.shape[other])[:, None, None], 0, other)
    turned = fft.fftn(voxels, axes=(axis, other)) * np.exp(-2j * np.pi * lines * speed).astype(np.complex64)
    return np.abs(fft.ifftn(turned, axes=(axis, other))).astype(np.float32)


def blurred(voxels: np.ndarray, sigma: float, axis: int | None = None) -> np.ndarray:
    """Blurred by a Gaussian of `sigma` voxels, along all axes or one."""
    if axis is None:
        return ndimage.gaussian_filter(voxels, sigma)
    return ndimage.gaussian_filter1d(voxels, sigma, axis=axis)


def striped(voxels: np.ndarray, amplitude: float, waves: tuple[float, ...] = (0.21, -0.13, 0.17)) -> np.ndarray:
    """With a spike in k-space: a plane wave, its amplitude as a share of the brightest tissue."""
    places = np.indices(voxels.shape, dtype=np.float32)
    phase = sum(wave * place for wave, place in zip(waves, places, strict=True))
    return (voxels + amplitude * np.percentile(voxels, 99.5) * np.sin(2 * np.pi * phase)).astype(np.float32)
