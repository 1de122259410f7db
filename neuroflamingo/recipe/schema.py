"""Schema of training recipes: model, data, trainable parts and optimisation. Importing it loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from neuroflamingo.model.architecture import CrossAttentionSettings
from neuroflamingo.model.prompt_forms import TrainedPrompts
from neuroflamingo.settings import PlainName, Section

KINDS = ("pairs", "interleaved", "instructions", "text")
Kind = Literal["pairs", "interleaved", "instructions", "text"]
Part = Literal["resampler", "gated_blocks", "new_tokens", "embeddings", "attention", "language_model", "encoder"]


class EncoderSettings(Section):
    """The encoder, by its name in the registry; without `weights`, the installed published weights are used."""

    name: str
    """Encoder name, see `neuroflamingo encoders list`."""
    options: dict[str, Any] = Field(default={})
    """Options of the encoder's card, such as `slices`."""
    weights: str | None = None
    """Weights file (safetensors), if not the published weights in the default folder."""
    init: Literal["random"] | None = None
    """`random`: deliberately use an untrained encoder."""
    table: str | None = None
    """Parcel coordinates or gradients, for encoders that need them."""
    tiny: bool = False
    """Use a toy-sized, untrained instance of the encoder, to try out a recipe."""


class LanguageModelSettings(Section):
    """The language model: a local folder or a name on the Hugging Face Hub, downloaded only with --allow-download."""

    source: str | None = None
    """A folder, or `OWNER/NAME` on the hub; null: random weights."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    architecture: dict[str, Any] | None = None
    """Model config in transformers' format (`model_type` and all differences from that family's defaults). It is used
    without a source, for `inspect` and `--dry-run`, and in reduced size for the tiny twin. With a source, the two must
    agree."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer, or name of an embedded model, if different from the source."""
    tokenizer_size: PositiveInt | None = None
    """Number of tokens of the tokenizer, if the embedding table has more rows; used without a source."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of frozen weights; trainable weights are float32."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Quantisation of frozen weights, by bitsandbytes; see docs/memory.md."""
    decoder_layers: str | None = None
    """Dotted name of the list of decoder layers, if it cannot be found automatically."""

    @model_validator(mode="after")
    def _something(self) -> LanguageModelSettings:
        if self.source is None and self.architecture is None:
            raise ValueError("give a source (a folder or a hub name), an architecture, or both")
        return self


class ModelSettings(Section):
    """Parts of the model: encoder, resampler, gated cross-attention, language model."""

    encoder: EncoderSettings | None = None
    """The encoder; null: the scans are precomputed tokens."""
    token_width: PositiveInt | None = None
    """Width of precomputed tokens, without an encoder."""
    language_model: LanguageModelSettings
    resampler: dict[str, Any] = Field(default={})
    """Resampler settings that differ from OpenFlamingo's, see `ResamplerSettings`; `dim` is the encoder's width."""
    cross_attention: CrossAttentionSettings = CrossAttentionSettings()
    prompts: TrainedPrompts | None = None
    """Prompt forms that the finished model is trained for: `report` refuses others; null: not known, nothing is
    refused."""
    start: str | None = None
    """Initial weights: the name of an embedded model, a folder written by `save_pretrained`, a checkpoint of another
    run, or a safetensors file in OpenFlamingo's or Multimodal-GPT's layout (`neuroflamingo models convert` converts
    pickles)."""

    @model_validator(mode="after")
    def _one_width(self) -> ModelSettings:
        if (self.encoder is None) == (self.token_width is None):
            raise ValueError("give an encoder, or the token_width of precomputed tokens")
        return self


class LoraSettings(Section):
    """LoRA adapters, by peft; the defaults are Multimodal-GPT's."""

    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveFloat = 16.0
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapters' input."""
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
    """Adapted modules, by the end of their names or by regular expressions on whole names (any entry with a special
    character other than a dot is a regular expression). Applies to the language model and the gated blocks."""
    resampler: bool = False
    """Also adapt matching modules of the resampler."""
    encoder_blocks: NonNegativeInt = 0
    """Also adapt matching modules in this many of the encoder's last blocks."""


class TrainedSettings(Section):
    """Trainable parts; everything else is frozen."""

    parts: tuple[Part, ...] = ("resampler", "gated_blocks", "new_tokens")
    """Trainable parts. `attention`: the language model's attention matrices only, as in fine-tuning PaliGemma."""
    patterns: tuple[str, ...] = ()
    """Regular expressions for additional trainable parameter names; each must match at least one."""
    encoder_blocks: NonNegativeInt = 0
    """Number of the encoder's last blocks that train too."""
    lora: LoraSettings | None = None
    """LoRA adapters; `{}`: Multimodal-GPT's settings."""


class MixSettings(Section):
    """A weight for each kind of sample; kinds without samples are ignored."""

    pairs: NonNegativeFloat = 1.0
    """Scans with their report."""
    interleaved: NonNegativeFloat = 1.0
    """Documents with interleaved scans."""
    instructions: NonNegativeFloat = 1.0
    """Conversations about scans."""
    text: NonNegativeFloat = 1.0
    """Conversations without scans."""


