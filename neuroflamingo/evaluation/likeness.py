"""How far a prepared head is from those that a model knows, by the encoder's own features.

`fit_likeness` makes the record from training heads and held-out healthy ones; `Likeness.save` puts it beside the
weights, and reports on heads above its threshold say that they are unreliable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.model.folder import LIKENESS
from neuroflamingo_preprocessing.errors import ModelError, UsageError
from neuroflamingo_preprocessing.files import write_bytes_atomic

if TYPE_CHECKING:
    from jaxtyping import Float

FLAGGED = 0.05
"""Share of held-out heads that lie above the threshold."""
FEWEST = 20
"""Heads of either kind that the distance is fitted on at least."""
_NAMES = ("mean", "whiten", "threshold")


@dataclass(frozen=True)
class Likeness:
    """Distance of a head's features from those of training heads, and where it becomes unusual.

    Attributes:
        mean: of the training heads' features, `[feature]`.
        whiten: features minus mean times this have unit covariance, `[feature, feature]`.
        threshold: score that one in twenty held-out healthy heads exceeds.
    """

    mean: Float[np.ndarray, " feature"]
    whiten: Float[np.ndarray, "feature feature"]
    threshold: float

    def score(self, features: Float[np.ndarray, "head feature"]) -> Float[np.ndarray, " head"]:
        """Mahalanobis distance per root feature: about 1 for a training head."""
        return np.linalg.norm((features - self.mean) @ self.whiten, axis=1) / np.sqrt(len(self.mean))

    def save(self, folder: str | Path) -> Path:
        """Write `likeness.safetensors` into a model's folder, replacing an older one."""
        from safetensors.numpy import save

        arrays = {"mean": self.mean, "whiten": self.whiten, "threshold": np.array([self.threshold])}
        data = save({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()})
        return write_bytes_atomic(Path(folder) / LIKENESS, data, overwrite=True)


def head_features(tokens: Float[np.ndarray, "head token width"]) -> Float[np.ndarray, "head feature"]:
    """Features of heads: mean and standard deviation of their tokens, `[head, 2 width]`."""
    x = np.asarray(tokens, np.float64)
    return np.concatenate([x.mean(1), x.std(1)], axis=1)


def fit_likeness(
    training: Float[np.ndarray, "head feature"], held_out: Float[np.ndarray, "head feature"], flagged: float = FLAGGED
) -> Likeness:
    """Fit the distance on training heads, and its threshold on healthy heads of other people.

    Args:
        training: features of heads like those that the model trained on (see `head_features`), painted and healthy.
        held_out: features of healthy heads that trained nothing.
        flagged: share of the held-out heads that lie above the threshold.

    Raises:
        UsageError: too few heads, or numbers that are not finite.
    """
    from sklearn.covariance import LedoitWolf

    training, held_out = np.asarray(training, np.float64), np.asarray(held_out, np.float64)
    if min(len(training), len(held_out)) < FEWEST or not (np.isfinite(training).all() and np.isfinite(held_out).all()):
        raise UsageError(
            "the likeness of heads cannot be fitted",
            expected=f"finite features of at least {FEWEST} training heads and {FEWEST} held-out ones",
            seen=f"{len(training)} and {len(held_out)}",
            hint="give more heads",
        )
    scale = training.std(0) + 1e-6
    fitted = LedoitWolf().fit(training / scale)
    values, vectors = np.linalg.eigh(fitted.covariance_)
    whiten = (vectors / np.sqrt(np.maximum(values, 1e-12))) / scale[:, None]
    unlimited = Likeness(training.mean(0), whiten, np.inf)
    return Likeness(unlimited.mean, whiten, float(np.quantile(unlimited.score(held_out), 1 - flagged)))


def read_likeness(folder: str | Path) -> Likeness | None:
    """The likeness record of a model's folder; None if it has none.

    Raises:
        ModelError: a file that is no such record (exit 65).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = Path(folder) / LIKENESS
    if not file.is_file():
        return None
    try:
        arrays = load_file(file)
        mean, whiten, threshold = (arrays[name].astype(np.float64) for name in _NAMES)
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise _no_record(file, str(error)[:200]) from error
    shapes = mean.ndim == 1 and whiten.shape == (len(mean), len(mean)) and threshold.shape == (1,)
    if not shapes or not all(np.isfinite(part).all() for part in (mean, whiten, threshold)):
        raise _no_record(file, f"mean {mean.shape}, whiten {whiten.shape}, threshold {threshold.shape}")
    return Likeness(mean, whiten, float(threshold[0]))


def _no_record(file: Path, seen: str) -> ModelError:
    return ModelError(
        f"{file.name} in {file.parent} cannot be used",
        expected="finite mean, whiten and threshold, as Likeness.save writes them",
        seen=seen,
        hint="fit it again, or remove the file",
        exit_code=65,
    )
