"""Affine alignment of a T1-weighted head, with or without skull, to the template brain (SimpleITK)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.geometry import Affine, apply, block_mean
from neuroflamingo_preprocessing.structural.template import load_template

if TYPE_CHECKING:
    import SimpleITK as sitk
    from jaxtyping import Float32
    from numpy.typing import NDArray

LEVEL_MM = 4.0  # resolution of the search: finer ones cost more and move the result by less than half a millimetre
COARSE_SIGMA_MM = 4.0  # extra blur of the first stage, which widens its reach
RIM_MM = 2  # of the template brain that the metric does not see: what lies around a brain differs from head to head
SAMPLES = 0.3
SEED = 1
DECIMALS = 7
HEAD_MM = 170.0  # from the crown downwards: what lies deeper is neck
RING_MM = 6  # what other poses are judged by: the brain and this much around it, whose outline is seen from afar
GOOD_START = 0.45  # correlation of the header's own pose inside the brain above which no other pose is tried
GOOD_POSE = 0.7  # the same of another pose, in the brain and the ring


@dataclass(frozen=True)
class Alignment:
    """Result of an affine alignment.

    Attributes:
        scan_to_template: scan world mm to template world mm, both RAS, `[4, 4]`.
        correlation: correlation of scan and template inside the brain, at 4 mm.
        starts: number of starting poses tried.
        turned: true if the best start is turned by 90 degrees or more against the header.
    """

    scan_to_template: Affine
    correlation: float
    starts: int
    turned: bool


def align(voxels: Float32[np.ndarray, "x y z"], affine: Affine) -> Alignment:
    """Find the 12-parameter affine that aligns a head with the template. It never mirrors: the determinant is positive.

    A similarity transform at 4 mm with blur is followed by an affine without blur, each by gradient descent on the
    correlation inside the template brain without its rim: with the rim, fluid and bone of a head with skull pass for
    the edge of the brain, and the head is shrunk by a sixth. Other starting poses are tried only if the header's own
    ends in a poor correlation. One thread and a fixed seed make the result independent of cores and runs.

    Args:
        voxels: `[x, y, z]` in any orientation, at least 4 voxels along each axis.
        affine: voxel index to world, RAS mm.
    """
    template = _fixed()
    moving, moving_affine = _shrink(voxels, affine)
    # ITK's world is LPS by convention, but nothing in a registration depends on it: both images are given in RAS.
    coarse = _image(_blur(moving, moving_affine), moving_affine)
    fine = _image(moving, moving_affine)
    centre = _head_centre(moving, moving_affine)
    start = _similarity(centre, np.eye(3))
    tried = 1
    value = _descend(template.coarse, template.inside, coarse, start, learning_rate=4.0, smallest_step=0.1)
    ends = [(*_refine(start, fine), False)]
    if value < GOOD_START:
        start, turned, poses = _other_pose(coarse, centre)
        ends.append((*_refine(start, fine), turned))
        tried += poses
    correlation, transform, turned = max(ends, key=lambda end: end[0])
    # ITK's sums differ in the last bits with the number of cores; rounded to a tenth of a micrometre they do not.
    return Alignment(np.round(np.linalg.inv(_matrix(transform)), DECIMALS), correlation, tried, turned)


def _other_pose(coarse: sitk.Image, centre: NDArray[np.float64]) -> tuple[sitk.Similarity3DTransform, bool, int]:
    """Best of the starting poses, whether it is turned by 90 degrees or more, and the number tried.

    Judged by the coarse stage only, in the brain and a rim around it: the outline of the head distinguishes poses
    better than the inside of the brain. A pose has to win by a margin, so that the milder rotation wins ties.
    """
    template = _fixed()
    best: tuple[float, sitk.Similarity3DTransform, bool] | None = None
    tried = 0
    for turn, offset in _starts():
        start = _similarity(centre + turn @ offset, turn)
        tried += 1
        value = _descend(template.coarse, template.ring, coarse, start, learning_rate=4.0, smallest_step=0.1)
        if best is None or value > best[0] + 1e-3:
            best = value, start, bool(np.trace(turn) < 1.5)
        if best[0] >= GOOD_POSE:
            break
    assert best is not None
    return best[1], best[2], tried


def _similarity(head_centre: NDArray[np.float64], turn: NDArray[np.float64]) -> sitk.Similarity3DTransform:
    """Template-to-scan start: a rotation about the centre of the template brain, moved to the head's centre."""
    import SimpleITK as sitk

    centre = _fixed().centre
    start = sitk.Similarity3DTransform()
    start.SetCenter(centre.tolist())
    start.SetMatrix(turn.ravel().tolist())
    start.SetTranslation((head_centre - centre).tolist())
    return start


