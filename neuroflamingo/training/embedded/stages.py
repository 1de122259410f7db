"""`train_stages`: paint, encoder, language model, bridge, save; run again, it goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from neuroflamingo.device import pick_device
from neuroflamingo.evaluation.readout import Thresholds
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.processor import NeuroFlamingoProcessor
from neuroflamingo.training.embedded.encoder_stage import train_encoder
from neuroflamingo.training.embedded.fusion_stage import assemble_bridge, train_bridge
from neuroflamingo.training.embedded.language_model_stage import train_language_model
from neuroflamingo.training.embedded.painted_pool import CasePool, paint_in_background
from neuroflamingo.training.embedded.stage_settings import TrainSettings, load_settings
from neuroflamingo.training.embedded.token_cache import TokenCache
from neuroflamingo_encoders.contract import weights_digest
from neuroflamingo_preprocessing.errors import ConfigError, ModelError
from neuroflamingo_preprocessing.files import write_text_atomic


def train_stages(
    config: str | Path,
    overrides: list[str] | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> Path:
    """Run all stages of a recipe; gives the folder of the finished model.

    Args:
        config: YAML recipe, see `TrainSettings`.
        overrides: `section.key=value` items.
        folder: where everything goes; `runs/NAME` by default.
        resume: go on with what is there; False begins anew.

    Raises:
        ConfigError: the recipe is faulty, or the folder belongs to another one.
    """
    settings, device = load_settings(config, overrides), pick_device("auto")
    root = Path(folder) if folder else Path("runs") / settings.name
    if not resume and root.exists():
        shutil.rmtree(root)
    _own(root, settings)

    def pool(purpose: str, crowded: float = 0.0) -> CasePool:
        return CasePool(root / "pools" / purpose, *getattr(settings.paint, purpose), crowded=crowded)

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    validation, encoder_pool, bridge_pool = (
        pool("validation"),
        pool("encoder", settings.encoder.crowded),
        pool("bridge"),
    )
    paint_in_background(validation, encoder_pool, bridge_pool)
    language_model, tokenizer, said = train_language_model(
        root / "language", settings.language, settings.seed, device, quiet
    )
    say(f"language model: {_line(said)}")
    encoder, thresholds, read = train_encoder(
        root / "encoder", settings.encoder, encoder_pool, validation, settings.seed, device, quiet
    )
    say(f"encoder readout on validation cases: {_line(read)}")
    encoder.freeze()
    cache = TokenCache(root / "tokens" / "bridge", bridge_pool, encoder, quiet)
    held_out = TokenCache(root / "tokens" / "validation", validation, encoder, quiet)
    torch.manual_seed(settings.seed)
    model, processor = assemble_bridge(encoder, language_model, tokenizer, settings.bridge)
    model.to(device)  # type: ignore[arg-type]
    _check_encoder(model, cache)
    wrote = train_bridge(root / "bridge", settings.bridge, model, tokenizer, cache, held_out, settings.seed, quiet)
    say(f"reports on validation cases: {_line(wrote)}")
    return save_model(root / "model", model, processor, settings, thresholds, {"encoder": read, "bridge": wrote})


def _check_encoder(model: NeuroFlamingo, cache: TokenCache) -> None:
    """The model must hold the very encoder whose tokens are cached, or its reports are about nothing."""
    if weights_digest(model.encoder) != cache.weights:  # type: ignore[arg-type]
        raise ModelError("the assembled model's encoder is not the one that was trained", exit_code=70)


def save_model(
    folder: Path,
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    settings: TrainSettings,
    thresholds: Thresholds,
    validation: dict[str, Any],
) -> Path:
    """Write the model in half precision (it is read in float32) with what it was trained by."""
    model.config.training = {
        "recipe": json.loads(settings.model_dump_json()),
        "thresholds": asdict(thresholds),
        "validation": validation,
        "encoder_sha256": weights_digest(model.encoder),  # type: ignore[arg-type]
    }
    half = model.cpu().to(torch.float16)  # pyright: ignore[reportArgumentType]
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
    model.to(torch.float32)  # pyright: ignore[reportArgumentType]
    return folder


def _own(root: Path, settings: TrainSettings) -> None:
    """Save the resolved recipe with the run, or refuse to mix two recipes in one folder."""
    root.mkdir(parents=True, exist_ok=True)
    path, text = root / "recipe.json", settings.model_dump_json(indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        raise ConfigError(
            f"{root} holds a run of another recipe",
            expected="the settings in its recipe.json",
            hint="use --restart, or give another name in the recipe",
        )
    write_text_atomic(path, text, overwrite=True)


def _line(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
