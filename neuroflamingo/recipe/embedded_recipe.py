"""The recipe of an embedded model: the stages that it is trained in. Importing it loads no torch."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from neuroflamingo.recipe.schema import AdamWSettings, CheckpointSettings, LogSettings, NumericsSettings
from neuroflamingo.settings import PlainName, Section


class PaintSettings(Section):
    """Which cases are painted: `[first seed, count]` for each purpose; the ranges must not overlap."""

    encoder: tuple[int, int] = (1_000_000, 4_000)
    """For the encoder: first seed and count."""
    fusion: tuple[int, int] = (2_000_000, 4_000)
    """For the fusion stage, not seen by the encoder."""
    validation: tuple[int, int] = (3_000_000, 400)
    """To choose checkpoints and thresholds by."""
    test: tuple[int, int] = (4_000_000, 1_000)
    """Never painted in training."""


class StageOptimSettings(AdamWSettings):
    """The optimiser of a stage."""

    warmup: NonNegativeInt = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: NonNegativeFloat = 0.01
    """Of matrices."""


class StageValidationSettings(Section):
    """When a stage is validated."""

    every: PositiveInt = 300
    """In optimiser steps; always after the last one too."""
    patience: PositiveInt | None = None
    """Stop after so many validations without a better one."""


class StageSettings(Section):
    """One stage: its optimiser, its validations, and the weights that it begins with."""

    optim: StageOptimSettings
    validation: StageValidationSettings = StageValidationSettings()
    start: str | None = None
    """Weights to begin with: a checkpoint of the same stage of another run, or its safetensors file; none: random."""


class EncoderStageSettings(StageSettings):
    """Dense supervision of the encoder; cases are drawn from a window of the pool that grows while it is painted."""

    first_window: PositiveInt = 600
    """How many of the cases the first step may draw."""
    window_growth: NonNegativeFloat = 3.0
    """How many more each further step may draw."""
    crowded: float = Field(default=0.75, ge=0, le=1)
    """Share of the encoder's cases with many findings, so that it sees more lesions a head; no other pool has any."""


class LanguageModelStageSettings(StageSettings):
    """The language model and its tokenizer, on rendered reports alone."""

    vocabulary: PositiveInt = 1024
    """Tokens of the tokenizer at most."""
    hidden: PositiveInt = 192
    """Width of the language model."""
    layers: PositiveInt = 4
    """Of the language model."""
    heads: PositiveInt = 6
    """Of the language model."""
    feed_forward: PositiveInt = 512
    """Width between the two matrices of a layer's feed-forward part."""


class FusionStageSettings(StageSettings):
    """Resampler and gated blocks between the frozen encoder and the frozen language model."""

    resampler_depth: PositiveInt = 2
    """Layers of the resampler."""
    latents: PositiveInt = 32
    """Of the resampler, for each scan."""
    heads: PositiveInt = 8
    """Of the resampler and of the gated blocks."""
    dim_head: PositiveInt = 64
    """Width of a head."""
    every_n_layers: PositiveInt = 1
    """A gated block before every this-many-th layer."""
    gate: float = Field(default=0.5, gt=-1, lt=1)
    """Where tanh(gate) starts; OpenFlamingo starts at 0."""
    finding_weight: PositiveFloat = 4.0
    """Loss weight of tokens inside finding-carrying words."""
    style: NonNegativeInt = 0
    """House style of the reports to imitate. A model that saw every wording would split the probability of a finding
    over its wordings, and the likeliest single word would be the one that denies it."""
    size_jitter_mm: NonNegativeFloat = 2.0
    """Standard deviation of the noise on stated sizes: 18 and 20 mm are then near each other, not just two words."""
    size_step_mm: PositiveFloat = 5.0
    """Sizes are stated in such steps: a language model has a word for each number, and each has to be learnt."""
    copied_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of texts with the findings of another head, of which only the impression is learnt: so that it follows the
    findings as they are written, and does not read the scan a second time."""
    presence_weight: NonNegativeFloat = 0.5
    """Weight of the auxiliary loss that reads the findings off the latents."""


class EmbeddedRecipe(Section):
    """All stages of an embedded model; each is a task of the training loop."""

    name: PlainName
    """Of the run: its folder is runs/NAME."""
    seed: NonNegativeInt = 0
    """Of new weights and of the order of samples."""
    paint: PaintSettings = PaintSettings()
    encoder: EncoderStageSettings
    language_model: LanguageModelStageSettings
    fusion: FusionStageSettings
    run: NumericsSettings = NumericsSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
