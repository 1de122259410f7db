"""Proof, by one pass on two tokens, that every gated block is handed the scans.

What a family of language models does with a keyword that it does not know is in no documentation: most pass it on to
their layers, some drop it in silence. So it is tried, on the very model that will be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neuroflamingo.model import fusion
from neuroflamingo.model.base import FusedModel
from neuroflamingo.model.media import Media, Plan
from neuroflamingo_preprocessing.errors import ModelError, is_out_of_memory

TOKENS = 2


@dataclass
class Pass:
    """One pass on two tokens.

    Attributes:
        seen: shapes of the hidden states that each gated block attended with, by layer number.
        logits: of the last token; None if the pass failed.
        error: why it failed.
    """

    seen: dict[int | None, tuple[int, ...]] = field(default_factory=dict)
    logits: Tensor | None = None
    error: Exception | None = None

    def fault(self, blocks: set[int], width: int) -> str | None:
        """What is wrong with it, in words; None if every block was handed the media."""
        if self.error is not None:
            return f"the pass failed ({type(self.error).__name__}: {' '.join(str(self.error).split())[:200]})"
        if missed := sorted(blocks - self.seen.keys()):
            of = "no layer" if len(missed) == len(blocks) else f"not layers {', '.join(map(str, missed))}"
            return f"the scans reached {of}"
        wrong = next((shape for shape in self.seen.values() if shape != (1, TOKENS, width)), None)
        return None if wrong is None else f"hidden states of shape {list(wrong)}, not [1, {TOKENS}, {width}]"


@torch.no_grad()
def prove_media(model: FusedModel) -> Tensor | None:
    """Find the way in which all gated blocks are handed the media: as a keyword, else from `media_scope`.

    It costs one pass of two tokens through the language model (two passes if the keyword gets lost): as much as writing
    two tokens. Nothing changes: no weight, no buffer of the random state, no mode; the encoder is not run.

    Args:
        model: its way is set; a model without memory (on the meta device) is left as it is, with the scope.

    Returns:
        The logits of the last token, `[1, 1, vocab]`; None for a model without memory.

    Raises:
        ModelError: a gated block would never see a scan (exit 65).
    """
    if model.perceiver.latents.is_meta:
        return None
    blocks, width = set(model.gated_blocks), fusion.text_width(model.lang_encoder)
    faults = {}
    with _evaluating(model), torch.random.fork_rng(devices=[]):
        for way, keyword in (("as a keyword", True), ("from the scope", False)):
            model._keyword = keyword
            tried = _try(model)
            fault = tried.fault(blocks, width)
            if fault is None:
                return tried.logits
            faults[way] = fault, tried.error
    raise ModelError(
        f"{type(model.lang_encoder).__name__} cannot be fused: its gated blocks would never see a scan",
        expected="every gated block is handed the scans, in a pass on two tokens",
        seen="; ".join(f"{way}: {fault}" for way, (fault, _) in faults.items()),
        hint="take a family that docs/models.md lists, or name its layers: decoder_layers='path.to.layers'",
        exit_code=65,
    ) from next((error for _, error in faults.values() if error is not None), None)


def _try(model: FusedModel) -> Pass:
    """Run the language model on two tokens that see one scan of zeros."""
    weight, result = model.perceiver.latents, Pass()
    latents = model.perceiver(weight.new_zeros(1, 1, 1, 1, weight.shape[1]))

    def observe(layer: int | None, hidden: Tensor) -> None:
        result.seen[layer] = tuple(hidden.shape)

    ids = [max(0, model.config.image_token_id), max(0, model.config.endofchunk_token_id)]
    inputs = torch.tensor([ids], device=weight.device)
    try:
        output: Any = model._read(
            Media(Plan("one"), latents, observe=observe),
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            past_key_values=None,
            position_ids=None,
            use_cache=False,
            logits_to_keep=1,
        )
        result.logits = output.logits
    except Exception as error:  # whatever a family does with a keyword that it does not know
        if is_out_of_memory(error):
            raise
        result.error = error
    return result


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each module's own mode again."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
