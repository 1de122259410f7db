"""Hostile plug-ins as installed packages: modules and `dist-info` folders that are written into a folder."""

from __future__ import annotations

from pathlib import Path

PLUG_IN = """
{before}
import torch
from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card

CARD = precomputed_card(width=4, tokens=3).model_copy(
    update={{"name": "{name}", "implementation": "{module}:Hostile"}}
)


class Hostile(BrainEncoder):
    def forward(self, x):
        {forward}
"""

# name -> what stands before the card, what forward does
HOSTILE = {
    "h-raises": ("raise RuntimeError('no licence key')", "return EncoderOutput(x)"),
    "h-lacks": ("import a_library_that_is_not_here", "return EncoderOutput(x)"),
    "h-exits": ("import sys; sys.exit(3)", "return EncoderOutput(x)"),
    "h-prints": ("print('welcome')", "return EncoderOutput(x)"),
    "h-hangs-at-import": ("import time; time.sleep(600)", "return EncoderOutput(x)"),
    "h-hangs": ("import time", "time.sleep(600)"),
    "h-dies": ("import os", "os._exit(9)"),
    "h-nan": ("", "return EncoderOutput(x * float('nan'))"),
    "h-shape": ("", "return EncoderOutput(x[:, :, :2])"),
    "h-dtype": ("", "return EncoderOutput(x.double())"),
    "h-good": ("", "return EncoderOutput(x)"),
}


def install(folder: Path, *names: str) -> None:
    """Write these plug-ins, one package each."""
    for name in names:
        before, forward = HOSTILE[name]
        module = name.replace("-", "_")
        text = PLUG_IN.format(before=before, name=name, module=module, forward=forward)
        (folder / f"{module}.py").write_text(text)
        _distribution(folder, name, f"{name} = {module}:CARD")


def install_twice(folder: Path, name: str) -> None:
    """Two packages that claim one name."""
    for owner in ("first", "second"):
        _distribution(folder, f"{name}-{owner}", f"{name} = {owner}:CARD")


def _distribution(folder: Path, name: str, point: str) -> None:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[neuroflamingo.encoders]\n{point}\n")
