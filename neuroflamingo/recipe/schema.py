"""The recipe of a research training: what is joined, what it reads, what trains, how. Importing it loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from neuroflamingo.model.architecture import CrossAttentionSettings
from neuroflamingo.settings import Section

KINDS = ("pairs", "interleaved", "instructions", "text")
Kind = Literal["pairs", "interleaved", "instructions", "text"]
Part = Literal["resampler", "gated_blocks", "new_tokens", "embeddings", "attention", "language_model", "encoder"]


class EncoderSettings(Section):
    """The encoder by its name in the registry; without `weights` the published file is looked for."""

    name: str
    """As `neuroflamingo encoders list` gives it."""
    options: dict[str, Any] = Field(default={})
    """The card's, such as `slices`."""
    weights: str | None = None
    """A safetensors file, where it is not the published one in its usual place."""
    init: Literal["random"] | None = None
    """An untrained encoder, on purpose."""
    table: str | None = None
    """Parcels' coordinates or gradients, for encoders that need them."""
    tiny: bool = False
    """The encoder's toy size instead, untrained: the same code, for trials of a recipe."""


class LanguageModelSettings(Section):
    """The language model: a folder, or a name on a hub, which is only reached with --allow-download."""

    source: str | None = None
    """A folder, or `OWNER/NAME` on a hub; none: random weights."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    architecture: dict[str, Any] | None = None
    """Its config as transformers writes it (`model_type` and what differs from that family's defaults): what is built
    where there is no source, for `inspect` and `--dry-run`, and, shrunk, for the tiny twin. With a source, the two must
    agree."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer, where it is not the source's."""
    tokenizer_size: PositiveInt | None = None
    """How many tokens the tokenizer has, where the table of embeddings has more rows; for shapes without a source."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of what is frozen; what trains is in float32."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Of the frozen weights, by bitsandbytes; see docs/memory.md."""
    decoder_layers: str | None = None
    """Dotted name of the layers, where they cannot be found."""

    @model_validator(mode="after")
    def _something(self) -> LanguageModelSettings:
        if self.source is None and self.architecture is None:
            raise ValueError("give a source (a folder or a hub name), an architecture, or both")
        return self


class ModelSettings(Section):
    """What is joined: encoder, resampler, gated cross-attention, language model."""

    encoder: EncoderSettings | None = None
    """None: the scans are ready tokens."""
    token_width: PositiveInt | None = None
    """Without an encoder: the width of the ready tokens."""
    language_model: LanguageModelSettings
    resampler: dict[str, Any] = Field(default={})
    """Differences from OpenFlamingo's, see `ResamplerSettings`; `dim` is the encoder's width."""
    cross_attention: CrossAttentionSettings = CrossAttentionSettings()
    start: str | None = None
    """Weights to begin with: a folder that `save_pretrained` wrote, a checkpoint of another run, or a safetensors file
    in OpenFlamingo's or Multimodal-GPT's layout (`neuroflamingo models convert` makes one of a pickle)."""

    @model_validator(mode="after")
    def _one_width(self) -> ModelSettings:
        if (self.encoder is None) == (self.token_width is None):
            raise ValueError("give an encoder, or the token_width of ready tokens")
        return self


class LoraSettings(Section):
    """Low-rank branches by peft beside frozen matrices; the defaults are Multimodal-GPT's."""

    rank: PositiveInt = 16
    """Of the branches."""
    alpha: PositiveFloat = 16.0
    """The branches are multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Before the branches."""
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "to_q",
        "to_kv",
        "to_out",
        "ff.1",
        "ff.3",
    )
    """Ends of module names, or regular expressions (those with a character of theirs other than a dot) on whole names.
    Only modules of the language model and of the gated blocks are looked at."""
    resampler: bool = False
    """Look at the resampler's modules too."""
    encoder_blocks: NonNegativeInt = 0
    """Look at so many of the encoder's last blocks too."""


class TrainedSettings(Section):
    """What trains; all else is frozen."""

    parts: tuple[Part, ...] = ("resampler", "gated_blocks", "new_tokens")
    """`attention`: the attention matrices of the language model only, as PaliGemma is fine-tuned."""
    patterns: tuple[str, ...] = ()
    """Regular expressions on parameter names that train too; each must match something."""
    encoder_blocks: NonNegativeInt = 0
    """So many of the encoder's last blocks train too."""
    lora: LoraSettings | None = None
    """Low-rank branches beside matrices, by peft; `{}`: Multimodal-GPT's."""


class MixSettings(Section):
    """A number for each kind of data; kinds of which there are no samples do not count."""

    pairs: NonNegativeFloat = 1.0
    """Scans and their report."""
    interleaved: NonNegativeFloat = 1.0
    """Documents with scans in them."""
    instructions: NonNegativeFloat = 1.0
    """Talks about scans."""
    text: NonNegativeFloat = 1.0
    """Talks without scans."""


