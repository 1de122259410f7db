"""What works for one family of causal language models: checks that a tiny random model of it passes, or the reason.

Where the bare model fails in the same way, that is said, since the fault is then not of the fusing.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from tests.neuroflamingo.model.small_configs import small_language_model
from tests.tiny import WIDTH, fill_by_rule, tiny_batch, tiny_tokenizer

CHECKS = ("reads the scan", "closed gates", "trains", "writes", "scores", "comes back")
CLOSE = {"atol": 2e-4, "rtol": 1e-3}
NEW = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [61, 62, 63]}


@dataclass
class Row:
    """One family.

    Attributes:
        family: its `model_type`.
        kind: the class.
        way: how the scans reach its layers; empty if it is refused.
        faults: by check, what is wrong; checks that pass are not in it.
        refused: why it cannot be fused; empty if it can.
        not_built: why there is no tiny model of it; empty if there is one.
    """

    family: str
    kind: str = ""
    way: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    not_built: str = ""


def survey(family: str) -> Row:
    """Try all checks on a family."""
    row = Row(family)
    try:
        bare = _bare(family)
    except Exception as error:
        row.not_built = _words(error)
        return row
    row.kind = type(bare).__name__
    try:
        model, processor = _fused(copy.deepcopy(bare))
    except Exception as error:
        row.refused = _words(error)
        return row
    row.way = "keyword" if model._keyword else "scope"
    for name, check in zip(CHECKS, (_reads, _closed, _trains, _writes, _scores, _comes_back), strict=True):
        if fault := _try(check, model, processor, bare):
            row.faults[name] = fault
    return row


def _bare(family: str) -> Any:
    """A bare model by rule; as transformers initialises it where the rule gives no numbers."""
    plain = small_language_model(family)
    plain.generation_config.eos_token_id = None
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    ruled = copy.deepcopy(plain)
    fill_by_rule(ruled)
    for model in (ruled, plain):
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        if logits.shape[-1] >= 64 and bool(logits.isfinite().all()):
            return model
    raise ValueError("its logits are not finite")


def _fused(bare: Any) -> tuple[Any, Any]:
    resampler = {"dim": WIDTH, "depth": 1, "num_latents": 3, "heads": 2, "dim_head": 8}
    model, processor = NeuroFlamingo.assemble(
        None, bare, tiny_tokenizer(), resampler=resampler, heads=2, dim_head=8, gate=0.5
    )
    model.generation_config.eos_token_id = None
    return model.eval(), processor


def _try(check: Callable[..., str | None], model: Any, processor: Any, bare: Any) -> str | None:
    try:
        return check(model, processor, bare)
    except Exception as error:
        return _words(error)


def _words(error: Exception) -> str:
    text = getattr(error, "seen", None) or str(error)
    return f"{type(error).__name__}: {' '.join(str(text).split())}"[:160]


def _reads(model: Any, processor: Any, bare: Any) -> str | None:
    batch, other = tiny_batch(processor), tiny_batch(processor, seed=1)
    with torch.no_grad():
        change = (model(**batch, use_cache=False).logits - model(**other, use_cache=False).logits).abs().max()
    return None if change > 1e-5 else f"two scans differ by {float(change):.0e}"


def _closed(model: Any, processor: Any, bare: Any) -> str | None:
    model = copy.deepcopy(model)
    for block in model.gated_blocks.values():
        block.attn_gate.data.zero_()
        block.ff_gate.data.zero_()
    batch = tiny_batch(processor)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        change = (
            model(**batch, use_cache=False).logits - bare(input_ids=ids, attention_mask=mask, use_cache=False).logits
        )
    return None if not bool(change.any()) else f"differs from the bare model by {float(change.abs().max()):.0e}"


def _trains(model: Any, processor: Any, bare: Any) -> str | None:
    model = copy.deepcopy(model).train()
    batch = tiny_batch(processor, padding_side="right")
    model(**batch, labels=batch["input_ids"]).loss.backward()
    for name, p in model.named_parameters():
        if p.requires_grad and (p.grad is None or not bool(p.grad.any())):
            return f"no gradient in {name}"
        if not p.requires_grad and p.grad is not None:
            return f"a gradient in the frozen {name}"
    return None


def _steps(model: Any, batch: dict[str, Any], **how: Any) -> Any:
    with torch.no_grad():
        return model.generate(**batch, **NEW, **how, output_logits=True, return_dict_in_generate=True)


def _cached_differs(model: Any, batch: dict[str, Any]) -> str | None:
    for how in ({}, {"num_beams": 2, "num_return_sequences": 2}):
        cached, whole = _steps(model, batch, **how), _steps(model, batch, **how, use_cache=False)
        if how:
            if not torch.equal(cached.sequences, whole.sequences):
                return "beams with a cache are others than without"
            continue
        for one, two in zip(cached.logits, whole.logits, strict=True):
            if not torch.allclose(one, two, **CLOSE):
                return f"with a cache logits differ by {float((one - two).abs().max()):.0e}"
    return None


def _writes(model: Any, processor: Any, bare: Any) -> str | None:
    batch = tiny_batch(processor)
    return _unless_bare(partial(_cached_differs, model, batch), partial(_cached_differs, bare, _text(batch)))


def _text(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _scores(model: Any, processor: Any, bare: Any) -> str | None:
    batch = tiny_batch(processor)
    candidates = [[3, 4, 5], [7], [8, 9]]
    found = model.score_texts(candidates=candidates, **batch).token_log_probs
    for number, ids in enumerate(candidates):
        rows = torch.tensor([ids] * len(batch["input_ids"]))
        whole = torch.cat((batch["input_ids"], rows), dim=1)
        mask = torch.cat((batch["attention_mask"], torch.ones_like(rows)), dim=1)
        scans = {name: value for name, value in batch.items() if name.startswith("scan")}
        positions = mask.cumsum(-1).sub(1).clamp(min=0)
        with torch.no_grad():
            logits = model(
                input_ids=whole, attention_mask=mask, position_ids=positions, **scans, use_cache=False
            ).logits
        alone = logits[:, -len(ids) - 1 : -1].float().log_softmax(-1).gather(-1, rows[..., None])[..., 0]
        if not torch.allclose(found[:, number, : len(ids)], alone, **CLOSE):
            fault = f"differ from scoring alone by {float((found[:, number, : len(ids)] - alone).abs().max()):.0e}"
            return _unless_bare(partial(str, fault), partial(_cached_differs, bare, _text(batch)))
    return None


def _comes_back(model: Any, processor: Any, bare: Any) -> str | None:
    def again(kind: Any, one: Any) -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            one.save_pretrained(folder)
            two = kind.from_pretrained(folder, dtype=torch.float32).eval()
        before, after = _tensors(one), _tensors(two)
        if before.keys() != after.keys():
            return f"other tensors: {sorted(before.keys() ^ after.keys())[:2]}"
        wrong = [name for name in before if not torch.equal(before[name], after[name])]
        return f"{len(wrong)} tensors differ, {wrong[0]}" if wrong else None

    return _unless_bare(lambda: again(NeuroFlamingo, model), lambda: again(type(bare), bare))


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    rows = "new_tokens."  # these are in the tables
    found = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: value for name, value in found if not name.startswith(rows)}


def _unless_bare(check: Callable[[], str | None], control: Callable[[], str | None]) -> str | None:
    """The fault of a check; said to be the bare model's where that has one too."""

    def outcome(tried: Callable[[], str | None]) -> str | None:
        try:
            return tried()
        except Exception as error:
            return _words(error)

    fault = outcome(check)
    if fault and (bare := outcome(control)):
        return f"as the bare model ({bare})"
    return fault
