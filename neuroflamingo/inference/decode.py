"""Generation of a text about scans, with the attention of each of its tokens to the encoder's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuroflamingo.report.records import GeneratedText
from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from neuroflamingo.inference.loaded_model import LoadedModel
    from neuroflamingo_preprocessing.prepared_input import PreparedInput
    from neuroflamingo_preprocessing.spec import ScanSpec


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

    The scans are encoded once for both. Where they can be mirrored, and the decoding is greedy, the text about the
    mirrored scans is generated in the same batch.

    Args:
        opened: the loaded model.
        prompt: prompt with one `<image>` per scan.
        prepared: the scans in the order of their `<image>`.
        report_scans: number of scans, at the end, that the report is about; the ones before belong to examples.
        seed, temperature, max_new_tokens: see `write_report`.
    """
    import torch

    model, device = opened.model, opened.device
    batch = opened.processor(prompt, scans=[list(prepared)], force=True)  # `write_report` holds it against the record
    _check_length(opened, batch["input_ids"].shape[1])
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    scans = batch["scans"].to(device)
    axis = mirror_axis(opened.scan_spec) if temperature == 0 else None
    with torch.inference_mode():
        both = scans if axis is None else torch.cat([scans, _mirrored(scans, axis, report_scans)])
        encoded = _encoder_of(opened)(both)
        inputs: dict[str, Any] = {"scan_tokens": encoded.tokens, "token_mask": encoded.mask}
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature}
        devices = [torch.device(device)] if device.startswith("cuda") else []
        rows = [1 if axis is None else 2, 1]
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            out = model.generate(
                input_ids=ids.repeat(rows),
                attention_mask=mask.repeat(rows),
                max_new_tokens=max_new_tokens,
                **inputs,
                **sampling,
            )
        starts = ids.shape[1]
        texts = [_without_end(row, model.generation_config.eos_token_id) for row in out[:, starts:].tolist()]
        ended, words = texts[0]
        read = out[:1, : starts + len(words)]  # the end of the report, where there is one, looks at nothing
        own = {name: None if value is None else value[:1] for name, value in inputs.items()}
        attention = model.attention_rollout(read, torch.ones_like(read), **own)
    text, boundaries = _spell(opened.processor.tokenizer, words)
    looked = attention[0, starts - 1 : starts - 1 + len(words), -report_scans:]
    positions = encoded.positions
    return GeneratedText(
        text=text,
        boundaries=boundaries,
        attention=looked.float().cpu().numpy(),
        positions=None if positions is None else positions.float().cpu().numpy(),
        ended=ended,
        new_tokens=len(words) + ended,
        mirrored=None if axis is None else _spell(opened.processor.tokenizer, texts[len(texts) // 2][1])[0],
        tokens=encoded.tokens[0, -report_scans:].float().cpu().numpy() if encoded.tokens.ndim == 4 else None,
    )


def _check_length(opened: LoadedModel, length: int) -> None:
    """Refuse a prompt that leaves no room for a report in the text that the language model was made for."""
    most = getattr(opened.model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(most, int) and length >= most:
        raise ModelError(
            "the prompt with its examples is too long for the language model",
            expected=f"fewer than {most:,} tokens",
            seen=f"{length:,} tokens",
            hint="give fewer or shorter examples",
            exit_code=65,
        )


def mirror_axis(spec: ScanSpec) -> int | None:
    """Axis of the prepared tensor (after `batch scan`) along which a head can be mirrored; None if there is none.

    That is so for volumes in a template's space on a grid that is symmetric about its midline.
    """
    names = [axis.name for axis in spec.axes]
    if spec.modality != "volume3d" or spec.template is None or spec.origin_mm is None or "x" not in names:
        return None
    if spec.axes[names.index("x")].size is None:
        return None
    (x, *_), affine = spec.grid_shape, spec.grid_affine
    return names.index("x") if abs(affine[0, 3] + affine[0, 0] * (x - 1) / 2) < 1e-3 else None


def _mirrored(scans: Any, axis: int, report_scans: int) -> Any:
    """A batch in which the report's scans are mirrored, and those of examples are not."""
    import torch

    return torch.cat([scans[:, :-report_scans], scans[:, -report_scans:].flip(2 + axis)], dim=1)


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
