"""Recipe of an embedded model: the stages of its training. Importing it loads no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from neuroflamingo.recipe.schema import AdamWSettings, CheckpointSettings, LogSettings, NumericsSettings
from neuroflamingo.settings import PlainName, Section


class PaintSettings(Section):
    """Painted cases: `[first seed, count]` for each purpose; the ranges must not overlap."""

    encoder: tuple[int, int] = (1_000_000, 4_000)
    """For the encoder: first seed and count."""
    fusion: tuple[int, int] = (2_000_000, 4_000)
    """For the fusion stage, not seen by the encoder."""
    validation: tuple[int, int] = (3_000_000, 400)
    """For choosing checkpoints and thresholds."""
    test: tuple[int, int] = (4_000_000, 1_000)
    """For testing; never used in training."""
    heads: str | None = None
    """Folder or BIDS dataset of healthy T1w heads to paint into besides the template; null: the template only."""
    validation_heads: str | None = None
    """The same for the validation cases: heads of other people."""
    real_share: float = Field(default=0.75, ge=0, le=1)
    """Share of the cases that are painted into these heads."""
    outlines: str | None = None
    """Folder or tar archive of real lesions' masks in MNI space, for half of the infarcts; a fifth of the masks is kept
    for the validation cases; null: drawn outlines only."""
    processes: PositiveInt | None = None
    """Number of processes that paint; null: one for each core."""

    def ranges(self) -> dict[str, tuple[int, int]]:
        """First seed and count of each purpose."""
        return {name: value for name, value in self if isinstance(value, tuple)}


class StageOptimSettings(AdamWSettings):
    """Optimiser of a stage."""

    warmup: NonNegativeInt = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of matrices."""


class StageValidationSettings(Section):
    """Intervals of a stage's validation."""

    every: PositiveInt = 300
    """Interval in optimiser steps; the last step is always validated."""
    patience: PositiveInt | None = None
    """Stop after this many validations without improvement; null: never."""


class StageSettings(Section):
    """Stage of training: its optimiser, its validation, and its initial weights."""

    optim: StageOptimSettings
    validation: StageValidationSettings = StageValidationSettings()
    start: str | None = None
    """Initial weights: a checkpoint of the same stage of another run, or its safetensors file; null: random."""


class EncoderStageSettings(StageSettings):
    """Dense supervision of the encoder; cases are drawn from a window of the pool that grows while it is painted."""

    first_window: PositiveInt = 600
    """Number of cases from which the first step draws."""
    window_growth: NonNegativeFloat = 3.0
    """Number of cases added to the window at each further step."""
    crowded: float = Field(default=0.75, ge=0, le=1)
    """Share of the encoder's cases with many findings, so that it sees more lesions per head; other pools have none."""


class PromptSettings(Section):
    """Forms of the prompts that a stage learns; what the shares leave is one scan without examples."""

    few_shot: float = Field(default=0.0, ge=0, le=1)
    """Share of batches with examples of scan and report before the scan, in one house style."""
    follow_up: float = Field(default=0.0, ge=0, le=1)
    """Share of batches with two scans, of which the report compares the second with the first."""
    examples: PositiveInt = 3
    """Most examples of a prompt."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.few_shot + self.follow_up > 1:
            raise ValueError("few_shot and follow_up are shares: together at most 1")
        return self

    @property
    def scans(self) -> int:
        """Most scans of a prompt, those of examples included."""
        return max(1, 2 * (self.follow_up > 0), (self.examples + 1) * (self.few_shot > 0))


class LanguageModelStageSettings(StageSettings):
    """Language model and tokenizer, trained on rendered reports only."""

    prompts: PromptSettings = PromptSettings()

    vocabulary: PositiveInt = 1024
    """Maximum number of tokens of the tokenizer."""
    hidden: PositiveInt = 192
    """Width of the language model."""
    layers: PositiveInt = 4
    """Number of layers of the language model."""
    heads: PositiveInt = 6
    """Number of attention heads of the language model."""
    feed_forward: PositiveInt = 512
    """Inner width of a layer's feed-forward part."""


class FusionStageSettings(StageSettings):
    """Training of resampler and gated blocks between the frozen encoder and the frozen language model."""

    prompts: PromptSettings = PromptSettings()
    pairs: tuple[int, int] = (5_000_000, 2_000)
    """First seed and count of painted baselines and follow-ups; painted if `prompts.follow_up` asks for them."""
    validation_pairs: tuple[int, int] = (6_000_000, 100)
    """The same for choosing checkpoints."""
    only_attend_immediate_media: bool = True
    """Whether text attends to its latest scan only; false: to all scans so far, which a comparison needs."""
    unlike_examples: float = Field(default=0.1, ge=0, le=1)
    """Share of examples whose scan is blank or another one, so that reports do not lean on the examples' scans."""
    same_scan: float = Field(default=0.05, ge=0, le=1)
    """Share of follow-ups with the same scan twice."""

    resampler_depth: PositiveInt = 2
    """Number of layers of the resampler."""
    latents: PositiveInt = 32
    """Number of latents per scan."""
    heads: PositiveInt = 8
    """Number of attention heads of the resampler and of the gated blocks."""
    dim_head: PositiveInt = 64
    """Width of an attention head."""
    every_n_layers: PositiveInt = 1
    """Interval of gated blocks in layers of the language model."""
    gate: float = Field(default=0.5, gt=-1, lt=1)
    """Initial value of tanh(gate); 0 in OpenFlamingo."""
    finding_weight: PositiveFloat = 4.0
    """Loss weight of tokens in words that carry findings."""
    style: NonNegativeInt = 0
    """House style of the reports to imitate. With all wordings, the probability of a finding would be divided among
    them, and the likeliest single word would be the one that denies it."""
    size_jitter_mm: NonNegativeFloat = 2.0
    """Standard deviation of the noise on stated sizes, which makes 18 and 20 mm neighbours, not just two words."""
    size_step_mm: PositiveFloat = 5.0
    """Steps of stated sizes: to a language model each number is a word, which has to be learnt."""
    copied_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of texts with the findings of another head, in which only the impression is learnt, so that it follows the
    findings as written instead of reading the scan a second time."""
    presence_weight: NonNegativeFloat = 0.5
    """Weight of the auxiliary loss that reads the findings from the latents."""


class EmbeddedRecipe(Section):
    """Recipe with all stages of an embedded model; each is a task of the training loop."""

    name: PlainName
    """Name of the run; its folder is runs/NAME."""
    seed: NonNegativeInt = 0
    """Random seed for new weights and sample order."""
    paint: PaintSettings = PaintSettings()
    encoder: EncoderStageSettings
    language_model: LanguageModelStageSettings
    fusion: FusionStageSettings
    run: NumericsSettings = NumericsSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
