"""Settings of the resampler and the gated blocks; importing this module loads neither torch nor transformers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StrictInt

from neuroflamingo.model.prompt_forms import TrainedPrompts
from neuroflamingo.settings import Section


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
        every: interval between gated blocks, in layers.
        gate: initial value of the gates, before tanh.
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


class EncoderDescription(BaseModel):
    """The encoder of a saved model: what it is built from, and the card that it was trained with."""

    model_config = ConfigDict(extra="allow")

    name: str
    options: dict[str, Any] = Field(default={})
    digest: str
    card: dict[str, Any] | None = None
    tiny: bool = False


class ModelSettings(Section):
    """Keys of a model's config beside its language model, resampler and gated blocks; see `NeuroFlamingoConfig`."""

    encoder: EncoderDescription | None = None
    image_token_id: StrictInt = -1
    endofchunk_token_id: StrictInt = -1
    decoder_layers: str | None = None
    new_token_ids: tuple[StrictInt, ...] = ()
    prompts: TrainedPrompts | None = None
