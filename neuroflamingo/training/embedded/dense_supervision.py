"""Dense supervision of the encoder: location, class, side, size and extent, at every cell of a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroflamingo.evaluation.readout import CELL_MM, SIDES
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, LOBES, Finding, FindingClass, Side

if TYPE_CHECKING:
    from neuroflamingo_encoders.families.tiny_t1w.network import Readout, TinyT1wEncoder

HEAT_SIGMA_MM = 9.0
NEAR_MM = 22.0


@dataclass
class Targets:
    """Dense targets of a batch; shapes as in `Readout`; `near` weights a cell for size, offset, region and side."""

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

    def to(self, device: str | torch.device) -> Targets:
        """The same targets on a device."""
        return Targets(**{name: value.to(device) for name, value in vars(self).items()})


class Totals(NamedTuple):
    """Divisors of the parts of the loss: sums over all micro-batches and processes of a step.

    Attributes:
        scans: number of heads.
        peaks, near: sums of `Targets.peak` and `Targets.near`.
        named: sum over cells of the largest `near` of any class.
    """

    scans: float
    peaks: float
    near: float
    named: float

    @classmethod
    def of(cls, t: Targets) -> Totals:
        """Sum up one micro-batch."""
        return cls(len(t.peak), float(t.peak.sum()), float(t.near.sum()), float(t.near.amax(dim=2).sum()))


def build_targets(cases: list[tuple[tuple[Finding, ...], np.ndarray]], fine: Tensor, centres: Tensor) -> Targets:
    """Build targets from findings, lesion centres (grid mm) and 6 mm occupancy for cells at `centres` `[cell, 3]`."""
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


def dense_loss(readout: Readout, t: Targets, totals: Totals | None = None) -> tuple[Tensor, dict[str, float]]:
    """Compute the sum of the supervised losses; presence has a focal loss on heat maps (CenterNet, Zhou et al. 2019).

    Args:
        readout: predictions of the encoder.
        t: their targets.
        totals: divisors of the whole optimiser step; None: of these heads only.

    Returns:
        The loss, and its parts by name.
    """
    totals = totals or Totals.of(t)
    share, peaks, near, named_cells = len(t.peak) / totals.scans, *(max(total, 1.0) for total in totals[1:])
    logits = readout.presence.float()
    p = logits.sigmoid()
    hit = -((1 - p) ** 2) * F.logsigmoid(logits) * t.peak
    miss = -((1 - t.heat) ** 4) * p**2 * F.logsigmoid(-logits) * (1 - t.peak)
    weight = t.near / near
    nearest, kind = t.near.max(dim=2)
    named = F.cross_entropy(logits.flatten(0, 1), kind.flatten(), reduction="none")
    names = F.cross_entropy(readout.region.float().flatten(0, 2), t.region.flatten(), reduction="none")
    sides = F.cross_entropy(readout.side.float().flatten(0, 2), t.side.flatten(), reduction="none")
    sized = F.smooth_l1_loss(readout.size.float(), t.size, beta=0.1, reduction="none")
    moved = F.smooth_l1_loss(readout.offset.float(), t.offset, beta=0.2, reduction="none").sum(-1)
    coarse_occupancy = F.avg_pool3d(t.fine_occupancy, 2)
    means = {
        "white": 0.5 * F.cross_entropy(readout.white_matter.float(), t.white_matter),
        "ventricle": 0.5 * F.cross_entropy(readout.ventricles.float(), t.ventricles),
        "atrophy": 6.0 * F.binary_cross_entropy_with_logits(readout.atrophy.float(), t.atrophy),
        "occupancy": 8.0 * _occupied(readout.occupancy, coarse_occupancy),
        "fine": 8.0 * _occupied(readout.fine_occupancy, t.fine_occupancy),
    }
    parts = {
        "presence": (hit.sum() + miss.sum()) / peaks,
        "kind": (named * nearest.flatten()).sum() / named_cells,
        "size": 2.0 * (sized * weight).sum(),
        "offset": 0.5 * (moved * weight).sum(),
        "region": 0.5 * (names * weight.flatten()).sum(),
        "side": 0.3 * (sides * weight.flatten()).sum(),
        **{name: mean * share for name, mean in means.items()},
    }
    total = torch.stack(list(parts.values())).sum()
    return total, {name: float(value.detach()) for name, value in parts.items()}


def _occupied(logits: Tensor, share: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), share, pos_weight=share.new_tensor(4.0))


class DenseSupervision(nn.Module):
    """Encoder and loss as one module, for DDP."""

    def __init__(self, encoder: TinyT1wEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, targets: Targets, totals: Totals) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of a batch and its parts."""
        return dense_loss(self.encoder.read(x), targets, totals)
