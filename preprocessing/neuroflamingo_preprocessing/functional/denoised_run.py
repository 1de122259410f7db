"""`denoise_run`: a run whose blocks are read already denoised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo_preprocessing.formats.nifti.run import Run

if TYPE_CHECKING:
    from jaxtyping import Float32
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.functional.denoising_plan import DenoisingPlan
    from neuroflamingo_preprocessing.functional.run_quality import FrameWatch

CHUNK_BYTES = 2**24
"""Float64 signals denoised at a time: nilearn holds several copies of them."""


@dataclass(frozen=True)
class DenoisedRun(Run):
    """Run whose blocks are denoised as they are read.

    Where values change, not only frames, the whole run is held in memory while `blocks` is read.
    """

    plan: DenoisingPlan | None = None

    def blocks(
        self, frames: int | None = None, watch: FrameWatch | None = None
    ) -> Iterator[tuple[int, Float32[np.ndarray, "x y z frame"]]]:
        """Read blocks as `Run.blocks` does; frame numbers count the frames kept, `watch` sees all frames as stored."""
        assert self.plan is not None
        pieces = _inside(super().blocks(frames, watch), self.plan.first, self.plan.stop)
        if not self.plan.changes_values:
            yield from _left(pieces, self.plan)
            return
        held = [np.nan_to_num(block, copy=False) for _, block in pieces]
        _denoise_in_place(held, self.plan)
        held.reverse()
        done = 0
        while held and done < self.frames:  # each block is released once yielded: run and result share the memory
            block = held.pop()[..., : self.frames - done]
            yield done, block
            done += block.shape[-1]


def denoise_run(run: Run, plan: DenoisingPlan) -> Run:
    """Apply a denoising plan to a run: frames kept, denoised values, and the displacement of the frames kept."""
    provenance = replace(run.provenance, warnings=(*run.provenance.warnings, *plan.warnings))
    changed = {"provenance": provenance, "displacement": plan.displacement}
    if not plan.options:
        return replace(run, **changed)
    same = {f.name: getattr(run, f.name) for f in fields(Run)}
    return DenoisedRun(**(same | changed | {"frames": len(plan.kept), "times": plan.times}), plan=plan)


def _inside(
    blocks: Iterator[tuple[int, NDArray[np.float32]]], first: int, stop: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Cut blocks to a range of frames and count from its start.

    Blocks behind the range are still read: the checksum of a gzip file is at its end.
    """
    for start, block in blocks:
        low, high = max(first - start, 0), min(stop - start, block.shape[-1])
        if low < high:
            yield start + low - first, block[..., low:high]


def _left(
    pieces: Iterator[tuple[int, NDArray[np.float32]]], plan: DenoisingPlan
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks of the frames that a plan keeps."""
    done = 0
    for start, block in pieces:
        here = plan.kept[(plan.kept >= start) & (plan.kept < start + block.shape[-1])] - start
        if len(here):
            whole = len(here) == block.shape[-1]
            yield done, block if whole else np.asfortranarray(block[..., here])
            done += len(here)


def _denoise_in_place(held: list[NDArray[np.float32]], plan: DenoisingPlan) -> None:
    """Denoise every voxel that is not constantly 0, chunk by chunk, and move the frames kept to the front."""
    flat = [block.reshape(-1, block.shape[-1], order="F") for block in held]
    voxels, count = flat[0].shape[0], max(1, CHUNK_BYTES // (8 * (plan.stop - plan.first)))
    for low in range(0, voxels, count):
        part = [each[low : low + count] for each in flat]
        signals = np.concatenate(part, axis=1)
        seen = signals.any(axis=1)
        if not seen.any():
            continue
        denoised = np.zeros((len(signals), len(plan.kept)), np.float32)
        denoised[seen] = plan.clean(signals[seen])
        done = 0
        for each in part:
            here = denoised[:, done : done + each.shape[1]]
            each[:, : here.shape[1]] = here
            done += each.shape[1]
