"""`NeuroFlamingo`: encoder, resampler and a fused language model as one transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from neuroflamingo.model import fusion, new_tokens
from neuroflamingo.model.attribution import Attribution
from neuroflamingo.model.config import NeuroFlamingoConfig
from neuroflamingo.model.embeddings import EmbeddingAccess
from neuroflamingo.model.freezing import TrainingState
from neuroflamingo.model.generation import ScanGeneration
from neuroflamingo.model.loss import gather_before, next_tokens, weighted_loss
from neuroflamingo.model.media import NO_MEDIA, Media, MediaRule, check_count, make_plan, media_time
from neuroflamingo.model.media_cache import MediaCache, attach, find_media_cache
from neuroflamingo.model.media_probe import prove_media
from neuroflamingo.model.packing import check_packing, packed_scan_bounds, packed_text_mask
from neuroflamingo.model.pretrained import PretrainedMixin, build_encoder_from_config, build_language_model
from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo.model.scan_inputs import ScanInputs
from neuroflamingo.model.unused_parameters import gradients_exchanged, zero_gradient_term
from neuroflamingo_preprocessing.errors import UsageError


@dataclass
class NeuroFlamingoOutput(ModelOutput):
    """Output of a forward pass.

    Attributes:
        loss: mean cross-entropy over the labels, where labels were given.
        logits: `[batch, text, vocab]`; fewer positions with `logits_to_keep`, None with `loss_only`.
        past_key_values: the cache, scans included.
        hidden_states, attentions: the language model's, on request.
        latents: the resampler's output for the scans of this call, `[batch, scan, latent, width]`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    latents: Tensor | None = None


