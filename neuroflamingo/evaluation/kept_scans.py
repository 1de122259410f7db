"""Prepared painted scans in a folder, so that an evaluation resumes, and others on the same cases start at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import neuroflamingo.findings
import neuroflamingo.painting
import neuroflamingo_preprocessing
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, ScanError
from neuroflamingo_preprocessing.files import sha256_of, write_bytes_atomic
from neuroflamingo_preprocessing.preparation import prepare_many

if TYPE_CHECKING:
    from jaxtyping import Float32

    from neuroflamingo_preprocessing.scan import Scan
    from neuroflamingo_preprocessing.spec import ScanSpec

    MakesScan = Callable[[], Scan]

VOLUME, FAILED = "volume", "failed"


class KeptScans:
    """A folder of prepared scans.

    Each lies under a hash of what it was made from: the case, the contents of the files that it names, what the encoder
    asks for, and the code that paints and prepares. With another code or another spec nothing is taken from the folder.

    Args:
        folder: made if it is missing.
        spec: `card.scan` of the encoder.
    """

    def __init__(self, folder: str | Path, spec: ScanSpec) -> None:
        self.folder, self.spec = Path(folder), spec
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _made_by(self) -> str:
        return f"{code_digest()} {self.spec.model_dump_json()}"

    def path(self, source: MakesScan) -> Path:
        """File of a scan."""
        key = f"{self._made_by} {_identity(source)}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.safetensors"

    def read(self, source: MakesScan) -> Float32[np.ndarray, "*axes"] | ScanError | None:
        """What is kept of a scan: its tensor, or why it could not be prepared; None: nothing, or half a file."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            kept = load_file(self.path(source))
        except (FileNotFoundError, SafetensorError):
            return None
        return kept[VOLUME] if VOLUME in kept else ScanError(kept[FAILED].tobytes().decode())

    def write(self, source: MakesScan, made: Float32[np.ndarray, "*axes"] | NeuroFlamingoError) -> None:
        """Keep a scan."""
        from safetensors.numpy import save

        failed = isinstance(made, NeuroFlamingoError)
        part = {FAILED: np.frombuffer(made.what.encode(), np.uint8)} if failed else {VOLUME: np.ascontiguousarray(made)}
        write_bytes_atomic(self.path(source), save(part), overwrite=True)


def prepared(
    sources: Sequence[MakesScan], spec: ScanSpec, processes: int, keep: str | Path | None
) -> Iterator[Float32[np.ndarray, "*axes"] | NeuroFlamingoError]:
    """Prepare scans in order, see `prepare_many`; those that are kept are read, the others kept.

    Args:
        sources: picklable functions that make a scan in a worker.
        spec: `card.scan` of the encoder.
        processes: number of workers.
        keep: folder of kept scans; None: keep none.
    """
    kept = None if keep is None else KeptScans(keep, spec)
    missing = [one for one in sources if kept is None or not kept.path(one).is_file()]
    made = prepare_many(missing, spec, processes) if missing else iter(())
    waiting = set(map(id, missing))
    for source in sources:
        stored = kept.read(source) if kept is not None and id(source) not in waiting else None
        if stored is None:
            one: Any = next(made) if id(source) in waiting else next(prepare_many([source], spec))
            stored = one if isinstance(one, NeuroFlamingoError) else one.tensor
            if kept is not None:
                kept.write(source, stored)
        yield stored


def _identity(source: Any) -> str:
    """A case in words, with the hashes of files in the place of their names."""
    if is_dataclass(source):
        parts = (f"{field.name}={_identity(getattr(source, field.name))}" for field in fields(source))
        return f"{type(source).__name__}({', '.join(parts)})"
    if isinstance(source, str) and Path(source).is_file():
        return _file_digest(source)
    return repr(source)


@lru_cache(maxsize=512)
def _file_digest(path: str) -> str:
    return sha256_of(path)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the modules that paint and prepare scans."""
    digest = hashlib.sha256()
    for package in (neuroflamingo.findings, neuroflamingo.painting, neuroflamingo_preprocessing):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
