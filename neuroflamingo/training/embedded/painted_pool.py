"""Painted cases on disk for training: painted in the background, read in an order that depends only on the seeds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from neuroflamingo.findings.changes import Comparison
from neuroflamingo.findings.vocabulary import FOCAL, Finding
from neuroflamingo.painting.anatomy import load_coarse_anatomy
from neuroflamingo.painting.cases import Blueprint, draw_blueprint
from neuroflamingo.painting.follow_up import draw_follow_up, is_of_two_people
from neuroflamingo.painting.heads import TEMPLATE
from neuroflamingo.painting.outlines import load_outlines
from neuroflamingo.painting.rendering import render_on_model_grid
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo.painting.anatomy import Anatomy
    from neuroflamingo.painting.lesions import Outline

OCCUPANCY_SHAPE = (4, *(n // 2 for n in GRID_SHAPE))
WAIT_S = 0.2
HEADS_KEPT = 16
"""Heads that a painter keeps in memory, 25 MB each."""
TRUTH = "truth-{}.jsonl"
"""File of each painter."""
STALLED_S = 900.0
"""Seconds without growth after which a pool painted by another process counts as abandoned."""


@dataclass(frozen=True)
class PoolCase:
    """Painted case on the model grid: a scan, or a baseline and a follow-up.

    Attributes:
        seed: seed of the case.
        findings: its findings, in report order; of a pair those of the follow-up.
        centres: focal lesions' centres (grid mm) in the order of the focal findings.
        baseline: of a pair, the findings of the baseline.
        comparison: of a pair, what changed.
    """

    seed: int
    findings: tuple[Finding, ...]
    centres: NDArray[np.float32]
    baseline: tuple[Finding, ...] = ()
    comparison: Comparison | None = None


@dataclass(frozen=True)
class PoolHeads:
    """Where cases are painted.

    Attributes:
        files: healthy heads, beside the template.
        share: of the cases, painted into one of them rather than into the template.
        extracted: prepared by a card that asks for `fill_outside_brain`.
        cache: folder in which what is made of the files is kept.
        outlines: folder or archive of real lesions' masks, see `load_outlines`.
        part: which of these outlines.
    """

    files: tuple[str, ...] = ()
    share: float = 0.0
    extracted: bool = False
    cache: Path | None = None
    outlines: str | None = None
    part: Literal["training", "held out"] = "training"

    def real_outlines(self) -> tuple[Outline, ...]:
        """Outlines of real lesions, for infarcts."""
        return () if self.outlines is None else load_outlines(self.outlines, self.part, self.cache)

    def of(self, seed: int) -> str:
        """The head of a case, by its seed alone."""
        rng = np.random.default_rng([seed, 8])
        return TEMPLATE if rng.random() >= self.share or not self.files else self.files[rng.integers(len(self.files))]

    def other(self, seed: int) -> str | None:
        """Head of the other person of a pair, by its seed alone; None if all are painted into the template.

        Two warps of one head are no two people: a pool of pairs in the template alone has no pairs of two people.
        """
        if not self.files or not self.share:
            return None
        others = [name for name in (TEMPLATE, *self.files) if name != self.of(seed)]
        return others[np.random.default_rng([seed, 14]).integers(len(others))]


class CasePool:
    """Pool of `count` cases with seeds from `first_seed` on; a killed run resumes where it stopped.

    Volumes are float16 `[count, 56, 64, 56]`, occupancy of 6 mm cells by lesions is uint8 `[count, 4, 28, 32, 28]`.
    Of pairs, volumes are `[count, 2, 56, 64, 56]`, baseline and follow-up, and the occupancy is that of the follow-up.

    Args:
        heads: heads that the cases are painted into.
        crowded: share of cases with many findings (`draw_wishes`); selected by their seeds only; never of pairs.
        painted_elsewhere: whether another of several training processes paints it.
        pairs: each case is a baseline and a follow-up of one head, or of two (`draw_follow_up`).
    """

    def __init__(
        self,
        folder: Path,
        first_seed: int,
        count: int,
        heads: PoolHeads | None = None,
        crowded: float = 0.0,
        painted_elsewhere: bool = False,
        pairs: bool = False,
    ) -> None:
        self.folder, self.first_seed, self.count, self.heads = folder, first_seed, count, heads or PoolHeads()
        self.crowded, self.painted_elsewhere, self.pairs = crowded, painted_elsewhere, pairs
        folder.mkdir(parents=True, exist_ok=True)
        self.volumes = self._map("volumes.f16", np.float16, (2, *GRID_SHAPE) if pairs else GRID_SHAPE)
        self.occupancy = self._map("occupancy.u8", np.uint8, OCCUPANCY_SHAPE)
        self._waiting: dict[int, PoolCase] = {}
        self._cases: list[PoolCase] = []
        self._read_bytes: dict[Path, int] = {}
        self._painters: list[BaseProcess] = []

    def _map(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        path = self.folder / name
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize * self.count
        with path.open("ab") as file:
            if path.stat().st_size < size:
                os.truncate(file.fileno(), size)
        return np.memmap(path, dtype=dtype, mode="r+", shape=(self.count, *shape))

    def start(self) -> CasePool:
        """Paint missing cases in the background."""
        paint_in_background(self)
        return self

    def done(self) -> int:
        """Count the complete cases before the first missing one (the line with the findings is written last)."""
        for path in self.folder.glob(TRUTH.format("*")):
            begun = self._read_bytes.get(path, 0)
            if path.stat().st_size > begun:
                with path.open("rb") as file:
                    file.seek(begun)
                    lines = file.read()
                whole = lines[: lines.rfind(b"\n") + 1]
                self._read_bytes[path] = begun + len(whole)
                for line in whole.splitlines():
                    case = _case(json.loads(line))
                    self._waiting[case.seed - self.first_seed] = case
        while (case := self._waiting.pop(len(self._cases), None)) is not None:
            self._cases.append(case)
        return len(self._cases)

    def missing(self) -> list[int]:
        """Numbers of the cases that are not painted."""
        done = self.done()
        return [number for number in range(done, self.count) if number not in self._waiting]

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
        return any(painter.is_alive() for painter in self._painters)

    def __getitem__(self, index: int) -> PoolCase:
        self.wait(index + 1)
        return self._cases[index]

    def __len__(self) -> int:
        return self.count


def paint_in_background(*pools: CasePool, processes: int | None = None) -> None:
    """Paint the missing cases of these pools, one pool after the other, in background processes.

    Args:
        processes: how many; None: one for each core.
    """
    missing = [pool for pool in pools if pool.missing()]
    if not missing:
        return
    arguments = [(p.folder, p.first_seed, p.count, p.heads, p.crowded, False, p.pairs) for p in missing]
    for pool in missing:
        pool.heads.real_outlines()  # read once, then kept for all painters
    count = processes or len(os.sched_getaffinity(0))
    context = get_context("spawn")
    painters = [context.Process(target=_paint_all, args=(arguments, k, count), daemon=True) for k in range(count)]
    for painter in painters:
        painter.start()
    for pool in missing:
        pool._painters = list(painters)


def _case(record: dict) -> PoolCase:
    findings, baseline = (tuple(map(Finding.model_validate, record.get(key, ()))) for key in ("findings", "baseline"))
    comparison = Comparison.model_validate(record["comparison"]) if "comparison" in record else None
    centres = np.asarray(record["centres"], dtype=np.float32).reshape(-1, 3)
    return PoolCase(record["seed"], findings, centres, baseline, comparison)


def _paint_all(pools: list[tuple], painter: int, painters: int) -> None:
    """Run one of the background painters, which end with the process that started them."""
    import torch

    torch.set_num_threads(1)
    parent = os.getppid()
    for arguments in pools:
        _paint_pool(CasePool(*arguments), painter, painters, parent)


def _paint_pool(pool: CasePool, painter: int, painters: int, parent: int) -> None:
    """Paint a painter's share of a pool: for each case the voxels first, then the line with its findings."""
    path, heads = pool.folder / TRUTH.format(painter), pool.heads
    mine = [number for number in pool.missing() if number % painters == painter]
    if not mine:
        return
    outlines = heads.real_outlines()
    head_of = lru_cache(maxsize=HEADS_KEPT)(load_coarse_anatomy)
    for head in heads.files[painter::painters]:
        head_of(head, heads.cache)
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(pool._read_bytes.get(path, 0))
        file.seek(0, os.SEEK_END)
        for number in mine:
            if os.getppid() != parent:
                return
            record = (_paint_pair if pool.pairs else _paint_scan)(pool, number, head_of, outlines)
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()


