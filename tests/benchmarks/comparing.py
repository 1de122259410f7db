"""Systems that do the same job, interleaved in one run: CPU seconds, peak memory, ratios; as a table for a page."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_generation import Times, _status_kb

OURS = "neuroflamingo"


@dataclass(frozen=True)
class Comparison:
    """A benchmark.

    Attributes:
        script: the file that is run.
        mark: name of the marks in a page.
        systems: job to system to a function that sets it up and gives the work to time.
        goals: job to the ratio that is wanted.
        agree: raises if two systems' results differ.
        about: what the script says of itself.
    """

    script: str
    mark: str
    systems: Mapping[str, Mapping[str, Callable[[], Callable[[], Any]]]]
    goals: Mapping[str, float]
    agree: Callable[[Any, Any], None]
    about: str

    def measure(self, case: str, rounds: int) -> dict[str, Times]:
        """Interleaved rounds after one warm-up of each, whose results have to agree."""
        jobs = {name: make() for name, make in self.systems[case].items()}
        first, *others = [work() for work in jobs.values()]
        for other in others:
            self.agree(first, other)
        del first, others
        times = {name: Times() for name in jobs}
        for _ in range(rounds):
            for name, work in jobs.items():
                gc.collect()
                times[name].add(work, "cpu")
        return times

    def peak_memory_mb(self, case: str, system: str) -> float:
        """Peak memory of one call above what its set-up takes; in a process of its own."""
        work = self.systems[case][system]()
        before = _status_kb("VmRSS")
        work()
        return (_status_kb("VmHWM") - before) / 2**10

    def _memory_in_child(self, case: str, system: str) -> float:
        command = [sys.executable, self.script, "--memory-of", case, system]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    def rows_of(self, case: str, times: dict[str, Times]) -> list[dict[str, Any]]:
        """One row a system, ours first."""
        ours = times[OURS]
        rows = []
        for name, measured in times.items():
            ratios = [b / a for a, b in zip(ours.cpu, measured.cpu, strict=True)]
            rows.append(
                {
                    "case": case,
                    "system": name,
                    "cpu_s": statistics.median(measured.cpu),
                    "ratio": statistics.median(ratios) if len(times) > 1 else None,
                    "memory_mb": self._memory_in_child(case, name),
                    "goal": self.goals.get(case) if name != OURS else None,
                }
            )
        return rows

    def main(self, arguments: list[str] | None = None) -> int:
        """Measure everything and print the table."""
        parser = argparse.ArgumentParser(description=self.about.splitlines()[0])
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--json", type=Path, help="also write the figures")
        parser.add_argument("--write", type=Path, nargs="+", default=[], help="pages to put it in, between their marks")
        parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
        options = parser.parse_args(arguments)
        if options.memory_of:
            print(self.peak_memory_mb(*options.memory_of))
            return 0
        rows = [row for case in self.systems for row in self.rows_of(case, self.measure(case, options.rounds))]
        versions = f"torch {torch.__version__}, Python {platform.python_version()}"
        text = f"{table(rows)}\n\n{options.rounds} interleaved rounds, medians, 1 thread, float32 on cpu; {versions}."
        print(text)
        begin, end = f"<!-- {self.mark}:begin -->", f"<!-- {self.mark}:end -->"
        for page in options.write:
            before, rest = page.read_text().split(begin)
            page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
        if options.json:
            options.json.write_text(json.dumps({"rows": rows, "versions": versions}, indent=1))
        return 0


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
