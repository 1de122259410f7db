"""Assembly of a NeuroFlamingo from its parts, saving to a folder, and strict loading."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from inspect import isclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from neuroflamingo.model.base import FusedModel
from neuroflamingo.model.config import NeuroFlamingoConfig
from neuroflamingo.model.folder import CONFIG, GENERATION, check_folder, token_ids
from neuroflamingo.model.library_errors import blame_file
from neuroflamingo.model.media_probe import prove_media
from neuroflamingo.model.plain_files import StoredTensor, weight_tensors
from neuroflamingo.model.processor import NeuroFlamingoProcessor, add_special_tokens
from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo.model.tokens import ENCODER_CARD, END_OF_CHUNK, IMAGE
from neuroflamingo.model.weight_check import ENCODER_DIGEST, check_encoder_weights, check_finite, stored_digest
from neuroflamingo.settings import read_model_json
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.card import current_digest
from neuroflamingo_encoders.registry import encoder_card, list_encoders
from neuroflamingo_preprocessing.errors import ModelError, UsageError

if TYPE_CHECKING:
    from neuroflamingo_encoders.contract import BrainEncoder

MOST_COMPUTED = 2**32
"""Most numbers in buffers that are not in the files (masks, tables of angles), which are computed at loading."""


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
        if type(language_model.config) not in AutoModelForCausalLM._model_mapping:
            language_model.config.architectures = [type(language_model).__name__]  # else it could not be built again
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
        if self.config.encoder is not None and kwargs.get("is_main_process", True):
            setattr(self.config, ENCODER_DIGEST, stored_digest(Path(save_directory)))
            self.config.save_pretrained(save_directory)
            text = json.dumps(self.config.encoder["card"], indent=2, ensure_ascii=False)
            (Path(save_directory) / ENCODER_CARD).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Load a model from a folder written by `save_pretrained`; missing or extra tensors are errors.

        Args:
            pretrained_model_name_or_path: the folder; nothing is ever downloaded.
            args, kwargs: as for any transformers model (`device_map`, ...). `dtype`: float32 unless given, whatever the
                weights were stored in; `auto` takes the stored one.

        Raises:
            NotFoundError: no such folder.
            ModelError: a file that is no plain data, is damaged or cut off, or asks for more than a model can be;
                weights that do not match, or compute no numbers; a language model that would never see a scan.
            ConfigError: its files request remote code, or keys of its config have wrong values.
        """
        folder = check_folder(pretrained_model_name_or_path)
        stored = weight_tensors(folder)
        if kwargs.pop("trust_remote_code", None):
            raise UsageError("trust_remote_code was given", hint="leave it out; NeuroFlamingo never runs remote code")
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)  # training in half precision ends in NaN
        wants_info = kwargs.pop("output_loading_info", False)
        # Let mismatched sizes through, to report them below together with all other faults.
        kwargs.update(use_safetensors=True, local_files_only=True, ignore_mismatched_sizes=True)
        kwargs["output_loading_info"] = True
        with blame_file(folder / GENERATION, "settings of transformers' generation", "remove the file"):
            if (folder / GENERATION).is_file():
                GenerationConfig.from_pretrained(str(folder), local_files_only=True).validate(strict=True)
        with blame_file(folder / CONFIG, "the config of a model that this version of transformers can build"):
            if "config" not in kwargs:
                _check_room(cls, folder, stored)
            loaded: Any = super().from_pretrained(str(folder), *args, **kwargs)
        model, info = loaded
        faults = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        if any(faults.values()):
            raise ModelError(
                f"the weights in {folder} do not fit its config.json",
                expected="exactly the tensors of the model",
                seen="; ".join(f"{len(v)} {k.replace('_', ' ')} ({', '.join(v[:3])})" for k, v in faults.items() if v),
                hint="save the model again with save_pretrained",
                exit_code=65,
            )
        check_encoder_weights(folder, read_model_json(folder / CONFIG))
        _refuse_integers(model, stored, folder)
        _check_token_ids(model, folder)
        _restore_buffers(model)
        check_finite(model, prove_media(model), str(folder))
        model.freeze_for_training()
        model.eval()
        return (model, info) if wants_info else model


