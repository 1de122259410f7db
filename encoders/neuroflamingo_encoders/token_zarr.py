"""Token files as zarr v3 stores: one group per scan, one chunk per array. See `token_files` for the layout."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuroflamingo_encoders.token_files import ARRAYS, FORMAT, KINDS, MAX_BYTES, ScanTokens
from neuroflamingo_preprocessing.errors import OutputError
from neuroflamingo_preprocessing.zstd_frames import HEADER_BYTES, content_size

MAX_META_BYTES = 2**26
PACKED = 1000
"""How many times its stored bytes an array may be: chunks of zeros pack well, a bomb packs better."""


def check_store_target(target: Path, *, overwrite: bool) -> Path:
    """Refuse a store that cannot be written, or a folder that is not a store of ours.

    Raises:
        OutputError: exit 73.
    """
    if os.path.lexists(target):
        if target.is_symlink() or not (target / "zarr.json").is_file():
            raise OutputError(f"{target} cannot be written", expected="a new folder or a zarr store", seen="another")
        if not overwrite:
            raise OutputError(
                f"{target} exists", expected="no folder of this name", seen="a store", hint="pass --overwrite"
            )
    shutil.rmtree(_draft_beside(target))
    return target


def _draft_beside(target: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".neuroflamingo-", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise OutputError(
            f"{target} cannot be created",
            expected=f"a writable folder {target.parent}",
            seen=error.strerror or str(error),
            hint="choose another place with -o",
        ) from error


def write_store(target: Path, scans: Iterable[ScanTokens], head: Mapping[str, Any], *, overwrite: bool) -> int:
    """Write a store beside its target and rename it when it is whole; gives how many scans.

    Raises:
        OutputError: nothing to write, or writing failed (exit 74).
    """
    import zarr
    from zarr.codecs import ZstdCodec

    draft = _draft_beside(target)
    try:
        root = zarr.create_group(draft, zarr_format=3, overwrite=True, attributes=dict(head))
        group = root.create_group("scans")
        count = 0
        for scan in scans:
            place = group.create_group(f"{count:05}", attributes=dict(scan.about))
            for name, value in scan.arrays.items():
                place.create_array(name, data=value, chunks=value.shape, compressors=ZstdCodec(level=1))
            count += 1
        if not count:
            raise OutputError(f"{target.name}: there is nothing to write", expected="at least one scan")
        _fsync_all(draft)
        os.chmod(draft, 0o777 & ~_umask())
        _rename(draft, target, overwrite)
    except OSError as error:
        raise OutputError(
            f"writing {target.name} failed",
            seen=error.strerror or str(error),
            hint="free some space or choose another folder with -o",
            exit_code=74,
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return count


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _fsync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as stream:
                os.fsync(stream.fileno())


def _rename(draft: Path, target: Path, overwrite: bool) -> None:
    """No folder is replaced in one step: the old one steps aside, and comes back if the new one cannot take over."""
    if not os.path.lexists(target):
        draft.rename(target)
        return
    check_store_target(target, overwrite=overwrite)
    aside = _draft_beside(target)
    target.rename(aside / "old")
    try:
        draft.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_store(path: Path) -> tuple[list[ScanTokens], dict[str, Any]]:
    """Scans and `about` of a store. What its metadata claims is looked at before zarr sees it.

    Raises:
        ValueError: not ours, a link in it, or arrays that claim more than is there.
    """
    import zarr

    _refuse_links(path)
    head = _attributes(path)
    if head.get("format") != FORMAT:
        raise ValueError(f"not a store of {FORMAT}")
    places = sorted(place for place in (path / "scans").iterdir() if place.is_dir())
    if [place.name for place in places] != [f"{number:05}" for number in range(len(places))]:
        raise ValueError("scans are missing in it")
    scans = []
    for place in places:
        names = [name for name in ARRAYS if (place / name).is_dir()]
        for name in names:
            _check_claims(place / name, name)
            _check_chunk(place / name, name)
        arrays: dict[str, Any] = {name: zarr.open_array(place / name, mode="r", zarr_format=3)[...] for name in names}
        scans.append(ScanTokens(**arrays, about=_attributes(place)))
    return scans, head


def _refuse_links(path: Path) -> None:
    for place in (path, *path.rglob("*")):
        if place.is_symlink():
            raise ValueError(f"a link in it: {place.name}")


def _metadata(folder: Path) -> dict[str, Any]:
    file = folder / "zarr.json"
    if file.stat().st_size > MAX_META_BYTES:
        raise ValueError(f"{file.name} of {file.stat().st_size:,} bytes")
    return json.loads(file.read_text(encoding="utf-8"))


def _attributes(folder: Path) -> dict[str, Any]:
    return dict(_metadata(folder).get("attributes", {}))


def _check_chunk(folder: Path, name: str) -> None:
    """Refuse a chunk that would become more than the array: it would be unpacked before anybody looks at its size."""
    claimed = _metadata(folder)
    codecs = [codec["name"] for codec in claimed["codecs"]]
    if codecs != ["bytes", "zstd"]:
        raise ValueError(f"{name}: packed by {', '.join(map(str, codecs))[:80]}")
    most = math.prod(claimed["shape"]) * np.dtype(claimed["data_type"]).itemsize
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            with file.open("rb") as stream:
                size = content_size(stream.read(HEADER_BYTES))
            if size != most:
                raise ValueError(f"{name}: a chunk of {size} bytes, not {most:,}")


def _check_claims(folder: Path, name: str) -> None:
    """Kind and size that an array's metadata claims, and that its chunks are no larger than itself."""
    claimed = _metadata(folder)
    shape, kind = claimed["shape"], claimed["data_type"]
    chunks = claimed["chunk_grid"]["configuration"]["chunk_shape"]
    if kind not in KINDS[name] or list(chunks) != list(shape) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"{name}: {kind} {shape} in chunks of {chunks}")
    size = 8
    for length in shape:
        size *= length
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > min(MAX_BYTES, PACKED * stored):
        raise ValueError(f"{name} claims {size:,} bytes, {stored:,} are stored")
