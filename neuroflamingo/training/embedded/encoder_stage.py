"""The encoder's stage: pretraining on painted cases with dense supervision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.evaluation.readout import Thresholds, choose_thresholds, decode
from neuroflamingo.evaluation.scoring import score_findings
from neuroflamingo.findings.vocabulary import Finding, mirror
from neuroflamingo.training.embedded.dense_supervision import DenseSupervision, Targets, Totals, build_targets
from neuroflamingo.training.embedded.shared_batch_norm import share_batch_norm
from neuroflamingo.training.embedded.stage import StageTask, plan_of, train_stage
from neuroflamingo.training.precision import autocast
from neuroflamingo.training.task import Counts
from neuroflamingo_encoders.families.tiny_t1w.network import Readout, TinyT1wEncoder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe, EncoderStageSettings
    from neuroflamingo.training.embedded.painted_pool import CasePool

THICK_SHARE, THICKEST = 0.33, 0.25
"""Share of heads that are blurred along one axis, and the most of its signal that a voxel then has from either
neighbour: slices of up to 5 mm, which `render_native` stores and the drawing on the model grid leaves out."""
TYPICAL_HEADS = 256
"""Number of heads of the pool from which the encoder learns the typical value of each voxel."""


class Batch(NamedTuple):
    """Prepared heads `[scan, 1, x, y, z]` and the targets of their readout."""

    scans: Tensor
    targets: Targets


def draw_batch(
    pool: CasePool, settings: EncoderStageSettings, centres: Tensor, seed: int, micro_step: int, rows: slice
) -> Batch:
    """Draw some rows of a micro-batch; half of the heads are mirrored, together with the sides in their findings."""
    rng, size = np.random.default_rng([seed, micro_step]), settings.optim.batch
    step = micro_step // settings.optim.accumulate
    window = min(len(pool), int(settings.first_window + settings.window_growth * step))
    pool.wait(window)
    chosen, flips = rng.integers(window, size=size), rng.random(size) < 0.5
    thickness = [draw_thickness(rng) if rng.random() < THICK_SHARE else None for _ in range(size)]
    jitter = torch.from_numpy(rng.normal(1.0, 0.05, (size, 1, 1, 1, 1)).astype(np.float32))
    volumes, occupancy, cases = [], [], []
    for index, flip, thick in list(zip(chosen.tolist(), flips.tolist(), thickness, strict=True))[rows]:
        case = pool[index]
        volume, occupied = np.asarray(pool.volumes[index], np.float32), pool.occupancy[index]
        findings, places = case.findings, case.centres
        if flip:
            volume, occupied = volume[::-1], occupied[:, ::-1]
            findings, places = mirror(findings), places * np.array([-1, 1, 1], dtype=np.float32)
        volumes.append(np.ascontiguousarray(volume) if thick is None else thick_slices(volume, *thick))
        occupancy.append(np.ascontiguousarray(occupied))
        cases.append((findings, places))
    x = torch.from_numpy(np.stack(volumes))[:, None] * jitter[rows]
    return Batch(x, build_targets(cases, (torch.from_numpy(np.stack(occupancy)).float() / 255).clamp(0, 1), centres))


def draw_thickness(rng: np.random.Generator) -> tuple[int, np.float32]:
    """Draw the slice axis, and the share of a voxel's signal that comes from each neighbour."""
    return int(rng.integers(3)), np.float32(rng.uniform(0.0, THICKEST))


def thick_slices(volume: np.ndarray, axis: int, share: np.float32) -> np.ndarray:
    """Blur a head along one axis, as thick slices do."""
    apart = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
    before, after = (np.take(apart, range(first, first + volume.shape[axis]), axis) for first in (0, 2))
    return (1 - 2 * share) * volume + share * (before + after)


