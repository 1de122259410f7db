"""No committed file carries paths of the machine it was written on, or addresses of package registries."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BINARY = {".safetensors", ".png", ".gz", ".nii", ".npz", ".ico", ".woff2"}
# In brackets so that this file does not match itself.
FORBIDDEN = re.compile(
    r"(?<![\w.])/(?:wor[k]|tm[p]|roo[t]|opt/wheel[s])/"
    r"|pypi\.or[g]|pythonhoste[d]\.org|registry\.npmj[s]\.org|--(?:extra-)?inde[x]-url|--find-link[s]",
)


def committed_files() -> list[Path]:
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in run.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in BINARY]


def test_no_local_paths_or_registry_addresses() -> None:
    files = committed_files()
    assert ROOT / "pyproject.toml" in files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "open('/" + "tmp/x')",
        "see /" + "root/scan.nii",
        "pip install --" + "index-url x",
        "https://pypi" + ".org/simple",
    ],
)
def test_the_pattern_catches(line: str) -> None:
    assert FORBIDDEN.search(line)


@pytest.mark.parametrize(
    "line", ["tests/tmp/x", "docs/work/plan.md", "tmp_path / 'x'", "https://arxiv.org/abs/2204.14198"]
)
def test_the_pattern_lets_pass(line: str) -> None:
    assert not FORBIDDEN.search(line)
