"""Versions of the software that affects results, for provenance."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from neuroflamingo_preprocessing.errors import NeuroFlamingoError

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "nibabel", "nilearn", "SimpleITK")
BIDS_EXTRA = ("bids2table", "pathspec", "pyarrow")


class Record(BaseModel):
    """Base class of records: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SoftwareRecord(Record):
    """Versions of this package, Python and the libraries that affect results; `cuda` only where torch is loaded."""

    name: str = "neuroflamingo"
    version: str
    git_commit: str | None = None
    python: str
    platform: str
    cuda: str | None = None
    libraries: dict[str, str] = {}


@cache
def require_bids_extra(what: str) -> None:
    """Check that the packages of the extra `bids` are installed.

    Args:
        what: what needs them, for the message.

    Raises:
        NeuroFlamingoError: one is not (exit 69).
    """
    missing = [name for name in BIDS_EXTRA if find_spec(name) is None]
    if missing:
        raise NeuroFlamingoError(
            f"{what} cannot be handled here",
            expected=", ".join(BIDS_EXTRA),
            seen=f"no {', no '.join(missing)}",
            hint="pip install 'neuroflamingo[bids]'",
            exit_code=69,
        )


def utc_now() -> str:
    """Current time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def software() -> SoftwareRecord:
    """Collect the versions installed, without importing any library."""
    libraries = {name: installed for name in LIBRARIES if (installed := installed_version(name))}
    torch = sys.modules.get("torch")
    return SoftwareRecord(
        version=installed_version("neuroflamingo") or "not installed",
        git_commit=git_commit(),
        python=platform.python_version(),
        platform=platform.platform(),
        cuda=torch.version.cuda if torch is not None else None,
        libraries=libraries,
    )


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, read without starting git; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = (root / ".git" / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = root / ".git" / head.removeprefix("ref: ")
        if reference.is_file():
            return reference.read_text().strip()
        packed = (root / ".git" / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(head.removeprefix("ref: "))), None)
    except OSError:
        return None
