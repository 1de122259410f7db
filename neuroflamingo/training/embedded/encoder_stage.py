"""Pretraining of the encoder on painted cases with dense supervision: where, what, which side, how large, how much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from neuroflamingo.evaluation.readout import CELL_MM, SIDES, Thresholds, choose_thresholds, decode
from neuroflamingo.evaluation.scoring import score_findings
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, LOBES, Finding, FindingClass, Side, mirror
from neuroflamingo.training.embedded.painted_pool import CasePool
from neuroflamingo.training.embedded.stage_loop import finished, run_stage
from neuroflamingo.training.embedded.stage_settings import EncoderSettings
from neuroflamingo.training.precision import autocast
from neuroflamingo_encoders.families.tiny_t1w.network import Readout, TinyT1wEncoder

THICK_SHARE, THICKEST = 0.33, 0.25
"""Share of heads that are blurred along one axis, and the most of its signal that a voxel then has from either
neighbour: slices of up to 5 mm, which `render_native` stores and the drawing on the model grid leaves out."""
HEAT_SIGMA_MM = 9.0
NEAR_MM = 22.0
TYPICAL_HEADS = 256
"""Heads of the pool from which the encoder learns what is typical at each place."""


@dataclass
class Targets:
    """Dense targets of a batch; shapes as in `Readout`, with `near` the weight of a cell for size, place and names."""

    heat: Tensor
    peak: Tensor
    near: Tensor
    size: Tensor
    offset: Tensor
    region: Tensor
    side: Tensor
    white_matter: Tensor
    ventricles: Tensor
    atrophy: Tensor
    fine_occupancy: Tensor

    def to(self, device: str) -> Targets:
        return Targets(**{name: value.to(device) for name, value in vars(self).items()})


def build_targets(cases: list[tuple[tuple[Finding, ...], np.ndarray]], fine: Tensor, centres: Tensor) -> Targets:
    """Targets from findings, lesion centres (grid mm) and 6 mm occupancy for cells at `centres` `[cell, 3]`."""
    n, cells = len(cases), len(centres)
    shape = (n, cells, len(FOCAL))
    t = Targets(
        torch.zeros(shape),
        torch.zeros(shape),
        torch.zeros(shape),
        torch.zeros(shape),
        torch.zeros(*shape, 3),
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(n, dtype=torch.long),
        torch.zeros(n, dtype=torch.long),
        torch.zeros(n, len(LOBES), 2),
        fine,
    )
    for i, (findings, places) in enumerate(cases):
        focal = [f for f in findings if f.kind in FOCAL]
        for finding, place in zip(focal, torch.from_numpy(np.ascontiguousarray(places)), strict=True):
            _mark(t, i, finding, place, centres)
        for finding in findings:
            if finding.kind is FindingClass.WHITE_MATTER_LESIONS:
                t.white_matter[i] = finding.grade or 0
            elif finding.kind is FindingClass.VENTRICULAR_ENLARGEMENT:
                t.ventricles[i] = finding.grade or 0
            elif finding.kind is FindingClass.ATROPHY:
                sides = [finding.side in (s, Side.BILATERAL) for s in (Side.LEFT, Side.RIGHT)]
                t.atrophy[i, LOBES.index(finding.region)] = torch.tensor(sides, dtype=torch.float32)  # type: ignore[arg-type]
    return t


def _mark(t: Targets, i: int, finding: Finding, place: Tensor, centres: Tensor) -> None:
    k = FOCAL.index(finding.kind)
    offset = place - centres
    distance = offset.norm(dim=1)
    heat = torch.exp(-(distance**2) / (2 * HEAT_SIGMA_MM**2))
    nearest = distance.argmin()
    t.heat[i, :, k] = torch.maximum(t.heat[i, :, k], heat)
    t.peak[i, nearest, k] = 1.0
    mine = (distance < NEAR_MM) & (heat > t.near[i, :, k])
    mine[nearest] = True
    t.near[i, mine, k] = heat[mine].clamp(min=0.1)
    t.near[i, nearest, k] = 1.0
    t.size[i, mine, k] = float(np.log(finding.size_mm or 1.0))
    t.offset[i, mine, k] = offset[mine] / CELL_MM
    t.region[i, mine, k] = FOCAL_REGIONS.index(finding.region)  # type: ignore[arg-type]
    t.side[i, mine, k] = SIDES.index(finding.side)  # type: ignore[arg-type]


def dense_loss(readout: Readout, t: Targets) -> tuple[Tensor, dict[str, float]]:
    """Sum of the supervised losses; presence is a focal loss on heat maps (as in CenterNet, Zhou et al. 2019)."""
    count = t.peak.sum().clamp(min=1)
    logits = readout.presence.float()
    p = logits.sigmoid()
    hit = -((1 - p) ** 2) * F.logsigmoid(logits) * t.peak
    miss = -((1 - t.heat) ** 4) * p**2 * F.logsigmoid(-logits) * (1 - t.peak)
    weight = t.near / t.near.sum().clamp(min=1)
    nearest, kind = t.near.max(dim=2)
    named = F.cross_entropy(logits.flatten(0, 1), kind.flatten(), reduction="none")
    names = F.cross_entropy(readout.region.float().flatten(0, 2), t.region.flatten(), reduction="none")
    sides = F.cross_entropy(readout.side.float().flatten(0, 2), t.side.flatten(), reduction="none")
    sized = F.smooth_l1_loss(readout.size.float(), t.size, beta=0.1, reduction="none")
    moved = F.smooth_l1_loss(readout.offset.float(), t.offset, beta=0.2, reduction="none").sum(-1)
    coarse_occupancy = F.avg_pool3d(t.fine_occupancy, 2)
    parts = {
        "presence": (hit.sum() + miss.sum()) / count,
        "kind": (named * nearest.flatten()).sum() / nearest.sum().clamp(min=1),
        "size": 2.0 * (sized * weight).sum(),
        "offset": 0.5 * (moved * weight).sum(),
        "region": 0.5 * (names * weight.flatten()).sum(),
        "side": 0.3 * (sides * weight.flatten()).sum(),
        "white": 0.5 * F.cross_entropy(readout.white_matter.float(), t.white_matter),
        "ventricle": 0.5 * F.cross_entropy(readout.ventricles.float(), t.ventricles),
        "atrophy": 6.0 * F.binary_cross_entropy_with_logits(readout.atrophy.float(), t.atrophy),
        "occupancy": 8.0 * _occupied(readout.occupancy, coarse_occupancy),
        "fine": 8.0 * _occupied(readout.fine_occupancy, t.fine_occupancy),
    }
    total = torch.stack(list(parts.values())).sum()
    return total, {name: float(value.detach()) for name, value in parts.items()}


def _occupied(logits: Tensor, share: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), share, pos_weight=share.new_tensor(4.0))


def draw_batch(pool: CasePool, settings: EncoderSettings, seed: int, step: int):
    """Volumes, cases and occupancy of one step; half of the heads are mirrored, sides and all."""
    rng = np.random.default_rng([seed, step])
    window = min(len(pool), int(settings.first_window + settings.window_growth * step))
    pool.wait(window)
    chosen, flips = rng.integers(window, size=settings.batch), rng.random(settings.batch) < 0.5
    volumes, occupancy, cases = [], [], []
    for index, flip in zip(chosen.tolist(), flips.tolist(), strict=True):
        case = pool[index]
        volume, occupied = np.asarray(pool.volumes[index], np.float32), pool.occupancy[index]
        findings, places = case.findings, case.centres
        if flip:
            volume, occupied = volume[::-1], occupied[:, ::-1]
            findings, places = mirror(findings), places * np.array([-1, 1, 1], dtype=np.float32)
        volumes.append(_thick_slices(volume, rng) if rng.random() < THICK_SHARE else np.ascontiguousarray(volume))
        occupancy.append(np.ascontiguousarray(occupied))
        cases.append((findings, places))
    jitter = torch.from_numpy(rng.normal(1.0, 0.05, (settings.batch, 1, 1, 1, 1)).astype(np.float32))
    x = torch.from_numpy(np.stack(volumes))[:, None] * jitter
    return x, cases, (torch.from_numpy(np.stack(occupancy)).float() / 255).clamp(0, 1)


def _thick_slices(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The head as thick slices along one axis would show it."""
    axis, share = int(rng.integers(3)), np.float32(rng.uniform(0.0, THICKEST))
    apart = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
    before, after = (np.take(apart, range(first, first + volume.shape[axis]), axis) for first in (0, 2))
    return (1 - 2 * share) * volume + share * (before + after)


