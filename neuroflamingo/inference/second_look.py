"""What the encoder itself says of a report: the probability of each finding, and whether it knows heads like this.

Both need records that a model may have or not: `calibration` in the training of its config, and `likeness.safetensors`
beside its weights. Without them reports show neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.evaluation.calibration import Calibration, finding_logit
from neuroflamingo.evaluation.likeness import Likeness, head_features, read_likeness
from neuroflamingo.report.assessment import Judgement
from neuroflamingo.report.records import LikenessRecord
from neuroflamingo.settings import check_settings

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from neuroflamingo.findings.vocabulary import Finding

UNLIKE = "This head is unlike those that the model was trained on: its findings are unreliable."


@dataclass(frozen=True)
class SecondLook:
    """A model's records for judging its own reports.

    Attributes:
        calibration: of the readout's probabilities; None: there is none.
        likeness: of heads; None: there is none.
    """

    calibration: Calibration | None = None
    likeness: Likeness | None = None

    @classmethod
    def of(cls, folder: Path, training: Any) -> SecondLook:
        """Read the records of a model's folder.

        Args:
            folder: of the model.
            training: the record of its training in `config.json`.

        Raises:
            ConfigError: a calibration with unknown keys or wrong values (exit 78).
            ModelError: a likeness that is none (exit 65).
        """
        stored = training.get("calibration") if isinstance(training, dict) else None
        where = f"training.calibration in {folder / 'config.json'}"
        calibration = None if stored is None else check_settings(Calibration, stored, where)
        return cls(calibration, read_likeness(folder))

    def judge(
        self, encoder: Any, tokens: Float[np.ndarray, "scan token width"] | None, findings: Sequence[Finding]
    ) -> tuple[Judgement, ...]:
        """Probability and verdict of each finding; without a calibration, or of several scans, all are stated.

        Args:
            encoder: the model's; one with `read_tokens` has a readout.
            tokens: of the report's scans.
            findings: of the report.
        """
        if self.calibration is None or tokens is None or len(tokens) != 1 or not hasattr(encoder, "read_tokens"):
            return tuple(Judgement() for _ in findings)
        import torch

        with torch.inference_mode():
            nothing = torch.zeros(1)
            device = encoder.centres.device
            readout = encoder.read_tokens(torch.from_numpy(tokens).to(device), nothing, nothing)
        return tuple(self._judge(finding, finding_logit(readout, encoder.centres, 0, finding)) for finding in findings)

    def _judge(self, finding: Finding, logit: float) -> Judgement:
        assert self.calibration is not None
        fitted = self.calibration.classes.get(finding.kind)
        if fitted is None:
            return Judgement()
        probability = fitted.probability(logit)
        return Judgement(round(probability, 4), fitted.verdict(probability))

    def compare(self, tokens: Float[np.ndarray, "scan token width"] | None) -> LikenessRecord | None:
        """How far the least usual of the report's heads is from those that the model knows."""
        if self.likeness is None or tokens is None or head_features(tokens).shape[1] != len(self.likeness.mean):
            return None
        score, limit = float(self.likeness.score(head_features(tokens)).max()), self.likeness.threshold
        return LikenessRecord(score=round(score, 4), threshold=round(limit, 4), unlike=score > limit)
