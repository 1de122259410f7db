"""`NeuroFlamingoConfig`, the model's config in transformers' format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from neuroflamingo.model.architecture import CrossAttentionSettings, ModelSettings, ResamplerSettings
from neuroflamingo.settings import check_settings, refuse_remote_code
from neuroflamingo_preprocessing.errors import ConfigError

_IMPLEMENTATIONS = ("_attn_implementation_internal", "_experts_implementation_internal")


class NeuroFlamingoConfig(PretrainedConfig):
    """Configuration from which the model is rebuilt before its weights are loaded.

    Args:
        text_config: the language model's config, or its dict with a `model_type` that transformers ships.
        resampler: see `ResamplerSettings`.
        cross_attention: see `CrossAttentionSettings`.
        encoder: name, options and card digest of the encoder; None: only ready tokens are accepted.
        image_token_id, endofchunk_token_id: ids of `<image>` and `<|endofchunk|>`.
        decoder_layers: dotted name of the language model's list of layers.
        new_token_ids: ids of the tokens that were added to the language model; only their embeddings are trained.
        prompts: prompt forms that the model was trained for, see `TrainedPrompts`; None: they are not known.

    Raises:
        ConfigError: unknown keys, an unknown language model, or keys that request remote code.

    Example:
        >>> from neuroflamingo import NeuroFlamingoConfig
        >>> config = NeuroFlamingoConfig(
        ...     text_config={"model_type": "llama", "hidden_size": 64},
        ...     resampler={"dim": 32, "num_latents": 16},
        ...     cross_attention={"every": 2},
        ... )
        >>> config.resampler["depth"], config.cross_attention["every"]
        (6, 2)
    """

    model_type = "neuroflamingo"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        resampler: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        image_token_id: int = -1,
        endofchunk_token_id: int = -1,
        decoder_layers: str | None = None,
        new_token_ids: list[int] | None = None,
        prompts: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_remote_code([text_config if isinstance(text_config, dict) else None, encoder, kwargs], "the config")
        own = {"encoder": encoder, "image_token_id": image_token_id, "endofchunk_token_id": endofchunk_token_id}
        own |= {"decoder_layers": decoder_layers, "new_token_ids": new_token_ids or [], "prompts": prompts}
        checked = check_settings(ModelSettings, own, "the config")
        if not isinstance(text_config, dict | PretrainedConfig | None):
            raise ConfigError("text_config holds no settings", expected="keys and values", seen=repr(text_config)[:80])
        if isinstance(text_config, dict):
            text_config = make_text_config(text_config)
        self.text_config = text_config if text_config is not None else CONFIG_MAPPING["llama"]()
        self.resampler = check_settings(ResamplerSettings, resampler or {"dim": 64}, "resampler").model_dump()
        self.cross_attention = check_settings(
            CrossAttentionSettings, cross_attention or {}, "cross_attention"
        ).model_dump()
        self.encoder = encoder
        self.image_token_id = image_token_id
        self.endofchunk_token_id = endofchunk_token_id
        self.decoder_layers = decoder_layers
        self.new_token_ids = list(new_token_ids or ())
        self.prompts = None if checked.prompts is None else checked.prompts.model_dump(mode="json")
        kwargs.setdefault("tie_word_embeddings", bool(getattr(self.text_config, "tie_word_embeddings", False)))
        # The base class hands its own attention implementation, None so far, down to text_config and to configs inside
        # it: keep what is there. Without one, a family computes attention without its mask.
        kept = [
            (part, name, getattr(part, name, None)) for part in _parts(self.text_config) for name in _IMPLEMENTATIONS
        ]
        super().__init__(**kwargs)
        for part, name, value in kept:
            if getattr(part, name, None) is None:
                setattr(part, name, value)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """The config of the text part, also of a language model that keeps one inside its own (Gemma 3, MedGemma)."""
        return self.text_config.get_text_config(decoder=True)


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """A config and those inside it."""
    yield config
    for name in config.sub_configs or ():
        if (part := getattr(config, name, None)) is not None:
            yield from _parts(part)


def make_text_config(values: dict[str, Any], where: str = "text_config") -> PretrainedConfig:
    """Build a language model's config from a dict with its `model_type`.

    Raises:
        ConfigError: transformers ships no such model.
    """
    values = dict(values)
    family = values.pop("model_type", None)
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise ConfigError(
            f"{where} names an unknown language model '{family}'",
            expected="a model_type that transformers ships",
            seen=str(family),
            hint=f"update transformers, or correct {where}.model_type",
        )
    return CONFIG_MAPPING[family](**values)


AutoConfig.register("neuroflamingo", NeuroFlamingoConfig)
