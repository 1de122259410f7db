"""Affine alignment of a head to the template brain, from its brain mask outwards (SimpleITK)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.geometry import Affine, block_mean, to_canonical
from neuroflamingo_preprocessing.structural.brain_extraction import Brain, find_brain
from neuroflamingo_preprocessing.structural.resampling import resample
from neuroflamingo_preprocessing.structural.template import load_template

if TYPE_CHECKING:
    import SimpleITK as sitk
    from jaxtyping import Float32
    from numpy.typing import NDArray

LEVEL_MM = 4.0  # resolution of the search: finer ones cost more and move the result by less than half a millimetre
MASK_MM = 2.0  # about the resolution of the brain mask
OUTLINE_MM = 8.0  # resolution at which masks are laid onto each other
OUTLINE_SIGMA_MM = 5.0  # their blur, which widens its reach
AROUND_MM = 3  # around the template's brain that the metric sees, and around the scan's that is not blanked
COARSE_SIGMA_MM, COARSE_SIZE = 4.0, 96  # blur and voxels of the mask for the comparison of turned poses
SAMPLES = 0.4
SEED = 1
DECIMALS = 7
GOOD = 0.85  # fit and correlation together, from the header's own pose, above which no other one is tried: heads turned
# by 180 degrees reach 0.79, by their outline
SURE = 0.6  # the same of a turned pose at low resolution, above which it is the right one (wrong ones reach 0.47)
MARGIN = 0.03  # by which it has to win


@dataclass(frozen=True)
class Alignment:
    """Result of an affine alignment.

    Attributes:
        scan_to_template: scan world mm to template world mm, both RAS, `[4, 4]`.
        fit: correlation of the brain alone and the template's, in and around it, at 4 mm, without sign.
        correlation: of scan and template inside the brain, at 4 mm, with its sign: below 0 for a T2-weighted head.
        overlap: Dice coefficient of the brain mask, as aligned, and the template's, in the field of view.
        starts: number of starting poses tried; 0 if no brain was found.
        turned: true if the best pose is turned by 90 degrees or more against the header.
        brain: the mask that the alignment began with.
    """

    scan_to_template: Affine
    fit: float
    correlation: float
    overlap: float
    starts: int
    turned: bool
    brain: Brain


def align(voxels: Float32[np.ndarray, "x y z"], affine: Affine) -> Alignment:
    """Find the 12-parameter affine that aligns a head with the template. It never mirrors: the determinant is positive.

    From the brain mask outwards. A similarity transform lays mask onto mask. Then an affine maximises the correlation
    of brain and template at 4 mm, both without what surrounds them, in the template's brain and 3 mm around it: the
    outline counts, and no skull can pass for it. The library's correlation has no sign, so contrast does not decide
    where a head lies; it is judged afterwards. Turned poses are tried only if the header's own ends poorly. One
    thread and a fixed seed: the result does not depend on cores and runs.

    Args:
        voxels: `[x, y, z]`, axes nearest to right, anterior, superior, at least 4 voxels along each axis.
        affine: voxel index to world, RAS mm.

    Raises:
        NotFoundError: the network that finds the brain is not installed (exit 66).
    """
    own = _placed(voxels, affine)
    if not own.starts or own.fit + own.correlation >= GOOD:
        return own
    turn, tried = _best_turn(voxels, affine, own.brain)
    other = _placed_turned(voxels, affine, turn)
    return replace(other if other.fit > own.fit + MARGIN else own, starts=1 + tried)


def _best_turn(voxels: NDArray[np.float32], affine: Affine, brain: Brain) -> tuple[NDArray[np.float64], int]:
    """The turn of the header that fits best at low resolution, and how many were tried."""
    # At 2 mm: the network sees no more, and every turn needs a mask of its own.
    small, small_affine = _shrink(np.clip(voxels, *brain.limits), affine, MASK_MM)
    values: list[float] = []
    for turn in _turns():
        values.append(_compare(small, small_affine, turn))
        if values[-1] > SURE:
            break
    return _turns()[int(np.argmax(values))], len(values)


def _placed_turned(voxels: NDArray[np.float32], affine: Affine, turn: NDArray[np.float64]) -> Alignment:
    """Alignment of a head whose header is taken to be wrong by a turn of the cube (template to scan)."""
    back = _turned_back(turn)
    placed = _placed(*to_canonical(voxels, back @ affine))
    brain = replace(placed.brain, affine=np.linalg.inv(back) @ placed.brain.affine)
    return replace(placed, scan_to_template=placed.scan_to_template @ back, turned=True, brain=brain)


def _placed(voxels: NDArray[np.float32], affine: Affine) -> Alignment:
    """Alignment from the pose of the header."""
    brain = find_brain(voxels, affine)
    if not brain.mask.any():
        return Alignment(np.eye(4), 0.0, 0.0, 0.0, starts=0, turned=False, brain=brain)
    scan = _moving(brain, voxels, affine)
    fit, transform = _refine(_laid_on(scan), scan)
    correlation, overlap = _agreement(transform, scan, voxels.shape, affine)
    # ITK's sums differ in the last bits with the number of cores; rounded to a tenth of a micrometre they do not.
    to_template = np.round(np.linalg.inv(_matrix(transform)), DECIMALS)
    return Alignment(to_template, fit, correlation, overlap, starts=1, turned=False, brain=brain)


@dataclass(frozen=True)
class _Moving:
    """A scan on its way: its mask, blurred as an image, its brain at 4 mm with zeros around it, and their affine."""

    brain: Brain
    outline: Any
    voxels: NDArray[np.float32]
    affine: Affine


def _moving(brain: Brain, voxels: NDArray[np.float32], affine: Affine) -> _Moving:
    small, small_affine = _shrink(np.clip(voxels, *brain.limits), affine, LEVEL_MM)
    near = resample(_soft_mask(brain, AROUND_MM), brain.affine, small.shape, small_affine, 0.0, 0.0) > 0.1
    outline = _image(*_shrink(_soft_mask(brain, OUTLINE_SIGMA_MM), brain.affine, LEVEL_MM))
    return _Moving(brain, outline, np.where(near, small, np.float32(0)), small_affine)


def _start(brain: Brain) -> sitk.Similarity3DTransform:
    """Similarity transform, template to scan, between the centres of the two brains and of their sizes."""
    import SimpleITK as sitk

    template = _fixed()
    start = sitk.Similarity3DTransform()
    start.SetCenter(template.centre.tolist())
    start.SetTranslation((brain.centre - template.centre).tolist())
    start.SetScale(float((brain.volume_ml / template.volume_ml) ** (1 / 3)))
    return start


def _laid_on(scan: _Moving) -> sitk.Similarity3DTransform:
    """Similarity transform that lays the template's mask onto the scan's, from the pose of the header."""
    start = _start(scan.brain)
    _descend(_fixed().outline, None, scan.outline, start, learning_rate=4.0, smallest_step=0.1)
    return start


def _compare(voxels: NDArray[np.float32], affine: Affine, turn: NDArray[np.float64]) -> float:
    """Correlation that a turned pose reaches at low resolution, with a brain mask of low resolution."""
    voxels, affine = to_canonical(voxels, _turned_back(turn) @ affine)
    brain = find_brain(voxels, affine, size=COARSE_SIZE)
    if not brain.mask.any():
        return -1.0
    scan = _moving(brain, voxels, affine)
    image = _image(_blur(scan.voxels, scan.affine, COARSE_SIGMA_MM), scan.affine)
    start = _start(brain)
    return _descend(_fixed().coarse, _fixed().around, image, start, learning_rate=4.0, smallest_step=0.2)


def _turned_back(turn: NDArray[np.float64]) -> Affine:
    """What takes the world of a header that is wrong by a turn to the world of the head."""
    back = np.eye(4)
    back[:3, :3] = turn.T
    return back


def _refine(start: sitk.Similarity3DTransform, scan: _Moving) -> tuple[float, sitk.AffineTransform]:
    """Refine a similarity to an affine at 4 mm; gives the correlation in and around the brain, and the affine."""
    import SimpleITK as sitk

    transform = sitk.AffineTransform(3)
    transform.SetCenter(start.GetCenter())
    transform.SetMatrix(start.GetMatrix())
    transform.SetTranslation(start.GetTranslation())
    image = _image(scan.voxels, scan.affine)
    value = _descend(_fixed().fine, _fixed().around, image, transform, learning_rate=1.0, smallest_step=0.01)
    return value, transform


def _agreement(
    transform: sitk.AffineTransform, scan: _Moving, shape: tuple[int, ...], affine: Affine
) -> tuple[float, float]:
    """Signed correlation inside the brain, and overlap of the masks, where the scan's field of view reaches."""
    template = _fixed()
    to_template = np.linalg.inv(_matrix(transform))
    grid = template.brain.shape, template.affine
    signal = resample(scan.voxels, to_template @ scan.affine, *grid, 0.0, 0.0)
    mask = scan.brain.on_grid(to_template, *grid)
    in_view = resample(np.ones((2, 2, 2), np.float32), to_template @ affine @ _halves(shape), *grid, 0.0, 0.0) > 0
    inside, brain = template.inside & mask & in_view, template.brain & in_view
    if inside.sum() < 100 or signal[inside].std() == 0:
        return 0.0, 0.0
    correlation = np.corrcoef(signal[inside], template.t1[inside])[0, 1]
    return float(correlation), float(2 * (mask & brain).sum() / (mask.sum() + brain.sum()))