HeadOf = Callable[[str, Path | None], "Anatomy"]


def _paint_scan(pool: CasePool, number: int, head_of: HeadOf, outlines: tuple[Outline, ...]) -> dict:
    """Paint the voxels of a case; returns its line."""
    seed, heads = pool.first_seed + number, pool.heads
    crowded = bool(np.random.default_rng([seed, 9]).random() < pool.crowded)
    anatomy = head_of(heads.of(seed), heads.cache)
    blueprint = draw_blueprint(seed, anatomy, crowded=crowded, outlines=outlines)
    return _rendered(pool, number, blueprint, anatomy)


def _paint_pair(pool: CasePool, number: int, head_of: HeadOf, outlines: tuple[Outline, ...]) -> dict:
    """Paint the voxels of a baseline and a follow-up; returns their line."""
    seed, heads = pool.first_seed + number, pool.heads
    anatomy = head_of(heads.of(seed), heads.cache)
    name = heads.other(seed) if is_of_two_people(seed) else None
    other = None if name is None else head_of(name, heads.cache)
    pair = draw_follow_up(seed, anatomy, outlines, other)
    pool.volumes[number, 0] = render_on_model_grid(pair.baseline, other or anatomy, heads.extracted).volume
    return _rendered(pool, number, pair.follow_up, anatomy) | {
        "baseline": _plain(pair.baseline.findings),
        "comparison": pair.comparison.model_dump(mode="json", exclude_none=True),
    }


def _rendered(pool: CasePool, number: int, blueprint: Blueprint, anatomy: Anatomy) -> dict:
    """Paint a scan, the later one of a pair, into the pool; returns what its line says of it."""
    case = render_on_model_grid(blueprint, anatomy, pool.heads.extracted)
    pool.volumes[(number, 1) if pool.pairs else number] = case.volume
    blocks = case.lesions.reshape(4, *(n for size in OCCUPANCY_SHAPE[1:] for n in (size, 2)))
    pool.occupancy[number] = np.round(255 * blocks.mean(axis=(2, 4, 6)).clip(0, 1))
    return {
        "seed": blueprint.seed,
        "findings": _plain(blueprint.findings),
        "centres": _in_report_order(blueprint, case.centres).round(2).tolist(),
    }


def _plain(findings: tuple[Finding, ...]) -> list[dict]:
    return [f.model_dump(mode="json", exclude_none=True) for f in findings]


def _in_report_order(blueprint: Blueprint, centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sort centres as the focal findings are sorted."""
    focal = [f for f in blueprint.findings if f.kind in FOCAL]
    order = [blueprint.lesion_findings.index(f) for f in focal]
    return centres[order]
