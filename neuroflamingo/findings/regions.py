"""Assignment of points in MNI space to regions, by the project's own coordinate rules.

Painting names a lesion's location by these rules and scoring relies on them, so they must be exact, fast and free of
any atlas's licence. They are a few planes and ellipsoids, symmetric about x = 0, with rounded numbers that fit the
MNI152 templates. The tests compare them with AAL2, which only the tests read.

Deep white matter belongs to the surrounding lobe, the cingulate gyrus to the frontal or parietal lobe, the hippocampus
and the fusiform gyrus to the temporal lobe, the internal capsule between caudate and putamen to the basal ganglia.
Points outside the brain are assigned a region too: apply a brain mask first if that matters.
"""

from __future__ import annotations

import numpy as np

from neuroflamingo.findings.vocabulary import FOCAL_REGIONS, Region, Side

_CODE = {region: np.int8(code) for code, region in enumerate(FOCAL_REGIONS)}

MIDLINE_MM = 3.0
"""Centres closer to x = 0 than this are on neither side."""


def _ellipsoid(
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> np.ndarray:
    """Points inside an axis-parallel ellipsoid; all in mm, x as distance from the midline."""
    distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(points, centre, radii, strict=True))
    return np.asarray(distance <= 1.0)


def region_of(points_mm: np.ndarray) -> np.ndarray:
    """Assign a region to each point.

    Args:
        points_mm: `[n, 3]` world coordinates in MNI152 space, RAS mm.

    Returns:
        `[n]` int8 indices into `FOCAL_REGIONS`; every point gets one.

    Raises:
        ValueError: the array is not `[n, 3]`.
    """
    points = np.asarray(points_mm)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points_mm must be [n, 3], not {list(points.shape)}")
    x, y, z = (np.ascontiguousarray(axis, dtype=np.float32) for axis in points.T)
    x = np.abs(x)
    xyz = (x, y, z)

    # Later rules win. The central sulcus runs backwards towards the vertex, so its plane leans with x.
    codes = np.where(y > 0.5 * x - 36.0, _CODE[Region.FRONTAL], _CODE[Region.PARIETAL])
    # The Sylvian fissure rises backwards: one plane in front (against frontal), one behind (against parietal).
    codes[(z < 0.45 * x - 0.7 * y - 22.0) & (z < 0.35 * x - 0.25 * y - 8.0)] = _CODE[Region.TEMPORAL]
    # Behind the parieto-occipital sulcus and medial of the temporo-occipital border.
    codes[(y < -40.0 - 0.85 * z) & (x < 0.4 * z - 0.9 * y - 18.0)] = _CODE[Region.OCCIPITAL]
    codes[_ellipsoid(xyz, (38.0, 3.0, 1.0), (8.0, 27.0, 21.0))] = _CODE[Region.INSULA]
    lentiform = _ellipsoid(xyz, (22.0, 4.0, 4.0), (12.5, 22.0, 16.0))
    caudate = _ellipsoid(xyz, (14.0, 9.0, 11.0), (8.0, 22.0, 14.0))
    codes[lentiform | caudate] = _CODE[Region.BASAL_GANGLIA]
    codes[_ellipsoid(xyz, (10.0, -19.0, 7.0), (14.0, 14.0, 12.0))] = _CODE[Region.THALAMUS]
    # The tentorium: a roof sloping down sideways and backwards, and in front of it the petrous border.
    roof = (z < 9.0 - 0.3 * x + 0.23 * y) & (z < -27.0 - 0.64 * x - 0.54 * y)
    codes[roof & (y < -26.0)] = _CODE[Region.CEREBELLUM]
    # An elliptic column from midbrain to medulla; below the pons its axis leans backwards.
    axis_y = -25.0 - 0.6 * np.maximum(-34.0 - z, 0.0)
    codes[(z < -6.0) & ((x / 16.0) ** 2 + ((y - axis_y) / 14.0) ** 2 <= 1.0)] = _CODE[Region.BRAINSTEM]
    return codes


def side_of(x_mm: float, midline_mm: float = MIDLINE_MM) -> Side:
    """Side of a world x coordinate (RAS mm): right is positive; within `midline_mm` of zero it is the midline."""
    if abs(x_mm) < midline_mm:
        return Side.MIDLINE
    return Side.RIGHT if x_mm > 0 else Side.LEFT
