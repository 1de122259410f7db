"""`python tools/check_files.py FILE...`: YAML and TOML parse, nothing large is added, no conflict is left in a text.

One of the hooks in .pre-commit-config.yaml; prints one line a fault.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 600_000
LARGE = ("neuroflamingo/pretrained/", "tests/parity/")
"""Where large files may lie: embedded weights and golden numbers."""
CONFLICT = re.compile(rb"^(<{7} |={7}$|>{7} )", re.MULTILINE)


def faults(path: Path) -> list[str]:
    """What is wrong with a file, in words."""
    content = path.read_bytes()
    found = []
    if len(content) > MAX_BYTES and not path.as_posix().startswith(LARGE):
        found.append(f"{len(content)} bytes; at most {MAX_BYTES} outside of {', '.join(LARGE)}")
    if b"\0" not in content[:8000] and CONFLICT.search(content):
        found.append("a merge conflict is left in it")
    parse = _parser(path.suffix)
    if parse is not None:
        try:
            parse(content.decode("utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            found.append(" ".join(str(error).split()))
    return found


def _parser(suffix: str) -> Callable[[str], Any] | None:
    return {".toml": tomllib.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load, ".cff": yaml.safe_load}.get(suffix)


def main(names: list[str]) -> int:
    """Print the faults of all files; 1 if there are any."""
    found = [f"{name}: {fault}" for name in names if Path(name).is_file() for fault in faults(Path(name))]
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
