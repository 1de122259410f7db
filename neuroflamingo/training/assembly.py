"""`build`: build a model, ready for the optimiser, from a recipe."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from neuroflamingo.encoding.encoder_choice import EncoderChoice
from neuroflamingo.model.architecture import ResamplerSettings
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.settings import check_settings
from neuroflamingo.training.initial_weights import start_files, start_from
from neuroflamingo.training.language_models import language_model
from neuroflamingo.training.trainable import add_lora, freeze
from neuroflamingo_encoders.build import build_encoder

if TYPE_CHECKING:
    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.recipe.schema import EncoderSettings, ModelSettings, Recipe
    from neuroflamingo.training.lacking import Lacking
    from neuroflamingo_encoders.contract import BrainEncoder

_HALF = (torch.bfloat16, torch.float16)


def build(
    recipe: Recipe,
    *,
    device: str | torch.device = "cpu",
    meta: bool = False,
    allow_download: bool = False,
    lacking: Lacking | None = None,
) -> tuple[NeuroFlamingo, NeuroFlamingoProcessor]:
    """Build the model of a recipe: join its parts, load initial weights, add LoRA adapters, freeze the rest.

    Trainable parameters are float32 whatever the language model's dtype, so that small steps are not lost: run such a
    model under autocast. All random weights depend on the recipe's seed; the caller's random state is not changed.

    Args:
        recipe: its `model`, `trained` and `seed` are used.
        device: device of the model.
        meta: build on torch's meta device (a model of any size in seconds): no weights are read, nothing is
            downloaded, and `device` is ignored.
        allow_download: whether a missing language model may be downloaded from a hub.
        lacking: with `meta`, everything is checked that a training would check (the encoder is read, of other weights
            the names and shapes), and notes what is missing or does not fit.

    Returns:
        The model, in eval mode (`model.train()` leaves frozen parts there), and its processor.

    Raises:
        ConfigError: parts that do not fit together, or patterns that match nothing (exit 78).
        ModelError: weights that are not here (exit 69) or do not fit (65).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        how: dict[str, Any] = {"meta": meta, "allow_download": allow_download, "device": device, "lacking": lacking}
        model, processor = join(recipe.model, seed=recipe.seed, **how)
    if recipe.model.start is not None and not meta:
        start_from(model, recipe.model.start)
    elif recipe.model.start is not None and lacking is not None:
        with lacking.noted():  # without the real tokenizer the embeddings may have another number of rows
            if lacking.tokenizer:
                start_from(model, recipe.model.start, outline=True)
            else:
                start_files(recipe.model.start)
    if recipe.trained.lora is not None:
        add_lora(model, recipe.trained.lora, seed=recipe.seed)
    freeze(model, recipe.trained)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in _HALF:
            parameter.data = parameter.data.float()
    if not meta:
        model = model.to(device)  # pyright: ignore[reportArgumentType]
    return model.eval(), processor


def join(
    settings: ModelSettings,
    *,
    seed: int = 0,
    meta: bool = False,
    allow_download: bool = False,
    device: str | torch.device = "cpu",
    lacking: Lacking | None = None,
) -> tuple[NeuroFlamingo, NeuroFlamingoProcessor]:
    """Join encoder, resampler and language model in one model with `NeuroFlamingo.assemble`.

    Raises:
        ConfigError, ModelError: see `build`.
    """
    encoder = None
    if settings.encoder is not None:
        encoder = recipe_encoder(settings.encoder, seed=seed, meta=meta, lacking=lacking)
    how: dict[str, Any] = {"meta": meta, "allow_download": allow_download, "device": str(device), "lacking": lacking}
    text, tokenizer = language_model(settings.language_model, **how)
    width = settings.token_width if encoder is None else encoder.card.output.width
    resampler = check_settings(ResamplerSettings, {"dim": width, **settings.resampler}, "model.resampler").model_dump()
    looking = settings.cross_attention.model_dump()
    rule = looking.pop("media_rule")
    with torch.device("meta") if meta else nullcontext():
        model, processor = NeuroFlamingo.assemble(
            encoder,
            text,
            tokenizer,
            cross_attn_every_n_layers=looking.pop("every"),
            resampler=resampler,
            decoder_layers=settings.language_model.decoder_layers,
            **looking,
        )
    model.config.cross_attention["media_rule"] = rule
    processor.prompts = settings.prompts
    model.config.prompts = None if settings.prompts is None else settings.prompts.model_dump(mode="json")
    return model, processor


def recipe_encoder(
    settings: EncoderSettings, *, seed: int = 0, meta: bool = False, lacking: Lacking | None = None
) -> BrainEncoder:
    """Build the encoder of a recipe, frozen.

    Args:
        settings: see `EncoderSettings`.
        seed: of random weights.
        meta: build it without memory, if `lacking` is not given or its weights cannot be read.
        lacking: notes why they cannot.

    Raises:
        ModelError: unknown encoder; its weights are missing (exit 69) or do not fit (65).
    """
    options = {"tiny": settings.tiny, **settings.options}
    if meta:
        if lacking is not None:
            with lacking.noted():
                return recipe_encoder(settings, seed=seed)
        return _outlined(settings.name, options)
    if settings.tiny:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_encoder(settings.name, **options)
    chosen = (settings.name, settings.options, settings.weights, settings.init, seed, settings.table)
    return EncoderChoice(*chosen, by_recipe=True).load()[0]


def _outlined(name: str, options: dict[str, Any]) -> BrainEncoder:
    try:
        with torch.device("meta"):
            return build_encoder(name, **options)
    except RuntimeError as error:  # monai's Swin reads a number of a tensor while it is built
        if "meta tensor" not in str(error):
            raise
        return build_encoder(name, **options).to("meta")
