"""Licences, a bill of materials and known weaknesses of what is installed: `make audit`.

    python tools/audit.py TOOLS PYTHON

TOOLS is the folder of the programs of `requirements-audit.txt`, PYTHON the interpreter whose packages are looked at.
The bill (CycloneDX) and the licences are written into `dist/`. Known vulnerabilities are looked up over the network; if
it is unavailable, this is reported and is not a failure. A licence that would bind users of this package and,
with `--strict`, a known vulnerability are failures.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

DIST = Path(__file__).resolve().parents[1] / "dist"
BINDING = re.compile(r"(?<![LA-Z])A?GPL|GNU (Affero )?General Public", re.IGNORECASE)
TOOLS_ONLY = {"codespell", "docutils"}
"""Programs that the project is checked with, which no user installs."""


def _output(program: Path, *words: str | Path, seconds: int = 300) -> str:
    """What a program prints; empty if it fails, or does not end."""
    try:
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def binding_licences(packages: list[dict[str, Any]]) -> list[str]:
    """Packages with a licence that would bind who uses them, in words."""
    return [
        f"{one['Name']}: {one['License'][:80]}"
        for one in packages
        if BINDING.search(one["License"]) and one["Name"].lower() not in TOOLS_ONLY
    ]


def weaknesses(answer: str) -> tuple[list[str], int]:
    """Known weaknesses in pip-audit's answer, in words, and how many packages it knew."""
    packages = json.loads(answer)["dependencies"] if answer.strip() else []
    known = [one for one in packages if "vulns" in one]
    found = [
        f"{one['name']} {one['version']}: {fault['id']}, repaired in {', '.join(fault['fix_versions']) or 'none yet'}"
        for one in known
        for fault in one["vulns"]
    ]
    return found, len(known)


def main(tools: Path, python: Path, *, strict: bool) -> int:
    """Write and print all three; gives the exit code."""
    DIST.mkdir(exist_ok=True)
    packages = json.loads(_output(tools / "pip-licenses", "--python", python, "--format=json", "--from=mixed"))
    (DIST / "licences.json").write_text(json.dumps(packages, indent=1) + "\n", encoding="utf-8")
    common = ", ".join(f"{name[:24]} {count}" for name, count in Counter(p["License"] for p in packages).most_common(4))
    print(f"licences of {len(packages)} packages: {common}, ...")
    binding = binding_licences(packages)
    print("\n".join(f"  binds its users: {words}" for words in binding) or "  none binds its users")
    bill = DIST / "bill-of-materials.cdx.json"
    _output(tools / "cyclonedx-py", "environment", "--of", "JSON", "-o", bill, python)
    print(
        f"bill of materials: {bill.name}, {len(json.loads(bill.read_text(encoding='utf-8'))['components'])} components"
    )
    place = _output(python, "-c", "import nibabel, pathlib; print(pathlib.Path(nibabel.__file__).parents[1])").strip()
    found, known = weaknesses(_output(tools / "pip-audit", "--path", place, "--format", "json", "--timeout", "10"))
    print(
        "\n".join(found) or f"known weaknesses: {'none' if known else 'not asked, since no network answered'} ({known})"
    )
    return int(bool(binding) or (strict and bool(found)))


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--strict"]
    raise SystemExit(main(Path(given[0]), Path(given[1]), strict="--strict" in sys.argv))
