"""Tokens of a frozen encoder on disk, with the findings of each case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.training.precision import autocast
from neuroflamingo.training.run_progress import StageProgress
from neuroflamingo_encoders.contract import BrainEncoder, weights_digest
from neuroflamingo_preprocessing.files import write_text_atomic

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.training.embedded.painted_pool import CasePool

BATCH = 16


class TokenCache:
    """Encoder tokens of every case of a pool, plain and mirrored: float16 `[2, count, token, width]`.

    Those of pairs are `[2, count, 2, token, width]`, baseline and follow-up; both are mirrored together.
    `blank` holds the tokens of an empty scan, `[1, token, width]`. A cache with other encoder weights or seeds is
    rebuilt, by all processes together: training on a misaligned cache looks just like a plateau.
    """

    def __init__(
        self, folder: Path, pool: CasePool, encoder: BrainEncoder, accelerator: Accelerator, quiet: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.pool, self.device, self.accelerator = pool, accelerator.device, accelerator
        pool.wait(1)
        with torch.no_grad():
            self.blank = encoder(torch.zeros_like(self._volumes(0, 1)[:1]).to(self.device)).tokens[0].cpu()
        shape = (2, *pool.volumes.shape[:-3], *self.blank.shape[-2:])
        self.weights = weights_digest(encoder)
        identity = {"weights": self.weights, "first_seed": pool.first_seed, "shape": list(shape)}
        mark, path = folder / "cache.json", folder / "tokens.f16"
        if not (mark.exists() and json.loads(mark.read_text()) == identity):
            self._make(encoder, path, shape, quiet)
            if accelerator.is_main_process:
                write_text_atomic(mark, json.dumps(identity), overwrite=True)
        accelerator.wait_for_everyone()
        self.tokens = np.memmap(path, dtype=np.float16, mode="r", shape=shape)

    def _volumes(self, first: int, last: int) -> Tensor:
        """Volumes of some cases, one scan a row; both of a pair follow one another."""
        volumes = torch.from_numpy(np.asarray(self.pool.volumes[first:last], np.float32))
        return volumes.reshape(-1, 1, 1, *volumes.shape[-3:])

    @torch.no_grad()
    def _make(self, encoder: BrainEncoder, path: Path, shape: tuple[int, ...], quiet: bool) -> None:
        """Fill the file; the batches of scans are shared among all processes."""
        if self.accelerator.is_main_process:
            path.with_name("cache.json").unlink(missing_ok=True)
            np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
        self.accelerator.wait_for_everyone()
        tokens = np.memmap(path, dtype=np.float16, mode="r+", shape=shape)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        with StageProgress("tokens", shape[1], quiet=quiet or rank > 0, unit="scan") as progress:
            for first in range(BATCH * rank, shape[1], BATCH * world):
                last = min(first + BATCH, shape[1])
                self.pool.wait(last)
                x = self._volumes(first, last)
                for mirrored, volume in enumerate((x, x.flip(3))):
                    with autocast(self.device):
                        found = encoder(volume.to(self.device)).tokens[:, 0]
                    tokens[mirrored, first:last] = found.float().cpu().reshape(last - first, *shape[2:]).numpy()
                progress.update(last, {})
        tokens.flush()
        self.accelerator.wait_for_everyone()

    def __getitem__(self, where: tuple[np.ndarray, np.ndarray]) -> Tensor:
        """Tokens `[batch, scan, token, width]`, of pairs 2 scans, at (mirrored or not, case) index arrays."""
        found = torch.from_numpy(self.tokens[where].astype(np.float32))
        return found if self.pool.pairs else found[:, None]
