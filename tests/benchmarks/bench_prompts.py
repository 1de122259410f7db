"""What several scans and examples cost: encoding and 128 words of a report after one scan, and after up to six.

The embedded model's sizes, its encoder included; every token attends to all scans so far. Beside each prompt stands the
same one read again at every word, as without a cache; both must give the same words. Run by `make bench`, or:

    python tests/benchmarks/bench_prompts.py --rounds 5 --write docs/performance.md
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from comparing import OURS, Comparison

from neuroflamingo import load
from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.findings.wording import render_report

AGAIN, NEW = "without a cache", 128
FORMS = {"1 scan": (1, 0), "2 scans": (2, 0), "1 scan after 3 examples": (1, 3), "3 scans after 3 examples": (3, 3)}
FINDING = Finding(kind="mass", side="left", region="frontal lobe", size_mm=24)  # type: ignore[arg-type]


@cache
def model_and_processor() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    model, processor = load("tiny-t1w", device="cpu")
    model.config.cross_attention["only_attend_immediate_media"] = False
    return model, processor


def writing(scans: int, examples: int, use_cache: bool) -> Callable[[], torch.Tensor]:
    """Encode the scans of a prompt and continue it; gives the new ids."""
    model, processor = model_and_processor()
    shots = "".join(f"<image>{render_report([FINDING], seed).text}<|endofchunk|>" for seed in range(examples))
    shape = (processor.card.scan.channels, *processor.card.scan.grid_shape)
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(scans + examples, len(shape[0]), *shape[1:], generator=generator)
    batch = processor(shots + "<image>" * scans, scans=[list(given)], force=True)

    def write() -> torch.Tensor:
        out = model.generate(**batch, use_cache=use_cache, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW)
        return out[:, batch["input_ids"].shape[1] :]

    return write


def agree(first: torch.Tensor, other: torch.Tensor) -> None:
    if not torch.equal(first, other):
        raise RuntimeError("with and without the cache the words differ")


BENCH = Comparison(
    script=__file__,
    mark="bench-prompts",
    systems={
        form: {OURS: partial(writing, *counts, True), AGAIN: partial(writing, *counts, False)}
        for form, counts in FORMS.items()
    },
    goals={},
    agree=agree,
    about=__doc__ or "",
    begin=lambda quick: None,
)

if __name__ == "__main__":
    raise SystemExit(BENCH.main())