def _check_room(kind: Any, folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse a config that describes far more numbers than the files hold, before any memory is taken for them."""
    config: Any = NeuroFlamingoConfig.from_pretrained(str(folder), local_files_only=True)
    with torch.device("meta"):
        try:
            outline = kind(config)
        except RuntimeError as error:  # monai's Swin reads a number of a tensor while it is built
            if "meta tensor" not in str(error):
                raise
            config.encoder = None
            outline = kind(config)
    described = sum(parameter.numel() for parameter in outline.parameters())
    computed = sum(buffer.numel() for buffer in outline.buffers())
    held = sum(tensor.size for tensor in stored.values())
    packed = getattr(outline.config, "quantization_config", None) is not None
    if (described > 2 * held + 2**20 and not packed) or computed > MOST_COMPUTED + 2 * held:
        raise ModelError(
            f"the weights in {folder} do not fit its config.json",
            expected=f"files for the {described:,} weights that config.json describes",
            seen=f"files that hold {held:,} numbers",
            hint="take config.json and the weights from one model",
            exit_code=65,
        )


def _refuse_integers(model: PretrainedMixin, stored: Mapping[str, StoredTensor], folder: Path) -> None:
    """Refuse whole numbers in place of weights: what a quantised copy without its scales has left of them."""
    own = model.state_dict()
    rounded = [name for name, tensor in stored.items() if tensor.is_integer and name in own]
    rounded = [name for name in rounded if own[name].is_floating_point()]
    if rounded and getattr(model, "hf_quantizer", None) is None:
        tensor = stored[rounded[0]]
        raise ModelError(
            f"{tensor.file} in {folder} does not hold weights but whole numbers",
            expected="F32, F16 or BF16",
            seen=f"{tensor.dtype} in {len(rounded)} tensors ({', '.join(sorted(rounded)[:3])})",
            hint="take the weights as they were before they were quantised",
            exit_code=65,
        )


def _check_token_ids(model: PretrainedMixin, folder: Path) -> None:
    """Refuse token ids that the language model has no embedding for."""
    table: Any = model.lang_encoder.get_input_embeddings()
    own = {
        key: value for key, value in model.config.to_diff_dict().items() if key != "text_config"
    }  # its ids are unused
    for file, values in ((GENERATION, model.generation_config.to_dict()), (CONFIG, own)):
        for key, number in token_ids(values):
            if number >= table.num_embeddings:
                raise ModelError(
                    f"{file} in {folder} names a token that the model does not have",
                    expected=f"{key} below {table.num_embeddings}, the size of the vocabulary",
                    seen=str(number),
                    hint="take the file of the original model",
                    exit_code=65,
                )


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
    generation = copy.deepcopy(getattr(language_model, "generation_config", None)) or GenerationConfig()
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
    declared = description.get("card") or encoder.card.model_dump(mode="json")
    if encoder.card.digest != current_digest(declared, description.get("digest")):
        raise ModelError(
            f"the installed encoder '{description['name']}' differs from the one that this model was trained with",
            expected=f"a card with the digest {description.get('digest')}",
            seen=encoder.card.digest,
            hint=f"install the version of the encoder that {ENCODER_CARD} beside the weights describes",
            exit_code=65,
        )
    return encoder


def build_language_model(config: PretrainedConfig) -> PreTrainedModel:
    """Build a bare language model of transformers, untrained: the class of its config, else the one that it names.

    Raises:
        ModelError: transformers has no causal language model for this config (exit 65).
    """
    if type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM.from_config(config)
    named = (config.architectures or [""])[0]
    kind: Any = getattr(transformers, named, None)
    if not (isclass(kind) and issubclass(kind, PreTrainedModel) and kind.config_class is type(config)):
        raise ModelError(
            f"transformers builds no causal language model from {type(config).__name__}",
            expected="a class registered with AutoModelForCausalLM, or the name of one in text_config.architectures",
            seen=named or "none",
            hint="AutoModelForCausalLM.register(CONFIG_CLASS, MODEL_CLASS) before loading",
            exit_code=65,
        )
    return kind._from_config(config)


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
