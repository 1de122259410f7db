"""What a NeuroFlamingo is made of, as plain data. Importing this module loads neither torch nor transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from neuroflamingo.configuration import NeuroFlamingoConfig

__all__ = ["CrossAttentionSettings", "NeuroFlamingoConfig", "ResamplerSettings", "Section", "refuse_remote_code"]

IMAGE, END_OF_CHUNK, PAD = "<image>", "<|endofchunk|>", "<PAD>"  # the tokens that upstream adds, in its order
ENCODER_CARD = "encoder_card.json"  # the file that describes the encoder, beside the weights

# Keys by which a config or tokenizer file asks for code that lies beside it to be imported and run.
REMOTE_CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "custom_generate", "code_revision"})


class Section(BaseModel):
    """A frozen part of a config or recipe; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ResamplerSettings(Section):
    """Arguments of `PerceiverResampler`; the defaults are OpenFlamingo's."""

    dim: PositiveInt
    depth: PositiveInt = 6
    dim_head: PositiveInt = 64
    heads: PositiveInt = 8
    num_latents: PositiveInt = 64
    max_num_media: PositiveInt | None = None
    max_num_frames: PositiveInt | None = None
    ff_mult: PositiveInt = 4


class CrossAttentionSettings(Section):
    """Arguments of the gated blocks; the defaults are OpenFlamingo's.

    Attributes:
        every: a block before every this-many-th layer.
        gate: what the gates start at, before tanh.
        media_rule: `previous`: text looks at the latest scan before it; `next`: at the first one after it, which is
            what OpenFlamingo v1 and Multimodal-GPT do without media-placement augmentation.
    """

    every: PositiveInt = 1
    dim_head: PositiveInt = 64
    heads: PositiveInt = 8
    ff_mult: PositiveInt = 4
    only_attend_immediate_media: bool = True
    gate: float = Field(default=0.0, allow_inf_nan=False)
    media_rule: Literal["previous", "next"] = "previous"


def check_settings(kind: type[BaseModel], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Validated settings with all defaults filled in, as a plain dict.

    Raises:
        ConfigError: all faults in one message.
    """
    try:
        return kind.model_validate(values).model_dump()
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError(
            f"{where} does not fit",
            expected=f"keys {', '.join(kind.model_fields)}",
            seen="; ".join(faults),
            hint="correct or remove these keys",
        ) from error


def refuse_remote_code(values: Any, where: str) -> None:
    """Refuse data that ask for code to be run, at any depth.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(values, dict):
        for key, value in values.items():
            # An implementation with a slash names a repository whose kernels would be fetched and run.
            kernel = key.endswith(("_implementation", "_implementation_internal")) and "/" in str(value)
            if (key in REMOTE_CODE_KEYS and value) or kernel:
                raise ConfigError(
                    f"{where} asks for code of its own to be run",
                    expected="plain data",
                    seen=f"the key '{key}'",
                    hint="remove the key, if the model works without that code; NeuroFlamingo never runs it",
                )
            refuse_remote_code(value, where)
    elif isinstance(values, list):
        for value in values:
            refuse_remote_code(value, where)


def __getattr__(name: str) -> Any:
    if name == "NeuroFlamingoConfig":
        return import_module("neuroflamingo.configuration").NeuroFlamingoConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
