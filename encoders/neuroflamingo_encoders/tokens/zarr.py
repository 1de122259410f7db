"""Token files as zarr v3 stores: one group per scan, one chunk per array. See `files` for the layout."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neuroflamingo_encoders.tokens.format import ARRAYS, FORMAT, KINDS, ScanTokens
from neuroflamingo_preprocessing.drafts import draft_folder, replace_folder, sweep_once
from neuroflamingo_preprocessing.errors import OutputError
from neuroflamingo_preprocessing.files import fsync_folder, fsync_tree, not_written
from neuroflamingo_preprocessing.formats.zarr.claims import check_chunks, check_claims, read_metadata


def check_store_target(target: Path, *, overwrite: bool) -> Path:
    """Check that a store can be written; an existing folder must be a zarr store.

    Raises:
        OutputError: it cannot (exit 73).
    """
    if os.path.lexists(target):
        if target.is_symlink() or not (target / "zarr.json").is_file():
            raise OutputError(f"{target} cannot be written", expected="a new folder or a zarr store", seen="another")
        if not overwrite:
            raise OutputError(
                f"{target} exists", expected="no folder of this name", seen="a store", hint="pass --overwrite"
            )
    sweep_once(target.parent.absolute())
    with draft_folder(target):
        return target


def write_store(target: Path, scans: Iterable[ScanTokens], head: Mapping[str, Any], *, overwrite: bool) -> int:
    """Write a store beside its target and rename it when it is complete; gives the number of scans.

    Raises:
        OutputError: nothing to write, or writing failed (exit 74).
    """
    import zarr
    from zarr.codecs import ZstdCodec

    with draft_folder(target) as draft:
        try:
            root = zarr.create_group(draft, zarr_format=3, overwrite=True, attributes=dict(head))
            group = root.create_group("scans")
            count = 0
            for scan in scans:
                place = group.create_group(f"{count:05}", attributes=dict(scan.metadata))
                for name, value in scan.arrays.items():
                    place.create_array(name, data=value, chunks=value.shape, compressors=ZstdCodec(level=1))
                count += 1
            if not count:
                raise OutputError(f"{target.name}: there is nothing to write", expected="at least one scan")
            fsync_tree(draft)
            if os.path.lexists(target):
                check_store_target(target, overwrite=overwrite)  # it may have appeared in the meantime
            replace_folder(draft, target)
            fsync_folder(target.parent)
        except OSError as error:
            raise not_written(target, error) from error
    return count


def read_store(path: Path) -> tuple[list[ScanTokens], dict[str, Any]]:
    """Read scans and metadata of a store, whose metadata are checked before zarr opens it.

    Raises:
        ValueError: not a token file, links, or arrays that claim more than is stored.
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
            check_claims(place / name, name, KINDS[name], floor=0)
            check_chunks(place / name, name)
        arrays: dict[str, Any] = {name: zarr.open_array(place / name, mode="r", zarr_format=3)[...] for name in names}
        scans.append(ScanTokens(**arrays, metadata=_attributes(place)))
    return scans, head


def _refuse_links(path: Path) -> None:
    for place in (path, *path.rglob("*")):
        if place.is_symlink():
            raise ValueError(f"a link in it: {place.name}")


def _attributes(folder: Path) -> dict[str, Any]:
    return dict(read_metadata(folder).get("attributes", {}))