@torch.no_grad()
def read_pool(encoder: TinyT1wEncoder, pool: CasePool, cases: range, batch: int = 16) -> list[Readout]:
    """Compute the encoder's readout of cases of a pool, batch by batch (without occupancy)."""
    parts, device = [], encoder.template.device
    with autocast(device):
        for first in cases[::batch]:
            last = min(first + batch, cases.stop)
            pool.wait(last)
            x = torch.from_numpy(np.asarray(pool.volumes[first:last], np.float32))[:, None]
            empty = torch.zeros(len(x))
            readout = encoder.read(x.to(device))._replace(occupancy=empty, fine_occupancy=empty)
            parts.append(Readout(*(column.float().cpu() for column in readout)))
    return parts


class EncoderTask(StageTask):
    """Dense supervision of the encoder at every cell."""

    model: TinyT1wEncoder
    choose_by = "full_finding_f1"

    def __init__(self, recipe: EmbeddedRecipe, pool: CasePool, validation: CasePool, accelerator: Accelerator) -> None:
        torch.manual_seed(recipe.seed)
        encoder = TinyT1wEncoder().to(accelerator.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if accelerator.num_processes > 1:
            share_batch_norm(encoder)
        super().__init__(encoder, plan_of(recipe, "encoder"), accelerator)
        self.settings, self.pool, self.validation = recipe.encoder, pool, validation
        self.centres = encoder.centres.cpu()
        self.run_in(DenseSupervision(encoder))

    @cached_property
    def truth(self) -> list[tuple[Finding, ...]]:
        """Findings of the validation cases."""
        return [self.validation[i].findings for i in range(len(self.validation))]

    def begin(self) -> None:
        """Learn the typical value of each voxel."""
        self.pool.wait(TYPICAL_HEADS)
        heads = torch.from_numpy(np.asarray(self.pool.volumes[:TYPICAL_HEADS], np.float32))
        self.model.learn_typical(heads.to(self.accelerator.device))

    def buffers(self) -> dict[str, Tensor]:
        """Running statistics of the encoder's batch norms."""
        return dict(self.model.named_buffers())

    def micro_batches(self, first: int) -> Iterator[Batch]:
        """Draw micro-batches from the painted pool, from the given number on."""
        for number in count(first):
            yield draw_batch(self.pool, self.settings, self.centres, self.plan.seed, number, self.rows)

    def count(self, batch: Batch) -> Counts:
        """Count the scans of a micro-batch, and the divisors of its loss."""
        scans = float(len(batch.scans))
        return Counts(scans, scans, 0.0, Totals.of(batch.targets))

    def loss(self, batch: Batch, step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
        """Compute the dense loss of a micro-batch, as its share of the step's."""
        device = self.accelerator.device
        return self.runner(batch.scans.to(device), batch.targets.to(device), Totals(*step.divisors))

    def figures(self) -> dict[str, float]:
        """Score the encoder's own readout on the validation cases."""
        readout = self.read()
        scores = score_findings(self.truth, decode(readout, self.centres, self.thresholds(readout)))
        keys = ("finding_f1", "full_finding_f1", "laterality_accuracy", "region_accuracy", "size_mae_mm")
        return {key: scores[key] or 0.0 for key in (*keys, "hallucination_on_normals")}

    def read(self) -> Readout:
        """Compute the readout of all validation cases; each process computes its share."""
        parts = self.gathered(read_pool(self.model, self.validation, self.own_share(len(self.validation))))
        return Readout(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def thresholds(self, readout: Readout) -> Thresholds:
        """Choose the best thresholds for a readout of the validation cases."""
        return choose_thresholds(readout, self.centres, self.truth)


def train_encoder(
    folder: Path,
    recipe: EmbeddedRecipe,
    pool: CasePool,
    validation: CasePool,
    accelerator: Accelerator,
    quiet: bool = False,
) -> tuple[TinyT1wEncoder, Thresholds, dict[str, float]]:
    """Train the encoder and keep the weights with the best full-finding F1 of the readout.

    Returns:
        The encoder, and the readout's thresholds and figures on the validation cases.
    """
    task = EncoderTask(recipe, pool, validation, accelerator)
    figures = train_stage(task, folder, recipe.encoder.start, quiet)
    task.model.eval()
    return task.model, task.thresholds(task.read()), figures
