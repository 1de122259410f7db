"""Assembly of a NeuroFlamingo from its parts, saving to a folder, and strict loading."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from neuroflamingo.model.base import FusedModel
from neuroflamingo.model.config import NeuroFlamingoConfig
from neuroflamingo.model.folder import check_folder
from neuroflamingo.model.processor import NeuroFlamingoProcessor, add_special_tokens
from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo.model.tokens import ENCODER_CARD, END_OF_CHUNK, IMAGE
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.card import current_digest
from neuroflamingo_encoders.registry import encoder_card, list_encoders
from neuroflamingo_preprocessing.errors import ModelError, UsageError

if TYPE_CHECKING:
    from neuroflamingo_encoders.contract import BrainEncoder


class PretrainedMixin(FusedModel):
    """Assembly, saving and loading methods of `NeuroFlamingo`."""

    @classmethod
    def assemble(
        cls,
        encoder: BrainEncoder | None,
        language_model: PreTrainedModel,
        tokenizer: Any,
        *,
        cross_attn_every_n_layers: int = 1,
        resampler: PerceiverResampler | dict[str, Any] | None = None,
        only_attend_immediate_media: bool = True,
        gate: float = 0.0,
        dim_head: int = 64,
        heads: int = 8,
        ff_mult: int = 4,
        decoder_layers: str | None = None,
    ) -> tuple[Self, NeuroFlamingoProcessor]:
        """Assemble a model from an encoder, a resampler and a language model, which is modified in place.

        Encoder and language model are frozen; the resampler, the gated blocks and the new tokens' embeddings train.

        Args:
            encoder: a `BrainEncoder`; None: only `scan_tokens` are accepted, and `resampler` must be given.
            language_model: any causal language model of transformers.
            tokenizer: its tokenizer; `<|endofchunk|>`, `<image>` and, if it has no padding token, `<PAD>` are added.
            cross_attn_every_n_layers: interval between gated blocks, in layers.
            resampler: a resampler, or its settings (`ResamplerSettings`); None: OpenFlamingo's, as wide as the tokens.
            only_attend_immediate_media: text attends to its latest scan only, else to all scans so far.
            gate: initial value of the gates, before tanh.
            dim_head, heads, ff_mult: see `GatedCrossAttentionBlock`.
            decoder_layers: dotted name of the language model's layers, if they cannot be found automatically.

        Raises:
            UsageError: neither encoder nor resampler, or their widths differ.
            ModelError: the language model's layers cannot be found.
        """
        resampler = _resampler(encoder, resampler)
        new_tokens = add_special_tokens(tokenizer)
        embeddings: Any = language_model.get_input_embeddings()
        if len(tokenizer) > len(embeddings.weight):
            without_memory = embeddings.weight.is_meta  # a meta tensor has no mean to draw the new rows around
            language_model.resize_token_embeddings(len(tokenizer), mean_resizing=not without_memory)
        config = NeuroFlamingoConfig(
            text_config=language_model.config,
            resampler=resampler.settings,
            cross_attention={
                "every": cross_attn_every_n_layers,
                "dim_head": dim_head,
                "heads": heads,
                "ff_mult": ff_mult,
                "only_attend_immediate_media": only_attend_immediate_media,
                "gate": gate,
            },
            encoder=None if encoder is None else describe_encoder(encoder),
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
            endofchunk_token_id=tokenizer.convert_tokens_to_ids(END_OF_CHUNK),
            decoder_layers=decoder_layers,
            new_token_ids=new_tokens,
            dtype=language_model.dtype,
        )
        model: Any = cls(config, language_model, encoder, resampler.to(language_model.device, language_model.dtype))
        model.freeze_for_training()
        model.generation_config = _generation_config(language_model, config, tokenizer)
        return model, NeuroFlamingoProcessor(tokenizer, getattr(encoder, "card", None))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write config, weights (safetensors) and the encoder's card into a folder; the processor saves itself.

        Raises:
            ModelError: the encoder cannot be rebuilt from its name and options.
        """
        if self.config.encoder is not None:
            _check_comes_back(self.config.encoder)
        super().save_pretrained(save_directory, **kwargs)
        if self.config.encoder is not None:
            text = json.dumps(self.config.encoder["card"], indent=2, ensure_ascii=False)
            (Path(save_directory) / ENCODER_CARD).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Load a model from a folder written by `save_pretrained`; missing or extra tensors are errors.

        Args:
            pretrained_model_name_or_path: the folder; nothing is ever downloaded.
            args, kwargs: as for any transformers model (`dtype`, `device_map`, ...).

        Raises:
            NotFoundError: no such folder.
            ModelError: it contains a pickle, or its weights do not match.
            ConfigError: its files request remote code.
        """
        folder = check_folder(pretrained_model_name_or_path)
        if kwargs.pop("trust_remote_code", None):
            raise UsageError("trust_remote_code was given", hint="leave it out; NeuroFlamingo never runs remote code")
        wants_info = kwargs.pop("output_loading_info", False)
        # Let mismatched sizes through, to report them below together with all other faults.
        kwargs.update(use_safetensors=True, local_files_only=True, ignore_mismatched_sizes=True)
        kwargs["output_loading_info"] = True
        loaded: Any = super().from_pretrained(str(folder), *args, **kwargs)
        model, info = loaded
        faults = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        if any(faults.values()):
            raise ModelError(
                f"the weights in {folder} do not fit its config",
                expected="exactly the tensors of the model",
                seen="; ".join(f"{len(v)} {k.replace('_', ' ')} ({', '.join(v[:3])})" for k, v in faults.items() if v),
                hint="save the model again with save_pretrained",
                exit_code=65,
            )
        _restore_buffers(model)
        model.freeze_for_training()
        model.eval()
        return (model, info) if wants_info else model


def _resampler(
    encoder: BrainEncoder | None, resampler: PerceiverResampler | dict[str, Any] | None
) -> PerceiverResampler:
    width = None if encoder is None else encoder.card.output.width
    if width is None and resampler is None:
        raise UsageError(
            "neither an encoder nor a resampler was given",
            expected="an encoder, or a resampler as wide as the scan tokens",
            hint="pass resampler={'dim': width of the tokens}",
        )
    if not isinstance(resampler, PerceiverResampler):
        resampler = PerceiverResampler(**({"dim": width} | (resampler or {})))  # pyright: ignore[reportArgumentType]
    if width is not None and resampler.settings["dim"] != width:
        raise UsageError(
            "the resampler does not fit the encoder",
            expected=f"dim = {width}, the width of the encoder's tokens",
            seen=f"dim = {resampler.settings['dim']}",
        )
    return resampler


def _generation_config(
    language_model: PreTrainedModel, config: NeuroFlamingoConfig, tokenizer: Any
) -> GenerationConfig:
    """The language model's own generation settings, with `<|endofchunk|>` as an additional end token."""
    generation = copy.deepcopy(language_model.generation_config) or GenerationConfig()
    own = generation.eos_token_id
    own = own if isinstance(own, list) else [] if own is None else [own]
    generation.eos_token_id = list(dict.fromkeys([config.endofchunk_token_id, *own]))
    generation.pad_token_id = tokenizer.pad_token_id
    return generation


