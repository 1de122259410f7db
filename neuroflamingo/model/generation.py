"""Text generation with the scans projected once, and scoring of candidate texts in one pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList

from neuroflamingo.model.base import FusedModel
from neuroflamingo.model.media import MediaRule, check_count
from neuroflamingo.model.media_cache import MediaCache, find_media_cache, own_part
from neuroflamingo.model.scan_inputs import ScanInputs
from neuroflamingo_preprocessing.errors import UsageError


@dataclass(frozen=True)
class TextScores:
    """Log-likelihoods of candidate texts.

    Attributes:
        token_log_probs: natural logarithm, 0 for padding.
        lengths: tokens of each candidate.
    """

    token_log_probs: Float[Tensor, "batch candidate token"]
    lengths: Int[Tensor, " candidate"]

    @property
    def sum(self) -> Float[Tensor, "batch candidate"]:
        """Log-likelihood of each whole text; comparable only between texts of equal length."""
        return self.token_log_probs.sum(-1)

    @property
    def mean(self) -> Float[Tensor, "batch candidate"]:
        """Log-likelihood per token, as OpenFlamingo scores class names."""
        return self.sum / self.lengths.to(self.token_log_probs.device)


class NeverWrite(LogitsProcessor):
    """Logits processor that forbids one token (transformers' own searches the whole vocabulary at every step)."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Set the token's score to minus infinity."""
        scores = scores.clone()
        scores[:, self.token] = float("-inf")
        return scores


class ScanGeneration(FusedModel, GenerationMixin):
    """Generation and scoring methods of `NeuroFlamingo`."""

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: Tensor | None = None,
        *,
        scans: Float[Tensor, "batch scan *axes"] | None = None,
        scan_tokens: Float[Tensor, "batch scan *frame token width"] | None = None,
        scan_mask: Bool[Tensor, "batch scan"] | None = None,
        token_mask: Bool[Tensor, "batch scan *token"] | None = None,
        media_shift: MediaRule | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue prompts; options of transformers' `generate` work (beams, sampling, several sequences, lookup).

        The scans are encoded and projected once per prompt and then travel with the cache. `<image>` is never
        generated. A prompt without `<image>` and without scans is text-only: the cross-attention adds nothing.

        Args:
            inputs: prompts, `[batch, text]`, padded on the left; `input_ids=` works as well. With `inputs_embeds=` they
                only say where `<image>` stands.
            scans, scan_tokens, scan_mask, token_mask: see `ScanInputs`.
            media_shift: as in `forward`; with `next`, generated text sees no scan, as in OpenFlamingo v1.
            kwargs: see `GenerationMixin.generate`.

        Raises:
            UsageError: an empty prompt; `<image>` tokens and scans that do not match; a draft model.
        """
        ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        given = ids if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        if given is None or given.numel() == 0:
            raise UsageError("the prompt is empty", expected="at least one token", hint="begin with '<image>'")
        _refuse_drafts(kwargs)
        scan_inputs = ScanInputs(scans, scan_tokens, scan_mask, token_mask)
        if given is not ids:
            kwargs.setdefault("image_mask", torch.zeros(given.shape[:2], dtype=torch.bool, device=given.device))
        if ids is not None:
            kwargs["image_mask"] = self._where(ids)
        images = kwargs["image_mask"].sum(-1)
        if not self.keeps_cache:
            kwargs["use_cache"] = False
        media_cache = find_media_cache(kwargs.get("past_key_values"))
        if scan_inputs.has_scans:
            if media_cache is not None:
                raise UsageError(
                    "new scans cannot be added while generating from a cache",
                    expected="a cache that already holds them",
                    hint="pass the new chunk with its scans through model(...) first, then generate without scans",
                )
            kwargs["media_cache"] = self._projected(scan_inputs, images, media_shift)
        elif media_cache is None:
            check_count(images, 0)
        never = NeverWrite(self.config.image_token_id)
        kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or ()), never])
        return super().generate(ids, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _where(self, ids: Tensor) -> Bool[Tensor, "batch text"]:
        return ids == self.config.image_token_id

    def _projected(self, scan_inputs: ScanInputs, images: Int[Tensor, " batch"], rule: MediaRule | None) -> MediaCache:
        """The scans of prompts, encoded and projected once, for prompts with so many `<image>` tokens."""
        latents, present = self.encode(scan_inputs, len(images))
        check_count(images.to(present.device), present.sum(-1), exact=True)
        media_cache = self.empty_media_cache(len(images), rule=rule)
        media_cache.add(self.project(latents), present)
        return media_cache

    def _supports_default_dynamic_cache(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whether `generate` may make the cache, or the language model makes its own kind."""
        own: Any = type(self.lang_encoder)
        return not hasattr(own, "_supports_default_dynamic_cache") or own._supports_default_dynamic_cache()

    @torch.no_grad()
    def score_texts(
        self,
        input_ids: Int[Tensor, "batch text"],
        candidates: Sequence[str | Sequence[int]] | Int[Tensor, "candidate token"],
        attention_mask: Int[Tensor, "batch text"] | None = None,
        *,
        tokenizer: Any = None,
        scans: Float[Tensor, "batch scan *axes"] | None = None,
        scan_tokens: Float[Tensor, "batch scan *frame token width"] | None = None,
        scan_mask: Bool[Tensor, "batch scan"] | None = None,
        token_mask: Bool[Tensor, "batch scan *token"] | None = None,
        chunk: int | None = None,
    ) -> TextScores:
        """Score candidate texts after each context; contexts are processed once, candidates in one batched pass.

        Every context is scored with every candidate; the result equals scoring each pair by itself.

        Args:
            input_ids: contexts, padded on the left.
            candidates: token ids, or texts with `tokenizer`.
            attention_mask: of the contexts.
            tokenizer: turns texts into ids, without special tokens.
            scans, scan_tokens, scan_mask, token_mask: the contexts' scans, see `ScanInputs`.
            chunk: maximum number of candidates scored at once, to limit memory; None: all.

        Raises:
            UsageError: no candidate, an empty one, one with `<image>`, or contexts and scans that do not match.
        """
        ids, lengths = self._candidate_ids(candidates, tokenizer)
        ids = ids.to(input_ids.device)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        positions = attention_mask.long().cumsum(-1).sub(1).clamp(min=0)
        real = torch.arange(ids.shape[1], device=ids.device) < lengths.to(ids.device)[:, None]
        context = self(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            scans=scans,
            scan_tokens=scan_tokens,
            scan_mask=scan_mask,
            token_mask=token_mask,
            use_cache=None,
            logits_to_keep=1,
        )
        if context.past_key_values is None:
            scan_inputs = ScanInputs(scans, scan_tokens, scan_mask, token_mask)
            parts = self._whole_texts(input_ids, attention_mask, scan_inputs, ids.split(chunk or len(ids)))
            return TextScores(torch.cat(list(parts), dim=1).masked_fill(~real, 0.0), lengths)
        first = context.logits[:, -1].float().log_softmax(-1)[:, ids[:, 0]]
        parts = [
            self._continuations(context.past_key_values, attention_mask, positions, part)
            for part in ids.split(chunk or len(ids))
        ]
        scores = torch.cat((first[..., None], torch.cat(parts, dim=1)), dim=-1)
        return TextScores(scores.masked_fill(~real, 0.0), lengths)

    def _continuations(
        self,
        cache: Any,
        mask: Tensor,
        positions: Tensor,
        ids: Int[Tensor, "candidate token"],
    ) -> Float[Tensor, "batch candidate later_token"]:
        """Log-probabilities of each candidate's tokens after its first, given each row of a cached context."""
        batch, (count, length) = len(mask), ids.shape
        if length == 1:
            return torch.zeros(batch, count, 0, device=ids.device)
        cache = copy.deepcopy(cache)  # a forward pass extends a cache in place, and the context is needed again
        repeat_rows(cache, batch, count)
        rows = ids.repeat(batch, 1)
        ones = torch.ones_like(rows[:, :-1])
        seen = torch.cat((mask.repeat_interleave(count, dim=0), ones), dim=1)
        places = positions[:, -1:].repeat_interleave(count, dim=0) + ones.cumsum(-1)
        step = 1 if self._is_stateful else length - 1  # state-space layers may go on by one token at a time only
        logits = []
        for first in range(0, length - 1, step):
            output = self(
                input_ids=rows[:, first : first + step],
                attention_mask=seen[:, : mask.shape[1] + first + step],
                position_ids=places[:, first : first + step],
                past_key_values=cache,
                use_cache=True,
            )
            logits.append(output.logits)
        scores = torch.cat(logits, dim=1).float().log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
        return scores.unflatten(0, (batch, count))

    def _whole_texts(
        self, contexts: Tensor, mask: Tensor, scan_inputs: ScanInputs, parts: Sequence[Tensor]
    ) -> Iterator[Float[Tensor, "batch candidate token"]]:
        """Log-probabilities of the candidates' tokens, for language models without a cache: each text is read whole."""
        media_cache = None
        if scan_inputs.has_scans:
            media_cache = self._projected(scan_inputs, self._where(contexts).sum(-1), None)
        for ids in parts:
            count = len(ids)
            rows = torch.cat((contexts.repeat_interleave(count, dim=0), ids.repeat(len(contexts), 1)), dim=1)
            seen = torch.cat((mask.repeat_interleave(count, dim=0), torch.ones_like(ids).repeat(len(mask), 1)), dim=1)
            output = self(
                input_ids=rows,
                attention_mask=seen,
                position_ids=seen.long().cumsum(-1).sub(1).clamp(min=0),
                media_cache=media_cache,
                use_cache=False,
                logits_to_keep=ids.shape[1] + 1,
            )
            logits = output.logits[:, :-1]
            scores = logits.float().log_softmax(-1).gather(-1, rows[:, -ids.shape[1] :, None])[..., 0]
            yield scores.unflatten(0, (len(contexts), count))

    def _candidate_ids(
        self,
        candidates: Any,
        tokenizer: Any,
    ) -> tuple[Int[Tensor, "candidate token"], Tensor]:
        """Ids padded on the right, and the length of each candidate."""
        if isinstance(candidates, str) or len(candidates) == 0:
            raise UsageError(
                "there are no candidates", expected="a list of texts or of token ids", seen=repr(candidates)
            )
        if isinstance(candidates[0], str):
            if tokenizer is None:
                raise UsageError("texts were given without a tokenizer", hint="pass tokenizer=processor.tokenizer")
            candidates = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in candidates]
        rows = [torch.as_tensor(row, dtype=torch.long).cpu() for row in candidates]
        for number, row in enumerate(rows):
            if row.numel() == 0 or bool((row == self.config.image_token_id).any()):
                raise UsageError(f"candidate {number} is empty or holds <image>", expected="text only")
        lengths = torch.tensor([len(row) for row in rows])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def repeat_rows(cache: Any, batch: int, count: int) -> None:
    """Repeat every row of a cache in place; layers with a recurrent state know how to reorder rows only."""
    if any(hasattr(layer, "recurrent_states") for layer in own_part(cache).layers):
        cache.reorder_cache(torch.arange(batch).repeat_interleave(count))
    else:
        cache.batch_repeat_interleave(count)


def _refuse_drafts(arguments: dict[str, Any]) -> None:
    """Refuse assisted generation by a second model, or by the first layers of this one."""
    named = [name for name in ("assistant_model", "assistant_early_exit") if arguments.get(name) is not None]
    if named:
        raise UsageError(
            "assisted generation with a draft is not done: a draft does not see the scans",
            expected="generation by this model alone",
            seen=", ".join(named),
            hint="prompt_lookup_num_tokens=N guesses from the prompt instead, and gives the same text",
        )
