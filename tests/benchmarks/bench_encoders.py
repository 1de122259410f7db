"""Speed and memory of the encoders' own attention and scan beside plain statements of the same, interleaved in one run.

BrainLM 13M at full size with fused attention against softmax with the matrix written out; the selective scan in chunks
against one token after another; and SwiFT and NeuroSTORM forward at 96 x 96 x 96 x 20. Weights are random, numbers of
both sides are compared before anything is timed. Run by `make bench`, or:

    python tests/benchmarks/bench_encoders.py --rounds 5 --json encoders.json --write docs/encoders.md
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_generation import Times, _status_kb
from torch import Tensor

BEGIN, END = "<!-- bench-encoders:begin -->", "<!-- bench-encoders:end -->"
LENGTH, INNER, STATES = 10_000, 1024, 16  # BrainMT's widths
GOALS = {"BrainLM 13M, 424 x 200": 1.5, "selective scan, 10,000 tokens": 5.0}


def brainlm(plain: bool) -> Callable[[], Tensor]:
    """Forward of the released size, a batch of one."""
    from neuroflamingo_encoders import brainlm as module
    from neuroflamingo_encoders.registry import build_encoder

    torch.manual_seed(0)
    encoder: Any = build_encoder("brainlm-13m")
    encoder.set_coordinates(torch.randn(424, 3) * 40)
    if plain:
        for part in encoder.modules():
            if isinstance(part, module.SelfAttention):
                part.forward = _written_out(part)
    x = torch.randn(1, 1, 424, 200)
    return lambda: encoder(x).tokens


def _written_out(part: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        split = [f(x).unflatten(2, (part.heads, -1)).transpose(1, 2) for f in (part.query, part.key, part.value)]
        q, k, v = split
        scale = q.shape[-1] ** -0.25
        mixed = ((q * scale) @ (k * scale).transpose(2, 3)).softmax(-1) @ v + part.conv(v)
        return mixed.transpose(1, 2).flatten(2)

    return forward


def scan(plain: bool) -> Callable[[], Tensor]:
    """The scan alone, a batch of one."""
    from neuroflamingo_encoders.selective_scan import selective_scan

    torch.manual_seed(0)
    u, dt = torch.randn(1, LENGTH, INNER), torch.rand(1, LENGTH, INNER) * 0.1
    a, b, c = (
        -torch.arange(1.0, STATES + 1).expand(INNER, -1),
        torch.randn(1, LENGTH, STATES),
        torch.randn(1, LENGTH, STATES),
    )
    if not plain:
        return lambda: selective_scan(u, dt, a, b, c)
    moved = [x.transpose(1, 2).contiguous() for x in (u, dt, b, c)]
    return lambda: step_by_step(moved[0], moved[1], a, moved[2], moved[3]).transpose(1, 2)


def step_by_step(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence in mamba's own reference layout, tokens last: both large tensors first, then a token at a time."""
    kept = torch.exp(torch.einsum("bel,en->beln", dt, a))
    fed = torch.einsum("bel,bnl,bel->beln", dt, b, u)
    state, out = torch.zeros_like(kept[:, :, 0]), []
    for t in range(u.shape[2]):
        state = kept[:, :, t] * state + fed[:, :, t]
        out.append(torch.einsum("ben,bn->be", state, c[:, :, t]))
    return torch.stack(out, dim=2)


def volume_encoder(name: str) -> Callable[[], Tensor]:
    """Forward of the released size, a batch of one run of 20 frames."""
    from neuroflamingo_encoders.registry import build_encoder

    torch.manual_seed(0)
    encoder, x = build_encoder(name), torch.randn(1, 1, 1, 96, 96, 96, 20)
    return lambda: encoder(x).tokens


SYSTEMS: dict[str, dict[str, Callable[[], Callable[[], Tensor]]]] = {
    "BrainLM 13M, 424 x 200": {"neuroflamingo": lambda: brainlm(False), "plain softmax": lambda: brainlm(True)},
    "selective scan, 10,000 tokens": {"neuroflamingo": lambda: scan(False), "token by token": lambda: scan(True)},
    "SwiFT, 96^3 x 20": {"neuroflamingo": lambda: volume_encoder("swift")},
    "NeuroSTORM, 96^3 x 20": {"neuroflamingo": lambda: volume_encoder("neurostorm")},
}


def measure(case: str, rounds: int) -> dict[str, Times]:
    """Interleaved rounds after one warm-up of each, whose numbers have to agree."""
    jobs = {name: make() for name, make in SYSTEMS[case].items()}
    first, *others = [work() for work in jobs.values()]
    for other in others:
        torch.testing.assert_close(first, other, atol=5e-4, rtol=5e-4)
    times = {name: Times() for name in jobs}
    for _ in range(rounds):
        for name, work in jobs.items():
            times[name].add(work, "cpu")
    return times


def peak_memory_mb(case: str, system: str) -> float:
    """Peak memory of one call above what the built encoder and its input take; in a process of its own."""
    work = SYSTEMS[case][system]()
    before = _status_kb("VmRSS")
    work()
    return (_status_kb("VmHWM") - before) / 2**10


def _memory_in_child(case: str, system: str) -> float:
    command = [sys.executable, __file__, "--memory-of", case, system]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def rows_of(case: str, times: dict[str, Times]) -> list[dict[str, Any]]:
    ours = times["neuroflamingo"]
    rows = []
    for name, measured in times.items():
        ratios = [b / a for a, b in zip(ours.cpu, measured.cpu, strict=True)]
        rows.append(
            {
                "case": case,
                "system": name,
                "cpu_s": statistics.median(measured.cpu),
                "ratio": statistics.median(ratios) if len(times) > 1 else None,
                "memory_mb": _memory_in_child(case, name),
                "goal": GOALS.get(case) if name != "neuroflamingo" else None,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| job | system | CPU s | peak memory, MB | times ours | goal |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        goal = f">= {row['goal']}" if row["goal"] else ""
        cells = (row["case"], row["system"], f"{row['cpu_s']:.2f}", f"{row['memory_mb']:.0f}", ratio, goal)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures")
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="pages to put it in, between their marks")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with torch.inference_mode():
        if options.memory_of:
            print(peak_memory_mb(*options.memory_of))
            return 0
        rows = [row for case in SYSTEMS for row in rows_of(case, measure(case, options.rounds))]
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    text = f"{table(rows)}\n\n{options.rounds} interleaved rounds, medians, 1 thread, float32 on cpu; {versions}."
    print(text)
    for page in options.write:
        before, rest = page.read_text().split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "versions": versions}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
