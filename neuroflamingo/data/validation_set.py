"""Validation samples: selection, distribution over devices, and exchange of scans between subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from neuroflamingo.data.templates import render
from neuroflamingo.model.tokens import token_ids

if TYPE_CHECKING:
    from neuroflamingo.data.manifest import Sample

T = TypeVar("T")


def evenly(samples: Sequence[T], most: int | None) -> list[T]:
    """Select at most `most` samples, in order and evenly spread, since files are often sorted by finding."""
    count = len(samples) if most is None else min(most, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]


def shares(samples: Sequence[T], batch: int, rank: int, world: int) -> list[list[T]]:
    """Batches of one device; all devices have the same number, the last batches may be empty."""
    batches = [list(samples[first : first + batch]) for first in range(0, len(samples), batch)]
    batches += [[]] * (-len(batches) % world)
    return batches[rank::world]


def with_scans_of_others(samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Pair each sample that has scans with a copy that has the scans of the next subject with enough of them.

    Samples without such a subject are omitted. A sample without a subject counts as a subject of its own.
    """
    seeing = [sample for sample in samples if sample.scans]
    pairs = []
    for place, sample in enumerate(seeing):
        for donor in (*seeing[place + 1 :], *seeing[:place]):
            if _other(sample, donor):
                swapped = sample.model_copy(update={"scans": donor.scans[: len(sample.scans)]})
                pairs.append((sample, swapped))
                break
    return pairs


def _other(sample: Sample, donor: Sample) -> bool:
    same = sample.subject is not None and sample.subject == donor.subject
    return not same and len(donor.scans) >= len(sample.scans) and set(donor.scans).isdisjoint(sample.scans)


def prompt_batch(samples: Sequence[Sample], template: str, tokenizer: Any) -> dict[str, Any]:
    """Prompts, padded on the left for generation, and the reference answers: the last answer of each sample.

    Returns:
        `input_ids`, `attention_mask`; `ids`; `references`, the answers; `findings`, tuples or None.
    """
    prompts = []
    for sample in samples:
        rendered = render(sample, template, tokenizer)
        ids = token_ids(tokenizer, rendered.prompt, special_tokens=rendered.bos)
        prompts.append(torch.tensor(ids, dtype=torch.long))
    masks = [torch.ones_like(prompt) for prompt in prompts]
    return {
        "input_ids": pad_sequence(prompts, True, tokenizer.pad_token_id, "left"),
        "attention_mask": pad_sequence(masks, True, 0, "left"),
        "ids": [sample.id for sample in samples],
        "references": [sample.answers[-1] for sample in samples],
        "findings": [sample.findings for sample in samples],
    }
