"""Texts of the embedded model's training in the forms that its prompts have, as token ids with labels and weights.

A document is a sequence of parts, each the `<image>` tokens of its scans, then a report. One part about one scan is the
plain report; several parts are examples and the report that follows them; a part about two scans is a follow-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.data.labels import IGNORED
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from neuroflamingo.findings.wording import RenderedReport

Learnt = Literal["all", "impression", "nothing"]


class Part(NamedTuple):
    """One report of a document, the number of scans right before it, and what of it has labels."""

    report: RenderedReport
    scans: int = 1
    learnt: Learnt = "all"


Document = tuple[Part, ...]


class Texts(NamedTuple):
    """Token ids, attention mask, labels and loss weights, each `[batch, text]`."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Texts:
        """The same texts on a device."""
        return Texts(*(part.to(device) for part in self))

    def rows(self, rows: slice) -> Texts:
        """Select some of the texts."""
        return Texts(*(part[rows] for part in self))

    def learnt(self) -> float:
        """Number of tokens with labels; the first of a row has none, since nothing precedes it."""
        return float((self.labels[:, 1:] != IGNORED).sum())


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document], finding_weight: float = 1.0
) -> Texts:
    """Encode `<image>report<|endofchunk|>`, once for each part, padded on the right.

    Returns:
        Labels are -100 at padding, `<image>` and what is not learnt; weights are `finding_weight` where a token
        overlaps a finding-carrying word, 0 where there is no label, 1 elsewhere.
    """
    parts = [part for document in documents for part in document]
    encoded = tokenizer([p.report.text for p in parts], return_offsets_mapping=True, add_special_tokens=False)
    columns = [
        _encode_part(tokenizer, part, ids, offsets, finding_weight)
        for part, ids, offsets in zip(parts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    made = iter(columns)
    rows = [torch.cat([next(made) for _ in document], dim=1) for document in documents]
    longest, pad = max(row.shape[1] for row in rows), float(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    whole = torch.tensor([pad, IGNORED, 0.0], dtype=torch.float64)[:, None].repeat(len(rows), 1, longest)
    for row, filled in enumerate(rows):
        whole[row, :, : filled.shape[1]] = filled
    ids, labels, weights = whole.unbind(1)
    lengths = torch.tensor([row.shape[1] for row in rows])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return Texts(ids.long(), mask, labels.long(), weights.float())


def _encode_part(
    tokenizer: PreTrainedTokenizerFast, part: Part, tokens: list[int], offsets: list[tuple[int, int]], weight: float
) -> Tensor:
    """Ids, labels and weights of a part, `[3, text]`."""
    image, end = (tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, END_OF_CHUNK))
    ids = np.array([*[image] * part.scans, *tokens, end])
    weights = np.ones(len(ids))
    starts, ends = np.array(offsets).T
    for first, last in part.report.spans:
        weights[part.scans + np.flatnonzero((starts < last) & (ends > first))] = weight
    unlearnt = np.arange(len(ids)) < part.scans
    if part.learnt == "nothing":
        unlearnt[:] = True
    elif part.learnt == "impression":
        text = part.report.text
        conclusion = text.index(":", text.rindex("\n")) + 1  # whatever a house calls it, it is the last section
        unlearnt[part.scans : -1] |= ends <= conclusion
    labels = np.where(unlearnt, IGNORED, ids)
    return torch.from_numpy(np.stack([ids, labels, np.where(unlearnt, 0.0, weights)]))
