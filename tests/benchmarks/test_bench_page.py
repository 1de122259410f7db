"""The benchmark's arithmetic and its place in the pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bench_generation as bench
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_ratio_is_the_peers_time_by_ours_per_round() -> None:
    times = {
        "neuroflamingo": bench.Times([1.0, 2.0, 4.0], [1.0] * 3),
        "idefics": bench.Times([3.0, 4.0, 4.0], [2.0] * 3),
    }
    ours, peer = bench.rows_of(bench.CASES[0], times, {"neuroflamingo": 10.0, "idefics": None})
    assert (ours["ratio_cpu"], ours["ratio_wall"], ours["cpu_s"]) == (2.0, 2.0, 2.0)
    assert peer["ratio_cpu"] == 1.0
    assert "| 2.00 / 2.00 | >= 1.6 |" in bench.table([ours, peer])
    assert bench.table([ours, peer]).count("\n") == 3


def test_writes_between_the_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n")
    bench.write_between_marks(page, "new")
    assert page.read_text() == f"before\n{bench.BEGIN}\nnew\n{bench.END}\nafter\n"


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_pages_have_marks(page: str) -> None:
    text = (ROOT / page).read_text()
    assert text.count(bench.BEGIN) == 1 and text.count(bench.END) == 1


@pytest.mark.parametrize("mark", ["bench-preparing", "bench-training", "bench-start", "bench-prompts"])
def test_other_marks(tmp_path: Path, mark: str) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    page = tmp_path / "page.md"
    page.write_text(text)
    bench.write_between_marks(page, "new", mark)
    assert f"<!-- {mark}:begin -->\nnew\n<!-- {mark}:end -->" in page.read_text()
    assert page.read_text().split(f"<!-- {mark}")[0] == text.split(f"<!-- {mark}")[0]


@pytest.mark.slow
def test_the_benchmark_of_preparing_runs(tmp_path: Path) -> None:
    script, figures = ROOT / "tests" / "benchmarks" / "bench_preparing.py", tmp_path / "figures.json"
    command = [sys.executable, str(script), "--quick", "--only", "that store", "--json", str(figures)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads(figures.read_text())["rows"]
    assert [row["system"] for row in rows] == ["neuroflamingo", "monai"] * 2
    assert "| disk of that store | monai |" in run.stdout


@pytest.mark.slow
def test_the_benchmark_of_training_runs(tmp_path: Path) -> None:
    script, figures = ROOT / "tests" / "benchmarks" / "bench_training.py", tmp_path / "figures.json"
    command = [sys.executable, str(script), "--quick", "--only", "tokens of", "--json", str(figures)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads(figures.read_text())["rows"]
    assert [row["system"] for row in rows] == ["neuroflamingo", "encoding again"]
    assert rows[1]["ratio"] > 1


@pytest.mark.slow
def test_the_benchmark_of_the_start_runs(tmp_path: Path) -> None:
    script, figures = ROOT / "tests" / "benchmarks" / "bench_start.py", tmp_path / "figures.json"
    command = [sys.executable, str(script), "--quick", "--only", "first voxel", "--json", str(figures)]
    beside_itself = {**os.environ, "BASE": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=beside_itself)
    assert run.returncode == 0, run.stderr[-2000:]
    ours, same = json.loads(figures.read_text())["rows"]
    assert ours["system"] == "neuroflamingo" and same["system"].startswith("commit ")


@pytest.mark.slow
def test_the_benchmark_of_prompts_runs(tmp_path: Path) -> None:
    script, figures = ROOT / "tests" / "benchmarks" / "bench_prompts.py", tmp_path / "figures.json"
    command = [sys.executable, str(script), "--quick", "--only", "2 scans", "--json", str(figures)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads(figures.read_text())["rows"]
    assert [row["system"] for row in rows] == ["neuroflamingo", "without a cache"]


def test_memory_of_tensors_as_wide_as_the_vocabulary() -> None:
    import torch
    from bench_training import AsWide

    weight = torch.randn(10, 4)
    with AsWide(10, [weight]) as mode:
        logits = torch.randn(3, 4) @ weight.T
        other = torch.exp(logits)
        del logits
        again = torch.exp(other).view(1, 3, 10)
    assert (mode.peak, mode.now, again.numel()) == (2 * 120, 2 * 120, 30)


def test_inputs_have_one_image_per_scan() -> None:
    import torch

    for case in bench.CASES:
        inputs = bench.Inputs.of(case, "cpu", torch.float32)
        assert (inputs.ids == bench.IMAGE_ID).sum(1).tolist() == [case.scans] * bench.BATCH
        assert inputs.tokens.shape == (bench.BATCH, case.scans, bench.TOKENS, bench.WIDTH)
        assert int(inputs.ids[:, 0].unique()) == bench.IMAGE_ID
