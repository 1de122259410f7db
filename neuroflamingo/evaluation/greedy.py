"""Greedy report generation from encoder tokens, for evaluation and for validation during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from neuroflamingo.model.neuroflamingo import NeuroFlamingo

LONGEST = 260


@torch.no_grad()
def write_greedily(
    model: NeuroFlamingo,
    tokenizer: Any,
    prompt: Int[Tensor, "1 text"],
    tokens: Float[Tensor, "case 1 token width"],
    *,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Generate a text for each case after the same prompt, `batch` cases at a time."""
    texts: list[str] = []
    for part in tokens.split(batch):
        ids = prompt.repeat(len(part), 1).to(model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            scan_tokens=part.to(model.device),
            max_new_tokens=LONGEST,
            do_sample=False,
        )
        texts += tokenizer.batch_decode(out, skip_special_tokens=True)
        if progress:
            progress(len(texts), len(tokens))
    return texts
