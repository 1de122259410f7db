"""Packed rows: several short sequences per row, each of which sees only its own text and scans."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from neuroflamingo_preprocessing.errors import ModelError, UsageError

# Families of transformers that keep sequences apart when positions restart and there is no attention mask; sliding
# windows included (observed with 5.23, and tested).
BY_POSITIONS = frozenset(
    {
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
# Families that need the full mask, one entry for each pair of tokens.
BY_MASK = frozenset({"opt"})
PACKED = BY_POSITIONS | BY_MASK


def check_packing(
    family: str, numbered: Tensor | None, sequence_ids: Int[Tensor, "batch text"], *, cached: bool
) -> None:
    """Refuse models and inputs that do not support packing.

    Args:
        family: `model_type` of the language model.
        numbered: the resampler's embeddings of scan numbers, if it has them.
        sequence_ids: sequence that each token belongs to.
        cached: the pass uses a cache.

    Raises:
        ModelError: a family that cannot keep sequences apart. Exit code 65.
        UsageError: a cache, embeddings of scan numbers, or sequences that recur later in a row.
    """
    if family not in PACKED:
        raise ModelError(
            f"language models of the family '{family}' cannot read packed rows",
            expected=", ".join(sorted(PACKED)),
            seen=family,
            hint="leave packing off (data.pack: false)",
            exit_code=65,
        )
    if cached:
        raise UsageError("packed rows cannot be read with a cache", hint="leave use_cache and past_key_values out")
    if numbered is not None:
        raise UsageError(
            "this resampler numbers the scans of a row, which packed sequences share",
            expected="max_num_media = None",
            seen=f"max_num_media = {len(numbered)}",
            hint="leave packing off (data.pack: false)",
        )
    runs = int(_starts(sequence_ids).sum())
    if runs != sum(len(row.unique()) for row in sequence_ids):
        raise UsageError(
            "a sequence of a packed row comes back after another one",
            expected="each number of sequence_ids in one run, such as 0 0 0 1 1 2",
            hint="number the sequences of a row in order",
        )


def _starts(sequence_ids: Int[Tensor, "batch text"]) -> Bool[Tensor, "batch text"]:
    """True where a sequence begins."""
    first = torch.ones_like(sequence_ids[:, :1], dtype=torch.bool)
    return torch.cat((first, sequence_ids[:, 1:] != sequence_ids[:, :-1]), dim=1)


def packed_text_mask(
    config: Any, sequence_ids: Int[Tensor, "batch text"], attention_mask: Tensor | None
) -> tuple[Tensor | None, Int[Tensor, "batch text"]]:
    """Attention mask and position ids with which a language model of this config keeps sequences apart.

    Padding is a sequence of its own, which the others do not see.
    """
    if attention_mask is not None:
        sequence_ids = sequence_ids.masked_fill(attention_mask.to(sequence_ids) == 0, -1)
    place = torch.arange(sequence_ids.shape[1], device=sequence_ids.device)
    positions = place - (place * _starts(sequence_ids)).cummax(-1).values
    if config.model_type not in BY_MASK:
        return None, positions
    own = (sequence_ids[:, :, None] == sequence_ids[:, None, :]) & (place[:, None] >= place)
    if config._attn_implementation != "eager":
        return own[:, None], positions
    return torch.zeros(own.shape, device=own.device).masked_fill(~own, torch.finfo(torch.float32).min)[
        :, None
    ], positions


def packed_scan_bounds(
    images: Bool[Tensor, "batch text"], sequence_ids: Int[Tensor, "batch text"]
) -> tuple[Int[Tensor, "batch text"], Int[Tensor, "batch text"]]:
    """Number of `<image>` tokens before each token's own sequence, and up to the end of its own sequence."""
    count = images.long().cumsum(-1)
    run = _starts(sequence_ids.to(images.device)).long().cumsum(-1) - 1
    length = run.shape[1]
    # The count at the end of each run is its largest, since counts never fall.
    ends = count.new_zeros(len(count), length).scatter_reduce(1, run, count, "amax")
    before = torch.cat((ends.new_zeros(len(ends), 1), ends[:, :-1]), dim=1)
    return before.gather(1, run), ends.gather(1, run)
