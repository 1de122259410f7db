"""Collation of sequences and their scans into a batch of tensors, optionally packing several sequences per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from neuroflamingo.data.labels import IGNORED
from neuroflamingo.data.sequences import nothing_learnt
from neuroflamingo.model.processor import pad_scans
from neuroflamingo.recipe.schema import KINDS
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo.data.sequences import Sequence as Tokens

Scans = Sequence[Mapping[str, Tensor]]


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Assign sequences to rows; each goes into the first row with room for it."""
    rows: list[list[int]] = []
    left: list[int] = []
    for place, length in enumerate(lengths):
        row = next((row for row, free in enumerate(left) if free >= length), None)
        if row is None:
            row = len(rows)
            rows.append([])
            left.append(room)
        rows[row].append(place)
        left[row] -= length
    return rows


def collate(
    sequences: Sequence[Tokens],
    scans: Sequence[Scans],
    *,
    pad_token_id: int,
    multipliers: Mapping[str, float],
    room: int | None = None,
) -> dict[str, Any]:
    """Collate a batch for the model, padded on the right.

    Args:
        sequences: one sequence per sample.
        scans: scans of each sequence, see `ScanSource.read`.
        pad_token_id: id of the tokenizer's padding token.
        multipliers: loss weights by kind.
        room: maximum row length in tokens, for packing several sequences per row; None: one row per sequence.

    Returns:
        `input_ids`, `attention_mask`, `labels`, `loss_weights`, `kinds` (numbers in `KINDS`, -1 for padding), all
        `[batch, text]`; `sequence_ids` (number in the row, -1 for padding) if packed; `scans` or `scan_tokens`,
        `scan_mask` and perhaps `token_mask`, if there are scans; `ids`, the sample ids in order.

    Raises:
        ScanError: a sequence without any learnt token (exit 65).
        UsageError: scans of different shapes.
    """
    if empty := [one.id for one in sequences if not one.learnt]:
        raise nothing_learnt(empty)
    packed = room is not None
    rows = first_fit([len(one.ids) for one in sequences], room) if packed else [[n] for n in range(len(sequences))]
    members = [[sequences[place] for place in row] for row in rows]

    def padded(value: Any, padding: float) -> Tensor:
        return pad_sequence([torch.cat([value(n, one) for n, one in enumerate(row)]) for row in members], True, padding)

    def filled(one: Tokens, value: float) -> Tensor:
        return torch.full(one.ids.shape, value)

    batch: dict[str, Any] = {
        "input_ids": padded(lambda n, one: one.ids, pad_token_id),
        "attention_mask": padded(lambda n, one: torch.ones_like(one.ids), 0),
        "labels": padded(lambda n, one: _labels(one, follows=n > 0), IGNORED),
        "loss_weights": padded(lambda n, one: filled(one, float(multipliers[one.kind] * one.weight)), 0.0),
        "kinds": padded(lambda n, one: filled(one, KINDS.index(one.kind)), -1),
    }
    if packed:
        batch["sequence_ids"] = padded(lambda n, one: filled(one, n), -1)
    batch |= stacked([[scan for place in row for scan in scans[place]] for row in rows])
    return batch | {"ids": [one.id for row in members for one in row]}


def _labels(one: Tokens, *, follows: bool) -> Tensor:
    """Labels of a sequence in a row; after another sequence its first token has no label: nothing predicts it."""
    if not follows:
        return one.labels
    labels = one.labels.clone()
    labels[:1] = IGNORED
    return labels


def stacked(rows: Sequence[Scans]) -> dict[str, Tensor]:
    """Stack the scans of all rows; tokens of shorter scans are padded and masked. Empty if there are no scans."""
    found = [scan for row in rows for scan in row]
    if not found:
        return {}
    if "scan" in found[0]:
        stacked, mask = pad_scans([[scan["scan"] for scan in row] for row in rows])
        return {"scans": stacked, "scan_mask": mask}
    widths = {scan["scan_tokens"].shape[-1] for scan in found}
    if len(widths) > 1:
        raise UsageError("the scan tokens of a batch must have one width", seen=f"widths {sorted(widths)}")
    longest = max(len(scan["scan_tokens"]) for scan in found)
    stacked, mask = pad_scans([[_lengthened(scan["scan_tokens"], longest) for scan in row] for row in rows])
    batch = {"scan_tokens": stacked, "scan_mask": mask}
    if any("token_mask" in scan or len(scan["scan_tokens"]) < longest for scan in found):
        batch["token_mask"], _ = pad_scans([[_lengthened(_real(scan), longest) for scan in row] for row in rows])
    return batch


def _real(scan: Mapping[str, Tensor]) -> Tensor:
    return scan.get("token_mask", torch.ones(len(scan["scan_tokens"]), dtype=torch.bool))


def _lengthened(values: Tensor, length: int) -> Tensor:
    return torch.cat([values, values.new_zeros(length - len(values), *values.shape[1:])])
