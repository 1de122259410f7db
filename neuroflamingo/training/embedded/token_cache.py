"""Tokens of a frozen encoder on disk, each beside the truth it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.training.embedded.painted_pool import CasePool
from neuroflamingo.training.precision import autocast
from neuroflamingo.training.run_progress import StageProgress
from neuroflamingo_encoders.contract import BrainEncoder, weights_digest
from neuroflamingo_preprocessing.files import write_text_atomic

BATCH = 16


class TokenCache:
    """Encoder tokens of every case of a pool, plain and mirrored: float16 `[2, count, token, width]`.

    `blank` holds the tokens of an empty scan, `[1, token, width]`. A cache whose encoder weights or seeds differ is
    made anew: a misaligned cache looks just like a plateau.
    """

    def __init__(self, folder: Path, pool: CasePool, encoder: BrainEncoder, quiet: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.pool = pool
        pool.wait(1)
        with torch.no_grad():
            self.device = next(encoder.parameters()).device
            self.blank = encoder(torch.zeros_like(self._volumes(0, 1)).to(self.device)).tokens[0].cpu()
        shape = (2, len(pool), *self.blank.shape[-2:])
        self.weights = weights_digest(encoder)
        identity = {"weights": self.weights, "first_seed": pool.first_seed, "shape": list(shape)}
        mark, path = folder / "cache.json", folder / "tokens.f16"
        if mark.exists() and json.loads(mark.read_text()) == identity:
            self.tokens = np.memmap(path, dtype=np.float16, mode="r", shape=shape)
            return
        mark.unlink(missing_ok=True)
        self.tokens = np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
        self._fill(encoder, quiet)
        write_text_atomic(mark, json.dumps(identity), overwrite=True)

    def _volumes(self, first: int, last: int) -> Tensor:
        return torch.from_numpy(np.asarray(self.pool.volumes[first:last], np.float32))[:, None, None]

    def _fill(self, encoder: BrainEncoder, quiet: bool) -> None:
        count = len(self.pool)
        with torch.no_grad(), StageProgress("tokens", count, 0, quiet, unit="scan") as progress:
            for first in range(0, count, BATCH):
                last = min(first + BATCH, count)
                self.pool.wait(last)
                x = self._volumes(first, last)
                for mirrored, volume in enumerate((x, x.flip(3))):
                    with autocast(self.device):
                        tokens = encoder(volume.to(self.device)).tokens[:, 0]
                    self.tokens[mirrored, first:last] = tokens.float().cpu().numpy()
                progress.update(last, {})

    def __getitem__(self, where: tuple[np.ndarray, np.ndarray]) -> Tensor:
        """Tokens `[batch, 1, token, width]` at (mirrored or not, case) index arrays."""
        return torch.from_numpy(self.tokens[where].astype(np.float32))[:, None]
