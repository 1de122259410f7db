"""Generation of a text about scans, with the attention of each of its tokens to the encoder's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuroflamingo.report.records import GeneratedText
from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from neuroflamingo.inference.loaded_model import LoadedModel
    from neuroflamingo_preprocessing.prepared_input import PreparedInput


def write_text(
    opened: LoadedModel,
    prompt: str,
    prepared: Sequence[PreparedInput],
    *,
    report_scans: int,
    seed: int,
    temperature: float,
    max_new_tokens: int,
) -> GeneratedText:
    """Continue a prompt about scans, then compute the attention of each generated token.

    The scans are encoded once for both.

    Args:
        opened: the loaded model.
        prompt: prompt with one `<image>` per scan.
        prepared: the scans in the order of their `<image>`.
        report_scans: number of scans, at the end, that the report is about; the ones before belong to examples.
        seed, temperature, max_new_tokens: see `write_report`.
    """
    import torch

    model, device = opened.model, opened.device
    batch = opened.processor(prompt, scans=[list(prepared)])
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    with torch.inference_mode():
        encoded = _encoder_of(opened)(batch["scans"].to(device))
        scans: dict[str, Any] = {"scan_tokens": encoded.tokens, "token_mask": encoded.mask}
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature}
        devices = [torch.device(device)] if device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, **scans, **sampling)
        attention = model.attention_rollout(out[:, :-1], torch.ones_like(out[:, :-1]), **scans)
    new = out[0, ids.shape[1] :].tolist()
    ended, words = _without_end(new, model.generation_config.eos_token_id)
    text, boundaries = _spell(opened.processor.tokenizer, words)
    rows = attention[0, ids.shape[1] - 1 : ids.shape[1] - 1 + len(words), -report_scans:]
    positions = encoded.positions
    return GeneratedText(
        text=text,
        boundaries=boundaries,
        attention=rows.float().cpu().numpy(),
        positions=None if positions is None else positions.float().cpu().numpy(),
        ended=ended,
        new_tokens=len(new),
    )


def _encoder_of(opened: LoadedModel) -> Any:
    if opened.model.encoder is None:
        raise ModelError(f"the model {opened.name} has no encoder", hint="call it with scan_tokens", exit_code=65)
    return opened.model.encoder


def _without_end(new: list[int], end: int | list[int] | None) -> tuple[bool, list[int]]:
    ends = set(end) if isinstance(end, list) else {end}
    for place, token in enumerate(new):
        if token in ends:
            return True, new[:place]
    return False, new


def _spell(tokenizer: Any, ids: list[int]) -> tuple[str, tuple[int, ...]]:
    """Text of generated ids, and the number of its characters after each of them.

    The counts come from decoding ever longer prefixes, because generated tokens may differ from the tokenizer's own
    split of the text. Surrounding blanks are removed from the text and the counts.
    """
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    lead = len(whole) - len(whole.lstrip())
    text = whole.strip()
    counts = [0]
    for number in range(1, len(ids) + 1):
        reached = len(tokenizer.decode(ids[:number], skip_special_tokens=True)) - lead
        counts.append(min(max(reached, counts[-1]), len(text)))
    return text, tuple(counts)
