"""Greedy report generation from encoder tokens, for evaluation and for validation during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from neuroflamingo.model.tokens import token_ids

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo.model.neuroflamingo import NeuroFlamingo

LONGEST = 400


@torch.no_grad()
def write_greedily(
    model: NeuroFlamingo,
    tokenizer: Any,
    prompts: str | Sequence[str],
    tokens: Float[Tensor, "case scan token width"],
    *,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Generate a text for each case, `batch` cases at a time.

    Args:
        model: on its device.
        tokenizer: of the model.
        prompts: with as many `<image>` as a case has scans; one for all cases, or one for each.
        tokens: encoder tokens of the cases.
        batch: number of cases at a time.
        progress: called with (done, all).
    """
    given = [prompts] * len(tokens) if isinstance(prompts, str) else list(prompts)
    texts: list[str] = []
    for part in tokens.split(batch):
        rows = [torch.tensor(token_ids(tokenizer, text)) for text in given[len(texts) : len(texts) + len(part)]]
        out = model.generate(
            input_ids=pad_sequence(rows, True, tokenizer.pad_token_id, "left").to(model.device),
            attention_mask=pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left").to(model.device),
            scan_tokens=part.to(model.device),
            max_new_tokens=LONGEST,
            do_sample=False,
        )
        longest = max(map(len, rows))
        texts += tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
        if progress:
            progress(len(texts), len(tokens))
    return texts