def _halves(shape: tuple[int, ...]) -> Affine:
    """Affine of a grid of 2 x 2 x 2 voxels whose centres are those of a volume's outermost voxels."""
    return np.diag([*(float(n - 1) for n in shape), 1.0])


@dataclass(frozen=True)
class _Fixed:
    """The template's brain at 4 mm (blurred and not), its mask at 8 mm, where the metric looks, and its size."""

    coarse: Any
    fine: Any
    outline: Any
    around: Any
    t1: NDArray[np.float32]
    brain: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    affine: Affine
    centre: NDArray[np.float64]
    volume_ml: float


@lru_cache(maxsize=1)
def _fixed() -> _Fixed:
    from scipy.ndimage import binary_dilation, binary_erosion

    template = load_template()
    brain = template.mask > 0.5
    t1, affine = _shrink(np.where(brain, template.t1, np.float32(0)), template.affine, LEVEL_MM)
    around, core, middle = (
        _shrink(np.asarray(part, np.float32), template.affine, LEVEL_MM)[0] > 0.5
        for part in (
            binary_dilation(brain, iterations=AROUND_MM),
            binary_erosion(brain, iterations=2 * AROUND_MM),
            brain,
        )
    )
    small, small_affine = _shrink(template.mask, template.affine, OUTLINE_MM)
    return _Fixed(
        coarse=_image(_blur(t1, affine, COARSE_SIGMA_MM), affine),
        fine=_image(t1, affine),
        outline=_image(_blur(small, small_affine, OUTLINE_SIGMA_MM), small_affine),
        around=_image(around.astype(np.uint8), affine),
        t1=t1,
        brain=middle,
        inside=core,
        affine=affine,
        centre=template.affine[:3, :3] @ np.argwhere(brain).mean(axis=0) + template.affine[:3, 3],
        volume_ml=float(brain.sum()) / 1000.0,
    )