def read_pool(encoder: TinyT1wEncoder, pool: CasePool, batch: int = 16) -> Readout:
    """The encoder's readout of every case of a pool (no occupancy)."""
    parts = []
    device = encoder.template.device
    with torch.no_grad(), autocast(device):
        for first in range(0, len(pool), batch):
            pool.wait(min(first + batch, len(pool)))
            x = torch.from_numpy(np.asarray(pool.volumes[first : first + batch], np.float32))[:, None]
            empty = torch.zeros(len(x))
            parts.append(encoder.read(x.to(device))._replace(occupancy=empty, fine_occupancy=empty))
    return Readout(*(torch.cat(columns).float().cpu() for columns in zip(*parts, strict=True)))


def train_encoder(
    folder: Path,
    settings: EncoderSettings,
    pool: CasePool,
    validation: CasePool,
    seed: int,
    device: str = "cpu",
    quiet: bool = False,
) -> tuple[TinyT1wEncoder, Thresholds, dict[str, float]]:
    """Train the encoder, keep the average weights with the best full-finding F1 of the readout.

    Returns:
        the encoder, the readout's thresholds and the readout's figures on the validation cases.
    """
    torch.manual_seed(seed)
    encoder = TinyT1wEncoder().to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    centres = encoder.centres.cpu()
    if not finished(folder) and not settings.start:
        pool.wait(TYPICAL_HEADS)
        encoder.learn_typical(torch.from_numpy(np.asarray(pool.volumes[:TYPICAL_HEADS], np.float32)).to(device))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        x, cases, occupancy = draw_batch(pool, settings, seed, step)
        targets = build_targets(cases, occupancy, centres)
        return dense_loss(encoder.read(x.to(device)), targets.to(device))

    def validate(module: torch.nn.Module) -> dict[str, float]:
        readout = read_pool(encoder, validation)
        truth = [validation[i].findings for i in range(len(validation))]
        thresholds = choose_thresholds(readout, centres, truth)
        scores = score_findings(truth, decode(readout, centres, thresholds))
        keys = ("finding_f1", "full_finding_f1", "laterality_accuracy", "region_accuracy", "size_mae_mm")
        return {key: scores[key] or 0.0 for key in (*keys, "hallucination_on_normals")}

    figures = run_stage(
        "encoder", folder, encoder, settings, loss_of, validate, "full_finding_f1", settings.average, quiet=quiet
    )
    readout = read_pool(encoder.eval(), validation)
    truth = [validation[i].findings for i in range(len(validation))]
    return encoder, choose_thresholds(readout, centres, truth), figures
