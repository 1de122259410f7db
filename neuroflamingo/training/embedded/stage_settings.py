"""The configuration of a training run: frozen, checked as a whole, saved with the run."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from neuroflamingo.recipe.read import check, read_yaml
from neuroflamingo.settings import Section


class PaintSettings(Section):
    """Which cases are painted: `[first seed, count]` for each purpose; the ranges must not overlap."""

    encoder: tuple[int, int] = (1_000_000, 4_000)
    bridge: tuple[int, int] = (2_000_000, 4_000)
    validation: tuple[int, int] = (3_000_000, 400)
    test: tuple[int, int] = (4_000_000, 1_000)


class LoopSettings(Section):
    """One optimisation: AdamW, linear warm-up, cosine decay to zero."""

    steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: int = 100
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    validate_every: int = 300
    save_every: int = 150
    precision: str = Field(default="auto", pattern="^(auto|bf16|fp32)$")
    """`auto` is bf16 where the hardware computes in it, fp32 elsewhere."""
    start: str | None = None
    """Weights to go on from, such as `best.safetensors` of the same stage of an earlier run; None: random ones."""


class EncoderSettings(LoopSettings):
    """Dense supervision of the encoder; cases are drawn from a window of the pool that grows while it is painted."""

    first_window: int = 600
    window_growth: float = 3.0
    crowded: float = 0.75
    """Share of the encoder's cases with many findings, so that it sees more lesions a head; no other pool has any."""
    average: float = 0.998
    """Decay of the moving average of the weights, which is what is kept."""


class LanguageSettings(LoopSettings):
    """The language model and its tokenizer, on rendered reports alone."""

    vocabulary: int = 1024
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 512


class BridgeSettings(LoopSettings):
    """Resampler and gated blocks between the frozen encoder and the frozen language model."""

    resampler_depth: int = 2
    latents: int = 32
    heads: int = 8
    dim_head: int = 64
    every_n_layers: int = 1
    gate: float = 0.5
    """Where tanh(gate) starts; OpenFlamingo starts at 0."""
    finding_weight: float = 4.0
    """Loss weight of tokens inside finding-carrying words."""
    style: int = 0
    """House style of the reports to imitate. A model that saw every wording would split the probability of a finding
    over its wordings, and the likeliest single word would be the one that denies it."""
    size_jitter_mm: float = 2.0
    """Standard deviation of the noise on stated sizes: 18 and 20 mm are then near each other, not just two words."""
    size_step_mm: float = Field(default=5.0, gt=0)
    """Sizes are stated in such steps: a language model has a word for each number, and each has to be learnt."""
    copied_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of texts with the findings of another head, of which only the impression is learnt: so that it follows the
    findings as they are written, and does not read the scan a second time."""
    presence_weight: float = 0.5
    """Weight of the auxiliary loss that reads the findings off the latents."""


class TrainSettings(Section):
    """All stages of an embedded model."""

    name: str
    seed: int = 0
    encoder_name: str = "tiny-t1w-cnn"
    paint: PaintSettings = PaintSettings()
    encoder: EncoderSettings
    language: LanguageSettings
    bridge: BridgeSettings


def load_settings(path: str | Path, overrides: list[str] | None = None) -> TrainSettings:
    """Read a recipe of stages; see `read_yaml` and `check`."""
    return check(TrainSettings, read_yaml(path, overrides), str(path))
