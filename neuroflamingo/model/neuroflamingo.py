"""`NeuroFlamingo`: encoder, resampler and a fused language model as one transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from neuroflamingo.model import fusion, new_tokens
from neuroflamingo.model.attribution import Attribution
from neuroflamingo.model.config import NeuroFlamingoConfig
from neuroflamingo.model.freezing import TrainingState
from neuroflamingo.model.generation import ScanGeneration
from neuroflamingo.model.loss import gather_before, next_tokens, weighted_loss
from neuroflamingo.model.media import NOTHING, Media, MediaRule, check_count, make_plan, media_time
from neuroflamingo.model.media_cache import MediaCache, attach, media_cache
from neuroflamingo.model.packing import check_packing, scans_of_own, text_of_own
from neuroflamingo.model.pretrained import Storage, build_encoder_from_config
from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo.model.scan_inputs import ScanInputs
from neuroflamingo.model.unused_parameters import exchanging, idle
from neuroflamingo_preprocessing.errors import UsageError


@dataclass
class NeuroFlamingoOutput(ModelOutput):
    """What a forward pass gives.

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


class NeuroFlamingo(TrainingState, Attribution, ScanGeneration, Storage):
    """Scans and text in, text out: `<image>` tokens mark scans, and the text after one may look at it.

    Build one with `assemble`, read one with `neuroflamingo.load` or `from_pretrained`.

    Args:
        config: see `NeuroFlamingoConfig`.
        lang_encoder: the bare language model, which is fused in place; None builds an untrained one from the config.
        encoder: gives `EncoderOutput` for a batch of scans; None builds the one named in the config, if any.
        perceiver: the resampler; None builds one from the config.
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
        self.lang_encoder: PreTrainedModel = lang_encoder or AutoModelForCausalLM.from_config(config.text_config)
        config.decoder_layers = fusion.fuse(
            self.lang_encoder,
            dim_visual=config.resampler["dim"],
            path=config.decoder_layers,
            **{key: value for key, value in config.cross_attention.items() if key != "media_rule"},
        )
        config.text_config = self.lang_encoder.config
        self._keyword = fusion.takes_keyword(self.lang_encoder)
        self._text_arguments = fusion.forward_arguments(self.lang_encoder)
        self.new_tokens = None
        new_tokens.register(self)
        gather_before(self.lang_encoder.get_output_embeddings())
        self.post_init()
        if not self.perceiver.latents.is_meta:  # from_pretrained freezes when the weights are there
            self.freeze_for_training()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: each part has initialised itself, and a trained encoder that was handed in must stay as it is."""

    def forward(
        self,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Int[Tensor, "batch past_and_text"] | None = None,
        scans: Float[Tensor, "batch scan *axes"] | None = None,
        scan_tokens: Float[Tensor, "batch scan *frame token width"] | None = None,
        scan_mask: Bool[Tensor, "batch scan"] | None = None,
        token_mask: Bool[Tensor, "batch scan *token"] | None = None,
        labels: Int[Tensor, "batch text"] | None = None,
        label_weights: Float[Tensor, "batch text"] | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        loss_only: bool = False,
        label_smoothing: float = 0.0,
        media_shift: MediaRule | None = None,
        sequence_ids: Int[Tensor, "batch text"] | None = None,
        memory: MediaCache | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> NeuroFlamingoOutput | tuple[Any, ...]:
        """One pass over a text, or over its next chunk.

        Args:
            input_ids: token ids; `<image>` stands where a scan is shown.
            attention_mask: 0 for padding, on either side.
            scans, scan_tokens, scan_mask, token_mask: the scans that this chunk's `<image>` tokens point at, see
                `ScanInputs`. With `use_cache=True` scans may also come before their `<image>` (a long prompt in
                chunks). None: text-only mode, in which the cross-attention adds nothing, as for text before the first
                scan.
            labels: ids to predict (not shifted), -100 where nothing is.
            label_weights: weight of each label in the loss's weighted mean; None: all 1.
            past_key_values: the cache of the chunks before; it remembers their scans.
            position_ids: given to language models that take them.
            use_cache: whether to return a cache; None: when not training and without labels.
            logits_to_keep: only the last so many positions, or these positions; 0: all.
            loss_only: with labels, compute logits only where a row has a label, and return none.
            label_smoothing: share of each target that the loss spreads evenly over the vocabulary.
            media_shift: `previous`: text looks at the latest scan before it; `next`: at the first one after it, as
                OpenFlamingo v1; None: as the config's `media_rule` says. A cache keeps to the rule it began with.
            sequence_ids: packed rows: which sequence of its row each token belongs to, in runs. A token sees text and
                scans of its own sequence only, and positions begin again in each. Not with a cache.
            memory: scans that `generate` has projected already.
            return_dict: False gives a tuple.
            kwargs: for the language model; `num_items_in_batch` divides the summed loss instead of the label count.

        Raises:
            UsageError: empty text; `<image>` tokens and scans that do not fit; scans without `<image>`; packed rows
                with a cache, or sequences that come back.
            ModelError: packed rows for a family that cannot keep sequences apart.
        """
        if input_ids is None or input_ids.numel() == 0:
            raise UsageError("the prompt is empty", expected="at least one token", hint="begin with '<image>'")
        if self.new_tokens is not None:
            self.new_tokens.settle(here_only=True)
        ahead = use_cache is True
        use_cache = use_cache if use_cache is not None else (labels is None and not torch.is_grad_enabled())
        given = ScanInputs(scans, scan_tokens, scan_mask, token_mask)
        images = input_ids == self.config.image_token_id
        riding = self._riding(past_key_values, memory, len(input_ids))
        if sequence_ids is not None:
            check_packing(
                self.config.text_config.model_type,
                self.perceiver.media_time_embs,
                sequence_ids,
                cached=ahead or past_key_values is not None,
            )
            attention_mask, position_ids = text_of_own(self.config.text_config, sequence_ids, attention_mask)
            use_cache = False
        rule = media_shift or self.config.cross_attention["media_rule"]
        media, riding, latents = self._condition(
            given, images, riding, past_key_values, use_cache, ahead, rule, sequence_ids
        )
        total = kwargs.pop("num_items_in_batch", None)
        targets = None if labels is None else next_tokens(labels, label_weights, sequence_ids)
        places = targets.places if targets is not None and loss_only else None
        output = self._read(
            media,
            places,
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep if places is None else 0,
            **kwargs,
        )
        if use_cache and riding is not None:
            attach(riding, output.past_key_values, images)
        loss = None
        if targets is not None:
            wanted = targets if places is None else targets.at(places)
            loss = weighted_loss(output.logits, wanted, total=total, label_smoothing=label_smoothing)
            if exchanging() and (latents is None or not latents.requires_grad):  # no scans, or empty slots only
                loss = loss + idle(self._reading())
        result = NeuroFlamingoOutput(loss=loss, logits=output.logits if places is None else None, latents=latents)
        for name in ("past_key_values", "hidden_states", "attentions"):
            if (value := getattr(output, name, None)) is not None:  # generate takes a key that is there for a cache
                result[name] = value
        return result if return_dict is not False else result.to_tuple()

    def _reading(self) -> Iterator[nn.Parameter]:
        """Parameters that only scans reach: resampler and encoder."""
        yield from self.perceiver.parameters()
        if self.encoder is not None:
            yield from self.encoder.parameters()

    def _riding(self, cache: Cache | None, memory: MediaCache | None, batch: int) -> MediaCache | None:
        riding = media_cache(cache)
        if riding is None and memory is not None:
            riding = memory.fresh()
        if riding is not None:
            riding.expand_to(batch)
        return riding

    def _condition(
        self,
        given: ScanInputs,
        images: Bool[Tensor, "batch text"],
        riding: MediaCache | None,
        cache: Cache | None,
        use_cache: bool,
        ahead: bool,
        rule: MediaRule,
        sequence_ids: Int[Tensor, "batch text"] | None,
    ) -> tuple[Media, MediaCache | None, Tensor | None]:
        """The media of this pass, what is to ride on the cache afterwards, and the new scans' latents."""
        batch = len(images)
        if not given.given:
            if riding is not None:
                return riding.open(images), riding, None
            check_count(images.sum(-1), 0)
            return NOTHING, None, None
        latents, present = self.encode(given, batch)
        images = images.to(present.device)
        if riding is None and not use_cache:
            count = present.sum(-1)
            check_count(images.sum(-1), count, exact=True)
            ordinal = present.long().cumsum(-1) * present
            immediate = self.config.cross_attention["only_attend_immediate_media"]
            earlier, closed = (None, None) if sequence_ids is None else scans_of_own(images, sequence_ids)
            time = media_time(images, rule, closed=closed)
            return Media(make_plan(time, ordinal, immediate, earlier), latents), None, latents
        if riding is None:
            riding = self.remember(batch, cache.get_seq_length() if cache is not None else 0, rule)
        else:
            riding = riding.fresh()
        riding.add(self.project(latents), present)
        return riding.open(images, exact=not ahead), riding, latents
