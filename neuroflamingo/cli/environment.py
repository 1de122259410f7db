"""Checks for `doctor`: versions, devices, caches, and anything missing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from neuroflamingo_preprocessing.cache_home import VARIABLE, home_folder
from neuroflamingo_preprocessing.errors import NotFoundError
from neuroflamingo_preprocessing.software import installed_version
from neuroflamingo_preprocessing.structural.template import template_file


@dataclass(frozen=True)
class Check:
    """One line of the report; if `fine` is False something is missing, and `hint` says how to fix it."""

    topic: str
    name: str
    value: str
    fine: bool = True
    hint: str = ""


def examine() -> list[Check]:
    """Check everything that writing reports needs, without loading a model or using the network."""
    return [*_software(), *_extras(), *_devices(), *_places(), *_models()]


def healthy(checks: list[Check]) -> bool:
    """Whether every check is fine."""
    return all(check.fine for check in checks)


def as_dict(checks: list[Check]) -> dict[str, Any]:
    """Plain data for `--json`."""
    return {"healthy": healthy(checks), "checks": [asdict(check) for check in checks]}


def as_lines(checks: list[Check]) -> list[str]:
    """Format the checks as plain text by topic; problems are marked with `!`."""
    width = max(len(check.name) for check in checks)
    lines: list[str] = []
    topic = ""
    for check in checks:
        if check.topic != topic:
            topic = check.topic
            lines += ([""] if lines else []) + [topic]
        mark = " " if check.fine else "!"
        lines.append(f"{mark} {check.name.ljust(width)}  {check.value}")
        if not check.fine and check.hint:
            lines.append(f"  {' ' * width}  try: {check.hint}")
    missing = [check.name for check in checks if not check.fine]
    return [*lines, "", f"missing: {', '.join(missing)}" if missing else "nothing is missing"]


def _software() -> list[Check]:
    found = [
        Check("software", "neuroflamingo", installed_version("neuroflamingo") or "not installed"),
        Check("software", "python", f"{platform.python_version()} ({sys.executable})"),
        Check("software", "system", platform.platform()),
    ]
    for name, needed in _requirements():
        version = installed_version(name)
        fine = version is not None and _at_least(version, needed)
        value = version or "missing"
        hint = f"pip install '{name}{'>=' + needed if needed else ''}'"
        found.append(Check("software", name, value if fine or not version else f"{value}, too old", fine, hint))
    return found


def _extras() -> list[Check]:
    """Check optional extras, whose absence is not an error."""
    from neuroflamingo_preprocessing.errors import ScanError
    from neuroflamingo_preprocessing.formats.dicom.attributes import require_dicom_extra

    try:
        require_dicom_extra()
    except ScanError as error:
        return [Check("software", "dicom (extra)", f"{error.seen}; {error.hint}")]
    found = ", ".join(f"{name} {installed_version(name)}" for name in ("pydicom", "dcm2niix"))
    return [Check("software", "dicom (extra)", found)]


def _requirements() -> list[tuple[str, str]]:
    """Name and minimum version of each required distribution (without extras)."""
    from packaging.requirements import Requirement

    plain = [Requirement(line) for line in requires("neuroflamingo") or () if "extra ==" not in line]
    lowest = {item.name: next((s.version for s in item.specifier if s.operator == ">="), "") for item in plain}
    return sorted(lowest.items(), key=lambda pair: pair[0].lower())


def _at_least(version: str, needed: str) -> bool:
    from packaging.version import Version

    return not needed or Version(version.split("+")[0]) >= Version(needed)


def _devices() -> list[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Check("devices", "torch", f"cannot be imported: {error}", False, "reinstall torch")]
    lines = [Check("devices", "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        lines.append(Check("devices", f"cuda:{index}", f"{properties.name}, {memory}"))
    if torch.cuda.device_count() == 0:
        lines.append(Check("devices", "cuda", "none; the embedded model runs well on the CPU"))
    return lines


def _places() -> list[Check]:
    home = home_folder()
    source = f"from ${VARIABLE}" if os.environ.get(VARIABLE) else f"default; ${VARIABLE} moves it"
    writable = _can_create(home)
    found = [
        Check(
            "places",
            "caches and crash files",
            f"{home} ({source})",
            writable,
            f"set {VARIABLE} to a writable folder",
        )
    ]
    found.append(Check("places", "working folder", str(Path.cwd()), True))
    return found


def _can_create(folder: Path) -> bool:
    """Check that the folder, or its nearest existing parent, is writable; creates nothing."""
    while not folder.exists():
        if folder.parent == folder:
            return False
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def _models() -> list[Check]:
    from neuroflamingo.checkpoints.local_models import MODELS, list_models
    from neuroflamingo_encoders.registry import list_encoders

    found = []
    for name in list_models():
        size = sum(path.stat().st_size for path in (MODELS / name).rglob("*") if path.is_file())
        found.append(Check("models", name, f"embedded, {size / 1e6:.1f} MB"))
    if not found:
        found.append(Check("models", "embedded models", "none", False, "reinstall neuroflamingo"))
    found.append(Check("models", "encoders", ", ".join(list_encoders())))
    found.append(_template())
    return found


def _template() -> Check:
    try:
        template_file("t1")  # the template for alignment, shipped with nilearn
    except NotFoundError as error:
        return Check("models", "MNI152 template", "missing", False, error.hint or "")
    return Check("models", "MNI152 template", "in nilearn")
