"""Files of toy scans for tiny twins: what a scanner or an fMRI pipeline would leave, with one of four patterns in it.

Each is of the kind that the encoder takes, and goes through the same door as a real file. The first bit of a pattern
brightens one half of the scan, the second, half as much, one half across it; in a run the left and the back. A head,
which has to be aligned, stays as it is, and two or four sides of the picture around it are bright.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.geometry import block_mean
from neuroflamingo_preprocessing.structural.resampling import resample
from neuroflamingo_preprocessing.structural.template import load_template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.spec import ScanSpec

NOISE = 0.05
BRIGHTER = 0.5
FRAMES, PARCELS, SIDE = 12, 6, 8
"""Of inputs whose card leaves a size open: frames, parcels, and voxels or tokens along any other axis."""
FRAME = 5
HEAD_MM, FIELD_MM, FIELD_VOXELS = 4, 5.0, (36, 40, 36)


def toy_ending(spec: ScanSpec) -> str:
    """What the names of toy files for an encoder end in."""
    if spec.modality == "volume3d":
        first = next(iter(spec.channels), "T1w")
        return f"_{first}.nii" if first.isalnum() else ".nii"
    return {"volume4d": "_bold.nii", "parcels": ".ptseries.nii", "sequence": ".fa"}.get(spec.modality, ".npz")


def write_toy_scan(path: Path, spec: ScanSpec, pattern: int, seed: int) -> None:
    """Write the file of one toy scan; of an encoder with several channels one for each, the others beside it.

    Args:
        path: ends in `toy_ending`; its folder is there.
        spec: `card.scan` of the encoder.
        pattern: 0 to 3.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    if spec.modality == "volume3d":
        ending = toy_ending(spec)
        for number, channel in enumerate(spec.channels):
            name = path.name.removesuffix(ending) + (ending if number == 0 else f"_{channel}.nii")
            _write_volume(path.with_name(name), spec, pattern, rng)
    elif spec.modality == "volume4d":
        _write_run(path, spec, pattern, rng)
    elif spec.modality == "parcels":
        _write_series(path, spec, pattern, rng)
    elif spec.modality == "sequence":
        path.write_text(f">toy\n{_sequence(spec, pattern, rng)}\n", encoding="ascii")
    else:
        sizes = [axis.size or SIDE for axis in spec.axes]
        values = _halves(tuple(sizes), pattern, [a.name == "channel" for a in spec.axes], rng)
        arrays: dict[str, Any] = {"tokens" if spec.modality == "tokens" else "data": values.clip(0, 1)}
        np.savez(path, **arrays)


def _halves(shape: tuple[int, ...], pattern: int, apart: list[bool], rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise, and one half along each of the first two axes brighter as the bits say; not along the axes `apart`."""
    values = NOISE * rng.standard_normal(shape).astype(np.float32) + 0.25
    for bit, axis in enumerate([number for number, skipped in enumerate(apart) if not skipped][:2]):
        if pattern >> bit & 1:
            half = [slice(None)] * values.ndim
            half[axis] = slice(shape[axis] // 2)
            values[tuple(half)] += BRIGHTER / (1 + bit)
    return values


@lru_cache(maxsize=1)
def _head() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The template's head in coarse voxels, 0 to 1, and its affine."""
    template = load_template()
    return block_mean(template.t1, template.affine, (HEAD_MM, HEAD_MM, HEAD_MM))


def _write_volume(path: Path, spec: ScanSpec, pattern: int, rng: np.random.Generator) -> None:
    if spec.template is None:
        voxels, affine = _halves(FIELD_VOXELS, pattern, [False] * 3, rng), np.diag([FIELD_MM] * 3 + [1.0])
        affine[:3, 3] = [-FIELD_MM * n / 2 for n in FIELD_VOXELS]
    else:
        head, affine = _head()
        voxels = _framed(head, pattern) * (1 + NOISE * rng.standard_normal(head.shape))
    _save(path, 1000 * voxels, affine, 1 if spec.template is None else 4)


def _framed(head: NDArray[np.float32], pattern: int) -> NDArray[np.float32]:
    """A head with two bright sides of the picture, left and right, front and back, or all four, as the bits say."""
    framed = head.copy()
    for bit in range(2):
        if pattern >> bit & 1:
            sides = np.moveaxis(framed, bit, 0)
            sides[:FRAME] = sides[-FRAME:] = 1.0
    return framed


def _write_run(path: Path, spec: ScanSpec, pattern: int, rng: np.random.Generator) -> None:
    """A run in template space, on the encoder's own grid: a brain, brighter in places, with noise in each frame."""
    template = load_template()
    brain = resample(template.t1 * template.mask, template.affine, spec.grid_shape, spec.grid_affine, 8.0, 0.0)
    shown = brain * _halves(brain.shape, pattern, [False] * 3, rng)
    frames = next(axis.size for axis in spec.axes if axis.name == "time") or FRAMES
    noise = 1 + 0.01 * rng.standard_normal((*brain.shape, frames))
    _save(path, 1000 * shown[..., None] * noise, spec.grid_affine, 4, _seconds(spec))


def _save(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64], code: int, seconds: float = 0.0) -> None:
    from nibabel.nifti1 import Nifti1Image

    image = Nifti1Image(voxels.clip(0).astype(np.int16), affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm", "sec")
    if voxels.ndim == 4:
        image.header["pixdim"][4] = seconds
    image.to_filename(path)


def _seconds(spec: ScanSpec) -> float:
    return spec.repetition_time.seconds if spec.repetition_time else 2.0


def _write_series(path: Path, spec: ScanSpec, pattern: int, rng: np.random.Generator) -> None:
    """A CIFTI parcel series: parcels of one half, and frames of one half, are louder."""
    from nibabel.cifti2.cifti2 import Cifti2Image
    from nibabel.cifti2.cifti2_axes import ParcelsAxis, SeriesAxis

    sizes = {axis.name: axis.size for axis in spec.axes}
    count, frames = sizes["parcel"] or PARCELS, max(sizes["time"] or FRAMES, 2)
    values = 100 + _halves((count, frames), pattern, [False, False], rng)
    voxels = [np.array([[number, 0, 0]]) for number in range(count)]
    names = [f"p{number}" for number in range(count)]
    parcels = ParcelsAxis(names, voxels, [{}] * count, affine=np.eye(4), volume_shape=(count, 1, 1))
    Cifti2Image(values.T, header=(SeriesAxis(0, _seconds(spec), frames, "SECOND"), parcels)).to_filename(path)


def _sequence(spec: ScanSpec, pattern: int, rng: np.random.Generator) -> str:
    """Letters for the encoder's number of tokens; the bits say whether each half is of A and T, or of C and G."""
    token = next(axis for axis in spec.axes if axis.name == "token")
    letters = 6 * ((token.size or min(token.maximum or SIDE, SIDE)) - 1)
    halves = ["AT" if pattern >> bit & 1 else "CG" for bit in range(2)]
    return "".join(rng.choice(list(halves[2 * place // letters])) for place in range(letters))