class DataSettings(Section):
    """Training and validation data. Manifests are JSONL, see docs/data.md."""

    source: str = "."
    """Folder that the paths below are relative to, or `hf://datasets/OWNER/NAME[@REVISION]`, downloaded only with
    --allow-download."""
    train: tuple[str, ...]
    """Training manifests."""
    validation: tuple[str, ...] = ()
    """Validation manifests, with other subjects."""
    tokens: str | None = None
    """Token store that `neuroflamingo encode` made with exactly this encoder."""
    scans: str | None = None
    """Scan store that `neuroflamingo prepare` made for this encoder."""
    mix: MixSettings = MixSettings()
    """Sampling weights."""
    loss: MixSettings = MixSettings()
    """Loss weights."""
    reduction: Literal["tokens", "kinds"] = "tokens"
    """`tokens`: every learnt token of a step counts equally; `kinds`: mean per kind, as in OpenFlamingo."""
    template: str = "plain"
    """Chat template, see `neuroflamingo.data.templates`."""
    max_tokens: PositiveInt = 512
    """Maximum number of tokens per sample."""
    max_scans: PositiveInt = 8
    """Maximum number of scans per sample."""
    too_long: Literal["cut", "drop"] = "cut"
    """Truncate or drop longer samples."""
    min_answer_words: NonNegativeInt = 0
    """Drop samples with shorter answers."""
    drop_duplicates: bool = True
    """Drop samples with the same scans and text as an earlier one."""
    pack: bool = False
    """Pack several short samples into one row."""
    workers: NonNegativeInt = 0
    """Number of data loading processes per device."""


class AdamWSettings(Section):
    """AdamW in the training loop, for any task; all counts are in optimiser steps."""

    steps: PositiveInt
    """Number of optimiser steps."""
    batch: PositiveInt
    """Samples per micro-step over all devices together, so that results are the same on one device and on eight."""
    accumulate: PositiveInt = 1
    """Micro-steps per optimiser step (gradient accumulation)."""
    lr: PositiveFloat
    """Learning rate after the warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate schedule; linear and cosine decay to 0."""
    warmup: NonNegativeInt = 0
    """Warm-up steps."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.1
    """Weight decay, for the parameters that `decay` selects."""
    clip_norm: PositiveFloat | None = 1.0
    """Maximum norm of the whole gradient, applied once per optimiser step; null: no clipping."""
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of an exponential moving average of the weights, which is then validated and saved; 0: none."""


class OptimSettings(AdamWSettings):
    """The optimiser of a fused model."""

    batch: PositiveInt = 4
    lr: PositiveFloat = 1e-4
    decay: Literal["gated", "matrices"] = "matrices"
    """Parameters with weight decay: all trainable matrices except embeddings and latents, or all weights of the gated
    blocks, as upstream."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each target that is spread evenly over the vocabulary."""


class NumericsSettings(Section):
    """Numerical precision and determinism."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 if the hardware supports it, else fp32. fp16 uses loss scaling and needs a GPU."""
    deterministic: bool = False
    """Use only deterministic algorithms of torch."""


class RunSettings(NumericsSettings):
    """Execution; changes neither what is learnt nor (in float32) the results."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: a copy of the model on each, or a sharded model."""
    gradient_checkpointing: Literal["off", "on", "offload"] = "off"
    """Recompute layers in the backward pass; `offload`: keep their inputs in CPU memory."""
    compile: bool = False
    """Use torch.compile."""


class ValidationSettings(Section):
    """Validation on held-out samples."""

    every: PositiveInt = 200
    """Interval in optimiser steps; the last step is always validated."""
    samples: PositiveInt | None = None
    """Maximum number of samples; null: all."""
    choose_by: str = "auto"
    """Metric for the best checkpoint: `loss`, `full_finding_f1`, ...; auto: `full_finding_f1` if the data have
    findings, else `loss`."""
    patience: PositiveInt | None = None
    """Stop after this many validations without improvement; null: never."""
    write: NonNegativeInt = 64
    """Number of reports to generate and score, if the data have findings."""
    max_new_tokens: PositiveInt = 256
    """Maximum length of a generated report, in tokens."""


class CheckpointSettings(Section):
    """Checkpoints of the training state."""

    every: PositiveInt = 100
    """Interval in optimiser steps."""
    keep: PositiveInt = 2
    """Number of latest checkpoints to keep, in addition to the best one."""


class LogSettings(Section):
    """Logging of metrics."""

    every: PositiveInt = 1
    """Interval in optimiser steps."""
    trackers: tuple[str, ...] = ()
    """Trackers of accelerate, such as `tensorboard`; log.jsonl is always written."""


class Recipe(Section):
    """Recipe of a training run."""

    name: PlainName
    """Name of the run; its folder is runs/NAME."""
    seed: NonNegativeInt = 0
    """Random seed for new weights, sample order and dropout."""
    model: ModelSettings
    data: DataSettings
    trained: TrainedSettings = TrainedSettings()
    optim: OptimSettings
    media_placement: Literal["rule", "coin"] = "rule"
    """`coin`: at each step, text attends at random to the previous or to the next scan, as in the training of
    OpenFlamingo v1 and Multimodal-GPT; `rule`: as set in `model.cross_attention`."""
    run: RunSettings = RunSettings()
    validation: ValidationSettings = ValidationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