class DataSettings(Section):
    """What is read. Manifests are JSONL, see docs/data.md."""

    source: str = "."
    """The folder that paths below are relative to, or `hf://datasets/OWNER/NAME[@REVISION]`, which is only reached with
    --allow-download."""
    train: tuple[str, ...]
    """Manifests."""
    validation: tuple[str, ...] = ()
    """Manifests of other subjects."""
    tokens: str | None = None
    """A store of ready tokens that `neuroflamingo encode` made with this very encoder."""
    scans: str | None = None
    """A store of prepared scans that `neuroflamingo prepare` made for this encoder."""
    mix: MixSettings = MixSettings()
    """Shares of the draws."""
    loss: MixSettings = MixSettings()
    """Multipliers of the loss."""
    reduction: Literal["tokens", "kinds"] = "tokens"
    """`tokens`: every learnt token of a step counts the same; `kinds`: the mean of each kind, as OpenFlamingo's."""
    template: str = "plain"
    """How turns become text, see `neuroflamingo.data.templates`."""
    max_tokens: PositiveInt = 512
    """Of a sample."""
    max_scans: PositiveInt = 8
    """Of a sample."""
    too_long: Literal["cut", "drop"] = "cut"
    """What becomes of longer ones."""
    min_answer_words: NonNegativeInt = 0
    """Samples with shorter answers are dropped."""
    drop_duplicates: bool = True
    """Samples with the scans and the text of one before them are dropped."""
    pack: bool = False
    """Put several short samples into one row."""
    workers: NonNegativeInt = 0
    """Processes that read ahead, for each device."""


class AdamWSettings(Section):
    """AdamW as the training loop runs it, whatever is trained; all counts are in optimiser steps."""

    steps: PositiveInt
    """Length of the training."""
    batch: PositiveInt
    """Samples of one micro-step on all devices together: a run has the same numbers on one device and on eight."""
    accumulate: PositiveInt = 1
    """Micro-steps of one optimiser step."""
    lr: PositiveFloat
    """Learning rate after the warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Of the learning rate; linear and cosine fall to 0."""
    warmup: NonNegativeInt = 0
    """Steps in which the learning rate rises."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    eps: PositiveFloat = 1e-8
    """AdamW's."""
    weight_decay: NonNegativeFloat = 0.1
    """Of what decays."""
    clip_norm: PositiveFloat | None = 1.0
    """Limit of the norm of the whole gradient, once a step."""
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of a moving average of the weights, which is then what is validated and kept; 0: none."""


class OptimSettings(AdamWSettings):
    """The optimiser of a fused model."""

    batch: PositiveInt = 4
    lr: PositiveFloat = 1e-4
    decay: Literal["gated", "matrices"] = "matrices"
    """What decays: all matrices that train but embeddings and latents, or as upstream all weights of gated blocks."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each target that is spread over the vocabulary."""


class NumericsSettings(Section):
    """How the numbers are computed; changes nothing else."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the hardware computes in it, else fp32. fp16 scales the loss and needs a GPU."""
    deterministic: bool = False
    """Only algorithms of torch that give the same bits each time."""


class RunSettings(NumericsSettings):
    """How it runs; changes neither what is learnt nor (in float32) the numbers."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: copies of the model, or one that is sharded."""
    gradient_checkpointing: Literal["off", "on", "offload"] = "off"
    """Layers are computed again in the backward pass; `offload`: their inputs wait in the CPU's memory."""
    compile: bool = False
    """By torch.compile."""


class ValidationSettings(Section):
    """When and what is measured on held-out samples."""

    every: PositiveInt = 200
    """In optimiser steps; always after the last one too."""
    samples: PositiveInt | None = None
    """At most so many; None: all."""
    choose_by: str = "auto"
    """The figure whose best checkpoint is kept: `loss`, `full_finding_f1`, ...; auto: the latter where the data have
    findings, else the former."""
    patience: PositiveInt | None = None
    """Stop after so many validations without a better one."""
    write: NonNegativeInt = 64
    """So many reports are written and scored, where the data have findings."""
    max_new_tokens: PositiveInt = 256
    """Of a written report."""


class CheckpointSettings(Section):
    """When the state of the run is saved."""

    every: PositiveInt = 100
    """In optimiser steps."""
    keep: PositiveInt = 2
    """So many of the newest; the best one stays beside them."""


class LogSettings(Section):
    """What is said while it trains."""

    every: PositiveInt = 1
    """In optimiser steps."""
    trackers: tuple[str, ...] = ()
    """Of accelerate, such as `tensorboard`; log.jsonl is always written."""


class Recipe(Section):
    """A whole training."""

    name: str
    """Of the run: its folder is runs/NAME."""
    seed: NonNegativeInt = 0
    """Of new weights, the order of samples and dropout."""
    model: ModelSettings
    data: DataSettings
    trained: TrainedSettings = TrainedSettings()
    optim: OptimSettings
    media_placement: Literal["rule", "coin"] = "rule"
    """`coin`: text looks at the previous or at the next scan, a coin for each step, as OpenFlamingo v1 and
    Multimodal-GPT trained; `rule`: as `model.cross_attention` says."""
    run: RunSettings = RunSettings()
    validation: ValidationSettings = ValidationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