def _shrink(voxels: NDArray[Any], affine: Affine, level_mm: float) -> tuple[NDArray[Any], Affine]:
    """Average blocks to voxels of about the given size."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = (min(max(1, round(level_mm / s)), n) for s, n in zip(spacing, voxels.shape, strict=True))
    return block_mean(voxels, affine, (x, y, z))


def _blur(voxels: NDArray[Any], affine: Affine, sigma_mm: float) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    sigma = sigma_mm / np.linalg.norm(affine[:3, :3], axis=0)
    return np.asarray(gaussian_filter(voxels, sigma, output=np.float32), dtype=np.float32)


def _soft_mask(brain: Brain, sigma_mm: float) -> NDArray[np.float32]:
    return _blur(brain.mask.astype(np.float32), brain.affine, sigma_mm)


def _image(voxels: NDArray[Any], affine: Affine) -> sitk.Image:
    """A SimpleITK image whose physical space is RAS millimetres."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


@lru_cache(maxsize=1)
def _turns() -> list[NDArray[np.float64]]:
    """The 23 rotations that turn a cube onto itself: a wrong header turns a head by quarter turns.

    No reflections: they would swap left and right, which the symmetric template could not tell.
    """
    turns = []
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        turn = np.zeros((3, 3))
        turn[range(3), order] = signs
        if np.linalg.det(turn) > 0 and np.trace(turn) < 2.5:
            turns.append(turn)
    return turns


def _descend(
    fixed: sitk.Image,
    inside: sitk.Image | None,
    moving: sitk.Image,
    transform: sitk.Transform,
    *,
    learning_rate: float,
    smallest_step: float,
) -> float:
    """Optimise the transform in place; gives the correlation, -1 if the images do not overlap.

    Without a mask for the metric, the mean square difference is what is made small, and nothing is worth returning.
    """
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    if inside is None:
        method.SetMetricAsMeanSquares()
    else:
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
