"""Systems that do the same job, interleaved in one run: CPU seconds, peak memory, ratios; as a table for a page."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench_generation import Times, _status_kb, write_between_marks

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
        bounds: job to the MB of memory that ours may take; where there are any, memory is measured for these jobs only.
        wall: jobs whose work other processes do: wall time is read there, not processor time.
        most_rounds: job to the rounds that are enough for it, for long ones.
        weighed: jobs whose memory is measured where there are no bounds; None: all.
        more: job to what gives further rows, as `rows_of` does.
        begin: called first, with whether `--quick` was given; what it makes is there for the child processes too.
        note: a sentence below the table.
    """

    script: str
    mark: str
    systems: Mapping[str, Mapping[str, Callable[[], Callable[[], Any]]]]
    goals: Mapping[str, float]
    agree: Callable[[Any, Any], None]
    about: str
    bounds: Mapping[str, float] = field(default_factory=dict)
    wall: frozenset[str] = frozenset()
    most_rounds: Mapping[str, int] = field(default_factory=dict)
    weighed: frozenset[str] | None = None
    more: Mapping[str, Callable[[], Iterable[dict[str, Any]]]] = field(default_factory=dict)
    begin: Callable[[bool], None] | None = None
    note: str = ""

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
        clock = "wall" if case in self.wall else "cpu"
        ours = getattr(times[OURS], clock)
        rows = []
        for name, measured in times.items():
            seconds = getattr(measured, clock)
            ratios = [b / a for a, b in zip(ours, seconds, strict=True)]
            bound = self.bounds.get(case)
            weighed = case in self.weighed if self.weighed is not None else bound or not self.bounds
            goal = f"<= {bound:.0f} MB" if bound else f">= {self.goals[case]}" if case in self.goals else ""
            rows.append(
                {
                    "case": case,
                    "system": name,
                    f"{clock}_s": statistics.median(seconds),
                    "ratio": statistics.median(ratios) if len(times) > 1 else None,
                    "memory_mb": self._memory_in_child(case, name) if weighed else None,
                    "goal": goal if bound or name != OURS else "",
                }
            )
        return rows

    def main(self, arguments: list[str] | None = None) -> int:
        """Measure everything and print the table."""
        parser = argparse.ArgumentParser(description=self.about.splitlines()[0])
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--only", default="", help="jobs whose name holds this")
        parser.add_argument("--json", type=Path, help="also write the figures")
        parser.add_argument("--write", type=Path, nargs="+", default=[], help="pages to put it in, between their marks")
        parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
        if self.begin:
            parser.add_argument("--quick", action="store_true", help="small, one round: only to see that it runs")
        options = parser.parse_args(arguments)
        if options.memory_of:
            print(self.peak_memory_mb(*options.memory_of))
            return 0
        if self.begin:
            self.begin(options.quick)
        rows, rounds = [], 1 if getattr(options, "quick", False) else options.rounds
        for case in (case for case in self.systems if options.only in case):
            rows += self.rows_of(case, self.measure(case, min(rounds, self.most_rounds.get(case, rounds))))
        for rows_of_more in (make for case, make in self.more.items() if options.only in case):
            rows += rows_of_more()
        versions = f"torch {torch.__version__}, Python {platform.python_version()}"
        text = f"{table(rows)}\n\n{rounds} interleaved rounds, medians, 1 thread, float32 on cpu; {versions}."
        text += f"\n{self.note}" if self.note else ""
        print(text)
        for page in options.write:
            write_between_marks(page, text, self.mark)
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
        memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        taken = row.get("shown") or (f"{row['cpu_s']:.3g}" if "cpu_s" in row else f"{row['wall_s']:.3g} (wall)")
        lines.append("| " + " | ".join((row["case"], row["system"], taken, memory, ratio, row["goal"])) + " |")
    return "\n".join(lines)