def _refine(start: sitk.Similarity3DTransform, fine: sitk.Image) -> tuple[float, sitk.AffineTransform]:
    """Refine a similarity transform to an affine at 4 mm; gives the correlation and the affine."""
    import SimpleITK as sitk

    transform = sitk.AffineTransform(3)
    transform.SetCenter(start.GetCenter())
    transform.SetMatrix(start.GetMatrix())
    transform.SetTranslation(start.GetTranslation())
    template = _fixed()
    correlation = _descend(template.fine, template.inside, fine, transform, learning_rate=1.0, smallest_step=0.02)
    return correlation, transform


@dataclass(frozen=True)
class _Fixed:
    """Template at 4 mm (blurred and not), masks of the brain without rim and with ring, and the brain's centre."""

    coarse: Any
    fine: Any
    inside: Any
    ring: Any
    centre: NDArray[np.float64]


@lru_cache(maxsize=1)
def _fixed() -> _Fixed:
    from scipy.ndimage import binary_dilation, binary_erosion

    template = load_template()
    brain = template.mask > 0.5
    t1, affine = _shrink(template.t1, template.affine)
    inside, ring = (
        _image((_shrink(np.asarray(part, np.float32), template.affine)[0] > 0.5).astype(np.uint8), affine)
        for part in (binary_erosion(brain, iterations=RIM_MM), binary_dilation(brain, iterations=RING_MM))
    )
    middle = [
        np.average(np.arange(n), weights=brain.sum(axis=tuple({0, 1, 2} - {i}))) for i, n in enumerate(brain.shape)
    ]
    centre = apply(template.affine, np.array([middle]))[0]
    return _Fixed(_image(_blur(t1, affine), affine), _image(t1, affine), inside, ring, centre)


def _shrink(voxels: NDArray[Any], affine: Affine) -> tuple[NDArray[Any], Affine]:
    """Average blocks to voxels of about 4 mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = (min(max(1, round(LEVEL_MM / s)), n) for s, n in zip(spacing, voxels.shape, strict=True))
    return block_mean(voxels, affine, (x, y, z))


def _blur(voxels: NDArray[Any], affine: Affine) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    sigma = COARSE_SIGMA_MM / np.linalg.norm(affine[:3, :3], axis=0)
    return np.asarray(gaussian_filter(voxels, sigma, output=np.float32), dtype=np.float32)


def _image(voxels: NDArray[Any], affine: Affine) -> sitk.Image:
    """A SimpleITK image whose physical space is RAS millimetres."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def _head_centre(voxels: NDArray[Any], affine: Affine) -> NDArray[np.float64]:
    """Centre of mass of the bright voxels of the head without the neck, in world mm."""
    bright = voxels > voxels.mean()
    world = apply(affine, np.argwhere(bright))
    height = world[:, 2]
    voxel_mm3 = abs(np.linalg.det(affine[:3, :3]))
    # The crown is the height above which 20 ml of the head lie: single bright voxels of noise do not count.
    above = min(len(height) - 1, int(20_000 / voxel_mm3))
    crown = np.partition(height, len(height) - 1 - above)[len(height) - 1 - above]
    return world[height > crown - HEAD_MM].mean(axis=0)


def _starts() -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Starting poses as rotation and offset in mm, likeliest first.

    The header's own, then shifts (the head's centre is wrong where neck or shoulders are in view), then tilts, then
    the 23 other rotations of a cube (a wrong header turns a head by quarter turns). No reflections: they would swap
    left and right, which the symmetric template could not reveal.
    """
    none = np.zeros(3)
    starts = [(np.eye(3), none)]
    starts += [(np.eye(3), np.array([0.0, y, z])) for y, z in ((0, -40), (0, 40), (-40, 0), (40, 0))]
    starts += [(_rotation(axis, angle), none) for axis in range(3) for angle in (-40.0, 40.0)]
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        turn = np.zeros((3, 3))
        turn[range(3), order] = signs
        if np.linalg.det(turn) > 0 and np.trace(turn) < 2.5:
            starts.append((turn, none))
    return starts


def _rotation(axis: int, degrees: float) -> NDArray[np.float64]:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn[first, first] = turn[second, second] = cosine
    turn[first, second], turn[second, first] = -sine, sine
    return turn


def _descend(
    fixed: sitk.Image,
    inside: sitk.Image,
    moving: sitk.Image,
    transform: sitk.Transform,
    *,
    learning_rate: float,
    smallest_step: float,
) -> float:
    """Optimise the transform in place; gives the correlation, -1 if the images do not overlap."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsCorrelation()
    method.SetMetricFixedMask(inside)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(SAMPLES, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learning_rate, smallest_step, 150, relaxationFactor=0.8, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        if "overlap" in str(error) or "samples" in str(error):
            return -1.0
        raise
    return -method.GetMetricValue()


def _matrix(transform: sitk.AffineTransform) -> Affine:
    """Centred ITK transform as one 4 x 4 matrix, template world to scan world."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    centre = np.asarray(transform.GetCenter())
    matrix[:3, 3] = centre + np.asarray(transform.GetTranslation()) - matrix[:3, :3] @ centre
    return matrix
