"""What the benchmark of training reads: language models, scans and their tokens, manifests; and recipes over them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_generation as bench
import numpy as np
import torch
from preparing_data import QUICK, folder

BATCH = 4
SMALL: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 4, "intermediate_size": 512, "num_attention_heads": 4}
"""The sizes of the embedded model tiny-t1w."""
SMALL_RESAMPLER = {"depth": 2, "num_latents": 32}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    scans: int = 8
    side: int = 96
    width: int = 768
    depth: int = 12
    heads: int = 12
    report: int = 48
    vocabulary: int = 150_000
    items: int = 64
    steps: int = 10


def sizes() -> Sizes:
    """Those of the table, or as few as a test of the script needs."""
    return Sizes(4, 32, 48, 1, 4, 8, 9_000, 8, 4) if os.environ.get(QUICK) else Sizes()


def encoder() -> dict[str, Any]:
    """A 3D ViT-B with random weights: 96^3 in cubes of 16^3, 216 tokens of width 768, 12 blocks (BrainIAC's sizes)."""
    size = sizes()
    shape = dict.fromkeys("xyz", size.side) | {"patch": 16}
    network = {"width": size.width, "depth": size.depth, "heads": size.heads}
    return {"name": "vit3d", "options": shape | network, "init": "random"}


def make(place: Path) -> None:
    """Write all files: stores are made as `neuroflamingo prepare` and `neuroflamingo encode` make them."""
    from neuroflamingo.encoding.encoder_choice import EncoderChoice
    from neuroflamingo.encoding.token_store import encode_into_store
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.stores.build import prepare_into_store

    size, rng = sizes(), np.random.default_rng(0)
    for name in ("opt", "small"):
        torch.manual_seed(0)
        _language_model(name).save_pretrained(place / name)
        bench.tokenizer_of().save_pretrained(place / name)
    (place / "scans").mkdir()
    names = [f"scans/{number}.npy" for number in range(size.scans)]
    for name in names:
        np.save(place / name, rng.standard_normal((1, size.side, size.side, size.side), np.float32))
    _manifest(place / "scans.jsonl", names, size.report)
    chosen = encoder()
    choice = EncoderChoice(chosen["name"], chosen["options"], init=chosen["init"])
    prepare_into_store(place / "scans.jsonl", place / "prepared", choice.card, Preparation())
    encode_into_store(place / "prepared", place / "tokens", choice, device="cpu")
    _ready_tokens(place)


def _language_model(name: str) -> Any:
    if name == "opt":
        return bench.language_model("opt")
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=bench.VOCAB, tie_word_embeddings=True))


def _ready_tokens(place: Path) -> None:
    """Tokens of a model without an encoder, one item a sample, of the benchmark's shape."""
    from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
    from neuroflamingo_encoders.tokens.format import ScanTokens
    from neuroflamingo_encoders.tokens.store import TokenStore

    rng, card = np.random.default_rng(1), precomputed_card(width=bench.WIDTH)
    store = TokenStore.create(place / "ready", card=card, weights="0" * 64, origin={})
    keys = [f"{number:064x}" for number in range(sizes().items)]
    for key in keys:
        store.put(key, [ScanTokens(rng.standard_normal((bench.TOKENS, bench.WIDTH), np.float32))], {"warnings": []})
    _manifest(place / "ready.jsonl", [f"store:{key}" for key in keys], 250)


def _manifest(file: Path, scans: list[str], words: int) -> None:
    rng = np.random.default_rng(2)
    rows = [
        {
            "id": f"s{number}",
            "kind": "pairs",
            "subject": f"p{number}",
            "scans": [scan],
            "text": " ".join(f"w{word}" for word in rng.integers(4, bench.VOCAB - 1, words)),
        }
        for number, scan in enumerate(scans)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe(name: str, model: dict[str, Any], data: dict[str, Any], steps: int) -> Any:
    """A recipe at batch 4 in float32, as a user would write it."""
    from neuroflamingo.recipe.schema import Recipe

    return Recipe.model_validate(
        {
            "name": name,
            "model": model,
            "data": {"source": str(folder()), "max_tokens": 256, **data},
            "optim": {"steps": steps, "batch": BATCH, "schedule": "constant", "lr": 1e-5},
            "run": {"precision": "fp32"},
            "checkpoint": {"every": 10_000},
        }
    )


def of_scans(language_model: str, source: str) -> Any:
    """Training on the scans of the ViT-B: read as `prepared` volumes, or as `tokens`."""
    resampler = SMALL_RESAMPLER if language_model == "small" else {}
    model = {
        "encoder": encoder(),
        "language_model": {"source": str(folder() / language_model)},
        "resampler": resampler,
    }
    key = "scans" if source == "prepared" else "tokens"
    return recipe("epoch", model, {"train": ["scans.jsonl"], key: source}, 10_000)


def of_tokens(workers: int) -> Any:
    """Training of the benchmark's model on ready tokens from a local store."""
    model = {"token_width": bench.WIDTH, "language_model": {"source": str(folder() / "opt")}}
    return recipe("wait", model, {"train": ["ready.jsonl"], "tokens": "ready", "workers": workers}, sizes().steps)