def describe_encoder(encoder: BrainEncoder) -> dict[str, Any]:
    """Description of an encoder for the config, from which it is rebuilt and checked to be the same."""
    plain = encoder.card.model_dump(mode="json")
    kept = {"name": encoder.card.name, "options": plain["options"], "digest": encoder.card.digest, "card": plain}
    return kept | ({"tiny": True} if getattr(encoder, "tiny_size", False) else {})


def _check_comes_back(description: dict[str, Any]) -> None:
    """Refuse to save an encoder that could not be rebuilt, since its card was made or changed by hand."""
    name, options = description["name"], description["options"]
    if description.get("tiny"):
        return
    if name in list_encoders() and encoder_card(name, **options).digest != description["digest"]:
        raise ModelError(
            f"the encoder '{name}' could not be rebuilt from a saved model",
            expected=f"the card that encoder_card gives for '{name}' with {options or 'no options'}",
            seen="another card",
            hint=f"build it by name: build_encoder('{name}', option=value, ...)",
        )


def build_encoder_from_config(description: dict[str, Any]) -> BrainEncoder:
    """Build the described encoder, without weights, from the registry, which alone decides what code runs.

    Raises:
        ModelError: the encoder is not installed, or its card differs from the one that the model was trained with.
    """
    tiny = bool(description.get("tiny"))
    encoder = build_encoder(description["name"], tiny=tiny, **description.get("options", {}))
    if encoder.card.digest != current_digest(description.get("card"), description.get("digest")):
        raise ModelError(
            f"the installed encoder '{description['name']}' differs from the one that this model was trained with",
            expected=f"a card with the digest {description.get('digest')}",
            seen=encoder.card.digest,
            hint=f"install the version of the encoder that {ENCODER_CARD} beside the weights describes",
            exit_code=65,
        )
    return encoder


@torch.no_grad()
def _restore_buffers(model: PretrainedMixin) -> None:
    """Recompute the encoder's unsaved buffers, which transformers leaves undefined in modules unknown to it."""
    if model.encoder is None or model.config.encoder is None:
        return
    saved = model.encoder.state_dict().keys()
    unsaved: dict[str, Tensor] = {name: b for name, b in model.encoder.named_buffers() if name not in saved}
    if unsaved:
        source = dict(build_encoder_from_config(model.config.encoder).named_buffers())
        for name, buffer in unsaved.items():
            buffer.copy_(source[name])
