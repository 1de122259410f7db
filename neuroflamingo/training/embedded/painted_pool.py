"""Painted cases on disk for training: painted in the background, read in an order that depends only on the seeds."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.findings.vocabulary import FOCAL, Finding
from neuroflamingo.painting.anatomy import load_anatomy
from neuroflamingo.painting.cases import Blueprint, draw_blueprint
from neuroflamingo.painting.rendering import render_on_model_grid
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

OCCUPANCY_SHAPE = (4, *(n // 2 for n in GRID_SHAPE))
WAIT_S = 0.2
STALLED_S = 900.0
"""Seconds without growth after which a pool painted by another process counts as abandoned."""


@dataclass(frozen=True)
class PoolCase:
    """Painted case on the model grid.

    Attributes:
        seed: seed of the case.
        findings: its findings, in report order.
        centres: focal lesions' centres (grid mm) in the order of the focal findings.
    """

    seed: int
    findings: tuple[Finding, ...]
    centres: NDArray[np.float32]


class CasePool:
    """Pool of `count` cases with seeds from `first_seed` on; a killed run resumes where it stopped.

    Volumes are float16 `[count, 56, 64, 56]`, occupancy of 6 mm cells by lesions is uint8 `[count, 4, 28, 32, 28]`.

    Args:
        crowded: share of cases with many findings (`draw_wishes`); selected by their seeds only.
        painted_elsewhere: whether another of several training processes paints it.
    """

    def __init__(
        self,
        folder: Path,
        first_seed: int,
        count: int,
        anatomy: str = "icbm2009a",
        crowded: float = 0.0,
        painted_elsewhere: bool = False,
    ) -> None:
        self.folder, self.first_seed, self.count, self.anatomy = folder, first_seed, count, anatomy
        self.crowded, self.painted_elsewhere = crowded, painted_elsewhere
        folder.mkdir(parents=True, exist_ok=True)
        self.volumes = self._map("volumes.f16", np.float16, GRID_SHAPE)
        self.occupancy = self._map("occupancy.u8", np.uint8, OCCUPANCY_SHAPE)
        self._truth_path = folder / "truth.jsonl"
        self._cases: list[PoolCase] = []
        self._read_bytes = 0
        self._painter: BaseProcess | None = None

    def _map(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        path = self.folder / name
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize * self.count
        with path.open("ab") as file:
            if path.stat().st_size < size:
                os.truncate(file.fileno(), size)
        return np.memmap(path, dtype=dtype, mode="r+", shape=(self.count, *shape))

    def start(self) -> CasePool:
        """Paint missing cases in one background process."""
        paint_in_background(self)
        return self

    def done(self) -> int:
        """Count the complete cases (the line with the findings is written last)."""
        if self._truth_path.exists() and self._truth_path.stat().st_size > self._read_bytes:
            with self._truth_path.open("rb") as file:
                file.seek(self._read_bytes)
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            self._cases += [_case(json.loads(line)) for line in whole.splitlines()]
        return len(self._cases)

    def wait(self, count: int) -> None:
        """Block until the first `count` cases are painted.

        Raises:
            NeuroFlamingoError: the painting process died.
        """
        seen, since = -1, time.monotonic()
        while (done := self.done()) < min(count, self.count):
            if done > seen:
                seen, since = done, time.monotonic()
            if not self._is_painted(time.monotonic() - since):
                raise NeuroFlamingoError(
                    f"painting cases into {self.folder} stopped early",
                    expected=f"{min(count, self.count)} cases",
                    seen=f"{self.done()} cases",
                    hint="run the same command again: it resumes where it stopped",
                )
            time.sleep(WAIT_S)

    def _is_painted(self, waited: float) -> bool:
        if self.painted_elsewhere:
            return waited < STALLED_S
        return self._painter is not None and self._painter.is_alive()

    def __getitem__(self, index: int) -> PoolCase:
        self.wait(index + 1)
        return self._cases[index]

    def __len__(self) -> int:
        return self.count


def paint_in_background(*pools: CasePool) -> None:
    """Paint the missing cases of these pools, one pool after the other, in one background process."""
    missing = [pool for pool in pools if pool.done() < pool.count]
    if not missing:
        return
    arguments = [(p.folder, p.first_seed, p.count, p.anatomy, p.crowded) for p in missing]
    painter = get_context("spawn").Process(target=_paint_all, args=(arguments,), daemon=True)
    painter.start()
    for pool in missing:
        pool._painter = painter


def _case(record: dict) -> PoolCase:
    findings = tuple(Finding.model_validate(f) for f in record["findings"])
    return PoolCase(record["seed"], findings, np.asarray(record["centres"], dtype=np.float32).reshape(-1, 3))


def _paint_all(pools: list[tuple]) -> None:
    """Run the background painter, which ends with the process that started it."""
    import torch

    torch.set_num_threads(1)
    parent = os.getppid()
    for arguments in pools:
        _paint_pool(CasePool(*arguments), parent)


def _paint_pool(pool: CasePool, parent: int) -> None:
    """Paint a pool: for each case the voxels first, then the line with its findings."""
    anatomy, path = load_anatomy(pool.anatomy), pool.folder / "truth.jsonl"
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(0 if not pool.done() else pool._read_bytes)
        file.seek(0, os.SEEK_END)
        for index in range(pool.done(), pool.count):
            if os.getppid() != parent:
                return
            seed = pool.first_seed + index
            crowded = np.random.default_rng([seed, 9]).random() < pool.crowded
            blueprint = draw_blueprint(seed, anatomy, crowded=bool(crowded))
            case = render_on_model_grid(blueprint, anatomy)
            pool.volumes[index] = case.volume
            blocks = case.lesions.reshape(4, *(n for size in OCCUPANCY_SHAPE[1:] for n in (size, 2)))
            pool.occupancy[index] = np.round(255 * blocks.mean(axis=(2, 4, 6)).clip(0, 1))
            record = {
                "seed": blueprint.seed,
                "findings": [f.model_dump(mode="json", exclude_none=True) for f in blueprint.findings],
                "centres": _in_report_order(blueprint, case.centres).round(2).tolist(),
            }
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()


def _in_report_order(blueprint: Blueprint, centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sort centres as the focal findings are sorted."""
    focal = [f for f in blueprint.findings if f.kind in FOCAL]
    order = [blueprint.lesion_findings.index(f) for f in focal]
    return centres[order]
