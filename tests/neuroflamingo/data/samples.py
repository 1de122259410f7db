"""Samples, tokens and tokenizers for the tests of training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from neuroflamingo.data.manifest import Sample, read_manifest
from neuroflamingo.model.processor import NeuroFlamingoProcessor, add_special_tokens
from tests.tiny import TOKENS, WIDTH, tiny_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|stop|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def sample(kind: str, *scans: str, **said: Any) -> Sample:
    """One sample; `talk` is a list of what user and assistant say in turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "text": text} for n, text in enumerate(said.pop("talk", ()))]
    return Sample.model_validate({"id": kind, "kind": kind, "scans": scans, "turns": turns} | said)


def tiny_processor() -> NeuroFlamingoProcessor:
    """Words `w0` to `w59`; 60 ends a text, 61 a chunk, 62 is `<image>` and 63 padding."""
    tokenizer = tiny_tokenizer(60)
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    add_special_tokens(tokenizer)
    return NeuroFlamingoProcessor(tokenizer)


def written(folder: Path, pairs: int = 6) -> list[Sample]:
    """Scans (ready tokens by rule) and samples of all four kinds that show them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(pairs):
        tokens = np.random.default_rng(number).normal(size=(TOKENS, WIDTH)).astype(np.float32)
        np.save(folder / f"scan{number}.npy", tokens)
        text = " ".join(["w1"] * (number + 1) + [f"w{number + 2}"])
        rows.append({"id": f"p{number}", "kind": "pairs", "subject": f"s{number}", "text": text})
        rows[-1]["scans"] = [f"scan{number}.npy"]
    two = ["scan0.npy", "scan1.npy"]
    ask, tell = {"role": "user", "text": "w3 w4"}, {"role": "assistant", "text": "w5 w6 w7"}
    rows.append({"id": "t", "kind": "text", "turns": [ask, tell]})
    rows.append({"id": "i", "kind": "instructions", "scans": two, "subject": "s0", "weight": 2.0})
    rows[-1]["turns"] = [ask | {"text": "<image> <image> w3"}, tell, ask, tell | {"text": "w9"}]
    rows.append({"id": "n", "kind": "interleaved", "scans": two, "text": "w1 <image> w3 <image> w4"})
    file = folder / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return read_manifest([file])
