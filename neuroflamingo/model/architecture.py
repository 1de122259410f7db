"""Settings of the resampler and the gated blocks; importing this module loads neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

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
