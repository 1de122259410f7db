"""The language model of a tiny twin: it knows the words of the toy data before a scan is shown to it.

A published language model knows English, and a training teaches it what scans show. A toy without that would spend its
few steps on words, and its loss would fall without a look at a scan. So it is taught the texts first, scans left out:
which of them belongs to a scan is all that is left to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from neuroflamingo.data.labels import IGNORED
from neuroflamingo.data.templates import render
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neuroflamingo.data.manifest import Sample

STEPS, BATCH, RATE = 150, 16, 1e-2


def teach_texts(model: PreTrainedModel, tokenizer: Any, samples: Sequence[Sample], template: str) -> float:
    """Train a language model on the texts of samples without their scans; gives the last loss.

    The order is that of torch's random state, and the arithmetic single precision whatever the model's type.

    Args:
        model: changed in place; left in eval mode.
        tokenizer: without the tokens for scans.
        samples: of any kinds.
        template: of turns, see `render`.
    """
    texts = sorted({_words(render(sample, template, tokenizer).text) for sample in samples})
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    dtype = model.dtype
    model.float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    last = 0.0
    for _ in range(STEPS):
        drawn = [rows[number] for number in torch.randint(len(rows), (BATCH,)).tolist()]
        ids = pad_sequence(drawn, batch_first=True, padding_value=0)
        seen = pad_sequence([torch.ones_like(row) for row in drawn], batch_first=True, padding_value=0)
        loss: Any = model(input_ids=ids, attention_mask=seen, labels=ids.masked_fill(seen == 0, IGNORED)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        last = float(loss.detach())
    model.to(dtype=dtype).eval()  # pyright: ignore[reportCallIssue]
    return last


def _words(text: str) -> str:
    return text.replace(IMAGE, "").replace(END_OF_CHUNK, "")
