"""What one forward of each encoder costs at full size: seconds and peak memory, each encoder in a process of its own.

Weights and input are random. On a GPU the same table in bfloat16 (or another type):

    python tests/benchmarks/encoder_costs.py --write docs/encoders.md
    python tests/benchmarks/encoder_costs.py --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_generation import _status_kb, write_between_marks

FREE_SIZES = {"token": 512, "time": 200}
"""Of axes that a card leaves open."""
MOST_GFLOP_ON_CPU = 10_000
PARTS = {"open-clip": "needs the extra `clip`", "precomputed": "reads ready tokens"}
MARK = "encoder-costs"


def measure(name: str, device: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """One forward, a batch of one: the quickest of some rounds after a warm-up, and memory above that of PyTorch."""
    from neuroflamingo_encoders.build import build_encoder

    torch.manual_seed(0)
    before = _status_kb("VmRSS")
    encoder: Any = build_encoder(name)
    if hasattr(encoder, "set_coordinates"):
        encoder.set_coordinates(torch.randn(424, 3) * 40)
    if hasattr(encoder, "set_gradient"):
        encoder.set_gradient(torch.rand(encoder.gradient_shape))
    sizes = [axis.size or FREE_SIZES[axis.name] for axis in encoder.card.scan.axes]
    x = encoder.example((1, 1, *sizes), torch.Generator().manual_seed(0)).to(device)
    encoder = encoder.to(device, dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            began = time.perf_counter()
            tokens = encoder(x).tokens
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    peak = (_status_kb("VmHWM") - before) / 2**10 if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    shape = f"{tokens.shape[2]:,} x {tokens.shape[3]}"
    return {"name": name, "input": " x ".join(map(str, sizes)), "tokens": shape, "s": min(seconds[1:]), "mb": peak}


def row_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measured in a process of its own, or why it is not."""
    from neuroflamingo_encoders.registry import encoder_card

    gflop = encoder_card(name).cost.gflop or 0
    why = PARTS.get(name)
    if options.device == "cpu" and gflop > MOST_GFLOP_ON_CPU:
        why = f"{gflop:,.0f} GFLOP: too many for a CPU"
    if why:
        return {"name": name, "why": why}
    command = [sys.executable, __file__, "--only", name, "--device", options.device, "--dtype", options.dtype]
    command += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| encoder | input | tokens x width | s | peak memory, MB |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        if "why" in row:
            lines.append(f"| `{row['name']}` | not measured: {row['why']} | | | |")
        else:
            lines.append(f"| `{row['name']}` | {row['input']} | {row['tokens']} | {row['s']:.2f} | {row['mb']:,.0f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure all encoders and print the table."""
    from neuroflamingo_encoders.registry import BUILT_IN

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="pages to put it in, between their marks")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.only:
        print(json.dumps(measure(options.only, options.device, getattr(torch, options.dtype), options.rounds)))
        return 0
    rows = []
    for name in options.names or sorted(BUILT_IN):
        rows.append(row_of(name, options))
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    where = f"{options.threads} threads" if options.device == "cpu" else torch.cuda.get_device_name()
    kind = (
        f"{options.dtype} on {options.device} ({where}); torch {torch.__version__}, Python {platform.python_version()}"
    )
    text = f"{table(rows)}\n\nA batch of one, the quickest of {options.rounds} after a warm-up, {kind}."
    print(text)
    for page in options.write:
        write_between_marks(page, text, MARK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
