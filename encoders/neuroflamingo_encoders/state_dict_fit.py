"""Checks that a weight file fits an encoder, by its hash and by names and shapes of its tensors (no torch here)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard, Weights

Shapes = Mapping[str, Sequence[int]]
SHOWN = 3


def own_names(rules: Weights, keys: Iterable[str]) -> dict[str, str]:
    """Map the encoder's tensor names to those in a file, from which the card's prefixes are removed in order.

    Raises:
        ModelError: two tensors of the file get the same name (exit 65).
    """
    names: dict[str, str] = {}
    for key in keys:
        name = key
        for prefix in rules.strip_prefixes:
            name = name.removeprefix(prefix)
        if name in names:
            raise ModelError(
                f"two tensors of the file are '{name}' once the card's prefixes are removed",
                expected="one tensor for each name",
                seen=f"{names[name]} and {key}",
                hint="remove one of them from the file",
                exit_code=65,
            )
        names[name] = key
    return names


def not_allowed(keys: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Keys that match none of the card's patterns, sorted."""
    return sorted(key for key in keys if not any(fnmatchcase(key, pattern) for pattern in patterns))


def misfits(rules: Weights, own: Shapes, seen: Shapes) -> list[str]:
    """Faults in words, one for each kind; empty if the tensors fit.

    Args:
        rules: the card's rules, with the names that may be missing or unexpected.
        own: shapes of the encoder's tensors.
        seen: shapes of the file's tensors under the encoder's names (see `own_names`).
    """
    missing = not_allowed(set(own) - set(seen), rules.allow_missing)
    unexpected = not_allowed(set(seen) - set(own), rules.allow_unexpected)
    shapes = sorted(
        f"{name}: {list(seen[name])}, not {list(own[name])}"
        for name in set(own) & set(seen)
        if list(own[name]) != list(seen[name])
    )
    faults = (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
    return [f"{len(names)} {word} ({', '.join(names[:SHOWN])})" for word, names in faults if names]


def check_fit(card: EncoderCard, own: Shapes, seen: Shapes) -> None:
    """Refuse tensors that do not fit an encoder.

    Raises:
        ModelError: names or shapes differ beyond what the card allows (exit 65).
    """
    faults = misfits(card.weights, own, seen)
    if faults:
        raise ModelError(
            f"the weights do not fit the encoder '{card.name}'",
            expected=f"{len(own)} tensors by this encoder's names and shapes",
            seen="; ".join(faults),
            hint="check that the file belongs to this encoder and version",
            exit_code=65,
        )


def not_safetensors(path: Path, error: Exception) -> ModelError:
    """The error for a file that is cut off, or of another format (exit 65)."""
    return ModelError(
        f"{path} is not a safetensors file",
        expected="safetensors (pickles are never loaded)",
        seen=str(error),
        hint="convert the checkpoint first: neuroflamingo models convert",
        exit_code=65,
    )


def check_hash(card: EncoderCard, path: Path, seen: str, converted_from: str | None = None) -> None:
    """Refuse a file other than the one that the card declares; a card without a hash accepts any.

    Args:
        card: card with the hash of the published file.
        path, seen: the file and its hash.
        converted_from: for a file that `convert_weights` wrote, the hash of the original file.

    Raises:
        ModelError: another hash (exit 65).
    """
    wanted = card.weights.sha256
    if wanted and wanted not in (seen, converted_from):
        raise ModelError(
            f"{path} is not the file that the card of '{card.name}' declares",
            expected=f"SHA-256 {wanted}",
            seen=f"{seen}, converted from {converted_from}" if converted_from else seen,
            hint="fetch the file again, with --overwrite",
            exit_code=65,
        )
