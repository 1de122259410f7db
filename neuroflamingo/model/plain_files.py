"""Files of a model's folder, before anything is built from them: regular, of a bounded size, the weights whole."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroflamingo.model.library_errors import blame_file
from neuroflamingo.settings import MAX_MODEL_JSON, read_model_json
from neuroflamingo_preprocessing.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
READ = (".json", ".jinja", ".safetensors", ".txt", ".model", ".tiktoken")
"""Endings of the files that transformers may read from a folder."""
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, by its header alone.

    Attributes:
        file: the file's name.
        dtype: type of its numbers, as the file spells it (`F16`).
        shape: its sizes.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Count of its numbers."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def is_integer(self) -> bool:
        """Whether it holds whole numbers, which no trained weight does."""
        return self.dtype in _INTEGERS


def check_plain_files(folder: Path) -> None:
    """Refuse links, pipes and devices, and files too large for what their ending says, among those that are read.

    Links from a snapshot of the hub's cache to its own blobs are taken.

    Raises:
        ModelError: names the file (exit 65).
    """
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in READ:
            check_plain_file(file)


def check_plain_file(file: Path) -> None:
    """Refuse what is no regular file of a bounded size; see `check_plain_files`."""
    seen = _oddity(file)
    if seen is None and file.suffix.lower() != ".safetensors" and file.stat().st_size > MAX_MODEL_JSON:
        seen = f"{file.stat().st_size:,} bytes, at most {MAX_MODEL_JSON:,} are read"
    if seen is not None:
        raise ModelError(
            f"{file.name} in {file.parent} is not read",
            expected="a regular file in the folder itself",
            seen=seen,
            hint="put the file itself there, or remove it",
            exit_code=65,
        )


def _oddity(file: Path) -> str | None:
    try:
        kind = file.stat().st_mode
    except OSError:
        return "a link to nothing" if file.is_symlink() else "no such file"
    if file.is_symlink() and not _is_hub_blob(file):
        return "a link"
    if not stat.S_ISREG(kind):
        return "a folder" if stat.S_ISDIR(kind) else "a device, pipe or socket"
    return None


def _is_hub_blob(link: Path) -> bool:
    """Whether a link leads from `snapshots/REVISION` to `blobs` of the same model, as the hub's cache lays it out."""
    folder = link.parent.resolve()
    return folder.parent.name == "snapshots" and link.resolve().parent == folder.parents[1] / "blobs"


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold a model's weights: one, or those that the index names.

    Raises:
        ModelError: there are none, or the index names anything but plain `*.safetensors` files of the folder (exit 65).
    """
    if (folder / WEIGHTS).exists() or (folder / WEIGHTS).is_symlink():
        files = (folder / WEIGHTS,)
    else:
        files = tuple(folder / name for name in sorted(set(_weight_map(folder).values())))
    for file in files:
        check_plain_file(file)
    return files


def weight_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model's folder by name, from the headers of its files, whose bytes are all there.

    Raises:
        ModelError: see `weight_files`; or a file is cut off, or no safetensors file, or lacks what the index names.
    """
    from safetensors import safe_open

    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        with blame_file(file, "a whole safetensors file", "copy or download it again"), safe_open(file, "np") as stream:
            for name in stream.keys():  # noqa: SIM118  (it is no dictionary)
                part = stream.get_slice(name)
                found[name] = StoredTensor(file.name, part.get_dtype(), tuple(part.get_shape()))
    if not (folder / WEIGHTS).exists():
        lacking = [f"{name} in {file}" for name, file in _weight_map(folder).items() if _file_of(found, name) != file]
        if lacking:
            raise _bad_index(folder, f"{len(lacking)} are not there ({', '.join(lacking[:3])})", "the tensors it names")
    return found


def _file_of(found: dict[str, StoredTensor], name: str) -> str | None:
    return found[name].file if name in found else None


def _weight_map(folder: Path) -> dict[str, str]:
    index = folder / INDEX
    if not index.exists() and not index.is_symlink():
        others = sorted(
            file.name for file in folder.glob("*") if file.suffix.lower() in (".safetensors", ".bin", ".pt")
        )
        raise ModelError(
            f"there are no weights in {folder}",
            expected=f"{WEIGHTS}, or {INDEX} and the files that it names",
            seen=", ".join(others[:3]) or "neither",
            hint="copy the whole folder that save_pretrained wrote",
            exit_code=65,
        )
    check_plain_file(index)
    names: Any = read_model_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise _bad_index(folder, "no weight_map", "names of tensors and of their files")
    odd = sorted({str(name)[:60] for name in names.values() if not _is_plain_name(name)})
    if odd:
        raise _bad_index(folder, ", ".join(odd[:3]), "plain names of *.safetensors files in the folder")
    return names


def _is_plain_name(name: Any) -> bool:
    plain = isinstance(name, str) and not set(name) & set("/\\:\0") and not name.startswith(".")
    return plain and name.endswith(".safetensors")


def _bad_index(folder: Path, seen: str, expected: str) -> ModelError:
    return ModelError(
        f"{INDEX} in {folder} cannot be used",
        expected=expected,
        seen=seen,
        hint="copy the whole folder that save_pretrained wrote",
        exit_code=65,
    )