class NeuroFlamingo(EmbeddingAccess, TrainingState, Attribution, ScanGeneration, PretrainedMixin):
    """Vision-language model for brain scans: `<image>` tokens mark scans, and text attends to the scans before it.

    Build a model with `assemble`; load one with `neuroflamingo.load` or `from_pretrained`.

    Args:
        config: see `NeuroFlamingoConfig`.
        lang_encoder: the bare language model, which is fused in place; None builds an untrained one from the config.
        encoder: maps a batch of scans to an `EncoderOutput`; None builds the one named in the config, if any.
        perceiver: the resampler; None builds one from the config.

    Example:
        >>> import torch
        >>> from neuroflamingo import load
        >>> model, processor = load("tiny-t1w", device="cpu")
        >>> inputs = processor("<image>", scan_tokens=[torch.zeros(256, 192)])
        >>> list(inputs["scan_tokens"].shape)  # batch scan token width
        [1, 1, 256, 192]
        >>> list(model(**inputs).latents.shape)  # batch scan latent width
        [1, 1, 32, 192]
        >>> report = model.generate(**inputs, max_new_tokens=8)  # batch text
        >>> report.shape[0]
        1
    """

    config_class = NeuroFlamingoConfig
    config: NeuroFlamingoConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FusedLayer", "PerceiverResampler"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: NeuroFlamingoConfig,
        lang_encoder: PreTrainedModel | None = None,
        encoder: nn.Module | None = None,
        perceiver: PerceiverResampler | None = None,
    ) -> None:
        super().__init__(config)
        if encoder is None and config.encoder is not None:
            encoder = build_encoder_from_config(config.encoder)
        self.encoder = encoder
        self.perceiver = perceiver or PerceiverResampler(**config.resampler)
        self.lang_encoder: PreTrainedModel = lang_encoder or build_language_model(config.text_config)
        config.decoder_layers = fusion.fuse(
            self.lang_encoder,
            dim_visual=config.resampler["dim"],
            path=config.decoder_layers,
            **{key: value for key, value in config.cross_attention.items() if key != "media_rule"},
        )
        config.text_config = self.lang_encoder.config
        self._text_arguments = fusion.forward_arguments(self.lang_encoder)
        self._is_stateful = getattr(self.lang_encoder, "_is_stateful", False)
        self.new_tokens = None
        new_tokens.register(self)
        gather_before(self.lang_encoder.get_output_embeddings())
        self.post_init()
        if not self.perceiver.latents.is_meta:  # from_pretrained freezes and proves when the weights are there
            prove_media(self)
            self.freeze_for_training()

    def is_custom_code(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whether the language model is code from elsewhere: transformers restores buffers of its own families only."""
        return self.lang_encoder.is_custom_code()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: each part initialises itself, and a trained encoder that was passed in must keep its weights."""

    def forward(
        self,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Int[Tensor, "batch past_and_text"] | None = None,
        scans: Float[Tensor, "batch scan *axes"] | None = None,
        scan_tokens: Float[Tensor, "batch scan *frame token width"] | None = None,
        scan_mask: Bool[Tensor, "batch scan"] | None = None,
        token_mask: Bool[Tensor, "batch scan *token"] | None = None,
        labels: Int[Tensor, "batch text"] | None = None,
        loss_weights: Float[Tensor, "batch text"] | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        loss_only: bool = False,
        smoothing: float = 0.0,
        media_shift: MediaRule | None = None,
        sequence_ids: Int[Tensor, "batch text"] | None = None,
        media_cache: MediaCache | None = None,
        inputs_embeds: Float[Tensor, "batch text width"] | None = None,
        image_mask: Bool[Tensor, "batch text"] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> NeuroFlamingoOutput | tuple[Any, ...]:
        """Run the model on a text, or on the next chunk of one.

        Args:
            input_ids: token ids; `<image>` stands where a scan is shown.
            attention_mask: 0 for padding, on either side.
            scans, scan_tokens, scan_mask, token_mask: the scans that this chunk's `<image>` tokens point at, see
                `ScanInputs`. With `use_cache=True` scans may also come before their `<image>` (a long prompt in
                chunks). None: text-only mode, in which the cross-attention adds nothing, as for text before the first
                scan.
            labels: ids to predict (not shifted), -100 at positions without a label.
            loss_weights: weight of each label in the loss's weighted mean; None: all 1.
            past_key_values: the cache of the chunks before, which also holds their scans.
            position_ids: passed on to language models that take them.
            use_cache: return a cache; None: only without gradients and labels.
            logits_to_keep: number of last positions, or the positions, to compute logits for; 0: all.
            loss_only: with labels, compute logits only where a row has a label, and return none.
            smoothing: share of each target that the loss spreads evenly over the vocabulary.
            media_shift: `previous`: text looks at the latest scan before it; `next`: at the first one after it, as
                OpenFlamingo v1; None: as the config's `media_rule` says. A cache keeps to the rule it began with.
            sequence_ids: for packed rows, the sequence of its row that each token belongs to, in runs. A token sees
                text and scans of its own sequence only, and positions restart in each. Not with a cache.
            media_cache: scans that `generate` has already projected.
            inputs_embeds: embedded tokens, which are read instead of `input_ids`; these, or `image_mask`, then only say
                where `<image>` stands.
            image_mask: True where an embedded token is `<image>`.
            return_dict: False returns a tuple.
            kwargs: for the language model; `num_items_in_batch` divides the summed loss instead of the label count.

        Raises:
            UsageError: empty text; `<image>` tokens and scans that do not match; scans without `<image>`; packed rows
                with a cache, or sequences that recur in a row.
            ModelError: packed rows for a family that cannot keep sequences apart.
        """
        images = self._images(input_ids, inputs_embeds, image_mask)
        loss_weights = kwargs.pop("label_weights", loss_weights)  # their names before: Trainer takes any argument with
        smoothing = kwargs.pop("label_smoothing", smoothing)  # "label" in its name for one that evaluation needs
        if self.new_tokens is not None:
            self.new_tokens.settle(here_only=True)
        scans_ahead = use_cache is True
        use_cache = use_cache if use_cache is not None else (labels is None and not torch.is_grad_enabled())
        use_cache = use_cache and self.keeps_cache
        scan_inputs = ScanInputs(scans, scan_tokens, scan_mask, token_mask)
        media_cache = self._media_cache(past_key_values, media_cache, len(images))
        if sequence_ids is not None:
            text_config, use_cache, cached = self.config.get_text_config(), False, past_key_values is not None
            numbered = self.perceiver.media_time_embs
            check_packing(text_config.model_type, numbered, sequence_ids, cached=scans_ahead or cached)
            attention_mask, position_ids = packed_text_mask(text_config, sequence_ids, attention_mask)
        rule = media_shift or self.config.cross_attention["media_rule"]
        media, media_cache, latents = self._condition(
            scan_inputs, images, media_cache, past_key_values, use_cache, scans_ahead, rule, sequence_ids
        )
        total = kwargs.pop("num_items_in_batch", None)
        targets = None if labels is None else next_tokens(labels, loss_weights, sequence_ids)
        label_positions = targets.positions if targets is not None and loss_only else None
        output = self._read(
            media,
            label_positions,
            input_ids=input_ids if inputs_embeds is None else None,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep if label_positions is None else 0,
            **kwargs,
        )
        if use_cache and media_cache is not None:
            attach(media_cache, getattr(output, "past_key_values", past_key_values), images)
        loss = None
        if targets is not None:
            wanted = targets if label_positions is None else targets.at(label_positions)
            loss = weighted_loss(output.logits, wanted, total=total, label_smoothing=smoothing)
            if gradients_exchanged() and not (latents is not None and latents.requires_grad):  # no scan was encoded
                loss = loss + zero_gradient_term(self._scan_parameters())
        logits = output.logits if label_positions is None else None
        result = NeuroFlamingoOutput(loss=loss, logits=logits, latents=latents)
        for name in ("past_key_values", "hidden_states", "attentions"):
            if (value := getattr(output, name, None)) is not None:  # generate mistakes an empty entry for a cache
                result[name] = value
        return result if return_dict is not False else result.to_tuple()

    def _images(self, ids: Tensor | None, embedded: Tensor | None, mask: Tensor | None) -> Bool[Tensor, "batch text"]:
        """True where a token is `<image>`."""
        given = ids if embedded is None else embedded
        if given is None or given.numel() == 0:
            raise UsageError("the prompt is empty", expected="at least one token", hint="begin with '<image>'")
        if ids is not None and ids.shape[1]:
            return ids == self.config.image_token_id
        return torch.zeros(given.shape[:2], dtype=torch.bool, device=given.device) if mask is None else mask

    def _scan_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that are used only if there are scans: those of the resampler and the encoder."""
        yield from self.perceiver.parameters()
        if self.encoder is not None:
            yield from self.encoder.parameters()

    def _media_cache(self, cache: Cache | None, projected: MediaCache | None, batch: int) -> MediaCache | None:
        """The media cache of a text read so far, or a copy of what `generate` has projected; None if there is none."""
        media_cache = find_media_cache(cache)
        if media_cache is None and projected is not None:
            media_cache = projected.fresh()
        if media_cache is not None:
            media_cache.expand_to(batch)
        return media_cache

    def _condition(
        self,
        scan_inputs: ScanInputs,
        images: Bool[Tensor, "batch text"],
        media_cache: MediaCache | None,
        cache: Cache | None,
        use_cache: bool,
        scans_ahead: bool,
        rule: MediaRule,
        sequence_ids: Int[Tensor, "batch text"] | None,
    ) -> tuple[Media, MediaCache | None, Tensor | None]:
        """Media of this pass, the media cache to attach afterwards, and the latents of new scans."""
        batch = len(images)
        if not scan_inputs.has_scans:
            if media_cache is not None:
                return media_cache.open(images), media_cache, None
            check_count(images.sum(-1), 0)
            return NO_MEDIA, None, None
        before = None if media_cache is None else media_cache.count
        latents, present = self.encode(scan_inputs, batch, before)
        images = images.to(present.device)
        if media_cache is None and not use_cache:
            count = present.sum(-1)
            check_count(images.sum(-1), count, exact=True)
            ordinal = present.long().cumsum(-1) * present
            immediate = self.config.cross_attention["only_attend_immediate_media"]
            earlier, closed = (None, None) if sequence_ids is None else packed_scan_bounds(images, sequence_ids)
            time = media_time(images, rule, closed=closed)
            return Media(make_plan(time, ordinal, immediate, earlier), latents), None, latents
        if media_cache is None:
            media_cache = self.empty_media_cache(batch, cache.get_seq_length() if cache is not None else 0, rule)
        else:
            media_cache = media_cache.fresh()
        media_cache.add(self.project(latents), present)
        return media_cache.open(images, exact=not scans_ahead), media_cache, latents


AutoModel.register(NeuroFlamingoConfig, NeuroFlamingo)
AutoModelForCausalLM.register(NeuroFlamingoConfig, NeuroFlamingo)
