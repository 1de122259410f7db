"""Small trainings for tests: a tiny fused model by rule, token files that the texts depend on, a loop over both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from neuroflamingo.recipe.schema import Recipe
from tests.tiny import TOKENS, WIDTH, tiny_language_model, tiny_model, tiny_tokenizer


def trained_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that train; a shared one once."""
    return tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def write_samples(
    folder: Path, count: int = 12, first: int = 0, name: str = "train.jsonl", findings: bool = False
) -> Path:
    """Pairs of a token file and a text of words that its mean tells, some talks without scans among them.

    With `findings` the pairs say that nothing is found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        word = int(rng.integers(2))
        tokens = rng.normal(size=(TOKENS, WIDTH)).astype(np.float32) + (1.0 if word else -1.0)
        np.save(folder / f"{number}.npy", tokens)
        text = " ".join([f"w{10 + word}", *(f"w{20 + word}" for _ in range(int(rng.integers(1, 4)))), f"w{30 + word}"])
        rows.append(
            {"id": f"s{number}", "kind": "pairs", "subject": f"p{number}", "scans": [f"{number}.npy"], "text": text}
        )
        if number % 3 == 0:
            turns = [{"role": "user", "text": "w1 w2"}, {"role": "assistant", "text": "w3 w4 w5"}]
            rows.append({"id": f"t{number}", "kind": "text", "turns": turns})
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def small_recipe(folder: Path, **sections: dict[str, Any]) -> Recipe:
    """A recipe over `write_samples`; sections are merged into it."""
    values: dict[str, Any] = {
        "name": "small",
        "seed": 3,
        "model": {"token_width": WIDTH, "language_model": {"architecture": {"model_type": "llama"}}},
        "data": {"source": str(folder), "train": ["train.jsonl"], "max_tokens": 24},
        "optim": {"steps": 6, "batch": 4, "accumulate": 2, "lr": 0.01, "warmup": 2, "weight_decay": 0.01},
        "run": {"precision": "fp32", "deterministic": True},
        "checkpoint": {"every": 2},
    }
    for name, section in sections.items():
        values[name] = values[name] | section if isinstance(values.get(name), dict) else section
    return Recipe.model_validate(values)


def small_loop(recipe: Recipe, folder: Path, family: str = "llama") -> Any:
    """A loop whose model is the tiny one of a family; everything else is as `train` makes it."""
    from neuroflamingo.training.parallel import accelerate_for
    from neuroflamingo.training.run import loop_for

    torch.manual_seed(0)
    model, processor = tiny_model(family)
    accelerator = accelerate_for(recipe, folder)
    return loop_for(recipe, model, processor, folder, accelerator, quiet=True)


def write_language_model(folder: Path, family: str = "llama") -> Path:
    """The tiny language model of a family with its tokenizer, saved."""
    tiny_language_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def whole_recipe(folder: Path, **sections: dict[str, Any]) -> Recipe:
    """A recipe that `train` runs by itself, on `write_samples` and `write_language_model`."""
    model = {
        "token_width": WIDTH,
        "language_model": {"source": str(folder / "lm")},
        "resampler": {"depth": 1, "num_latents": 4, "heads": 2, "dim_head": 8},
        "cross_attention": {"heads": 2, "dim_head": 8, "gate": 0.5},
    }
    data = {"source": str(folder), "train": ["train.jsonl"], "validation": ["held_out.jsonl"], "max_tokens": 24}
    return small_recipe(folder, **({"model": model, "data": data, "validation": {"every": 3}} | sections))
