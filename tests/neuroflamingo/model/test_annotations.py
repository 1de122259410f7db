"""The shapes in the annotations are the shapes that run: jaxtyping and beartype check every call of the core."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CALLS = """
import jaxtyping
CORE = ["resampler", "gated_attention", "media", "media_cache", "scan_inputs", "fusion"]
with jaxtyping.install_import_hook([f"neuroflamingo.model.{name}" for name in CORE], "beartype.beartype"):
    from tests.tiny import tiny_batch, tiny_model
import torch
from neuroflamingo.model.gated_attention import GatedCrossAttentionBlock
for immediate in (True, False):
    model, processor = tiny_model("llama", only_attend_immediate_media=immediate)
    batch = tiny_batch(processor, padding_side="right")
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    model.eval()
    batch = tiny_batch(processor)
    model.generate(**batch, max_new_tokens=3, num_beams=2)
    model.attention_rollout(**batch)
try:
    GatedCrossAttentionBlock(dim=8, dim_visual=8)(torch.zeros(2, 3, 8), torch.zeros(2, 8))
except jaxtyping.TypeCheckError:
    print("checked")
"""


@pytest.mark.slow
def test_annotated_shapes_hold_in_training_generation_and_looking():
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", CALLS], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split()[-1] == "checked"
