"""What a finished model needs to judge its own reports, fitted on heads of people that trained nothing.

The probabilities of findings and the thresholds below which they go unstated come from the validation cases and, where
the recipe names healthy heads for them, from these heads as they are, each also in its disturbed versions. The distance
of a head from those that the model knows comes from the training heads and the same healthy ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.evaluation.calibration import Calibration, fit_calibration
from neuroflamingo.evaluation.disturbed_scans import VERSIONS
from neuroflamingo.evaluation.greedy import write_greedily
from neuroflamingo.evaluation.likeness import FEWEST, Likeness, fit_likeness, head_features
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo.training.run_progress import StageProgress
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.preparation import prepare_many
from neuroflamingo_preprocessing.read import read_scan

if TYPE_CHECKING:
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.training.embedded.token_cache import TokenCache
    from neuroflamingo_preprocessing.scan import Scan

BATCH = 16
PAINTED_HEADS = 2000
"""Number of painted training cases among the heads that a model knows."""


@dataclass(frozen=True)
class HeadVersion:
    """A healthy head as it came, or in a disturbed version (picklable, so that a worker can read it)."""

    path: str
    version: str | None = None

    def __call__(self) -> Scan:
        """Read it; a version that the head does not allow is the head itself."""
        torch.set_num_threads(1)
        scan = read_scan(self.path)
        return scan if self.version is None else VERSIONS[self.version](scan) or scan


@dataclass(frozen=True)
class SecondLookRecords:
    """The records of a model; None where there were too few heads.

    Attributes:
        calibration: of the probability of findings.
        likeness: of heads.
        refused: healthy heads that could not be prepared, of all that were tried.
    """

    calibration: Calibration
    likeness: Likeness | None
    refused: tuple[int, int]


@torch.no_grad()
def fit_second_look(
    model: NeuroFlamingo,
    tokenizer: Any,
    training: TokenCache,
    validation: TokenCache,
    *,
    training_heads: Sequence[str] = (),
    healthy_heads: Sequence[str] = (),
    quiet: bool = False,
) -> SecondLookRecords:
    """Fit the records of a finished model.

    Args:
        model: with its encoder, which has a readout.
        tokenizer: of the model.
        training: painted cases that the fusion learnt from.
        validation: painted cases in other people's heads.
        training_heads: healthy heads that were painted into for training.
        healthy_heads: healthy heads of other people, those of the validation cases.
        quiet: show no progress.
    """
    versions = [HeadVersion(path, version) for path in healthy_heads for version in (None, *VERSIONS)]
    healthy = _head_tokens(versions, model, "healthy heads", quiet)
    painted = validation[np.zeros(len(validation.pool), int), np.arange(len(validation.pool))][:, 0]
    tokens = torch.cat([painted, healthy]) if len(healthy) else painted
    truth: list[tuple[Finding, ...]] = [validation.pool[i].findings for i in range(len(painted))] + [()] * len(healthy)
    texts = write_greedily(model, tokenizer, IMAGE, tokens[:, None], batch=BATCH)
    encoder: Any = model.encoder
    nothing = torch.zeros(len(tokens))
    calibration = fit_calibration(
        encoder.read_tokens(tokens.to(model.device), nothing, nothing),
        encoder.centres,
        truth,
        [parse_report(text).findings for text in texts],
        healthy=range(len(painted), len(tokens)) if len(healthy) else None,
    )
    likeness = None
    if len(healthy) >= FEWEST and training_heads:
        own = _head_tokens([HeadVersion(path) for path in training_heads], model, "training heads", quiet)
        count = min(PAINTED_HEADS, len(training.pool))
        known = torch.cat([training[np.zeros(count, int), np.arange(count)][:, 0], own])
        if len(known) >= FEWEST:
            likeness = fit_likeness(head_features(known.numpy()), head_features(healthy.numpy()))
    return SecondLookRecords(calibration, likeness, (2 * len(versions) - len(healthy), 2 * len(versions)))


def _head_tokens(heads: Sequence[HeadVersion], model: NeuroFlamingo, what: str, quiet: bool) -> Tensor:
    """Tokens of heads, each plain and mirrored, `[head, token, width]`; those that cannot be prepared are left out."""
    encoder: Any = model.encoder
    made: list[Tensor] = []
    spec = encoder.card.scan
    side = 2 + [axis.name for axis in spec.axes].index("x")
    with StageProgress(what, len(heads), quiet=quiet, unit="scan") as progress:
        for number, one in enumerate(prepare_many(heads, spec, os.cpu_count() or 1)):
            if not isinstance(one, NeuroFlamingoError):
                plain = torch.from_numpy(one.tensor)[None, None]
                both = torch.cat([plain, plain.flip(side)])
                made.append(encoder(both.to(model.device)).tokens[:, 0].float().cpu())
            progress.update(number + 1, {})
    return torch.cat(made) if made else torch.zeros(0, 1, encoder.card.output.width)
