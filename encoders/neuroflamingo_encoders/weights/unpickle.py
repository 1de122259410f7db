"""The process in which a foreign checkpoint is opened: a restricted unpickler, bounded memory and time.

Run by `weights_converting`, never imported by it. One job (JSON) comes in on standard input, one answer goes out on
standard output. The unpickler is torch's own of `torch.load(weights_only=True)`: it calls nothing but the functions
that rebuild tensors and plain containers. With `skip_unknown`, every other name in the file stands for `Inert`, so
that an object of a class that is not here becomes an empty thing; nothing of that name is imported or called.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.state_dict_fit import check_fit, own_names
from neuroflamingo_preprocessing.errors import NeuroFlamingoError

LISTS = ("state_dict", "model_state_dict", "target_encoder", "encoder_ema", "model_ema", "ema", "model", "network",
         "net", "module", "encoder", "backbone", "weights")  # fmt: skip
"""Where trainers keep their weights, the wanted one first where there are several."""
NEVER = {"builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "runpy", "pty", "socket",
         "shutil", "importlib", "ctypes", "io", "_io", "code", "codecs", "pickle", "webbrowser", "operator",
         "functools", "pip", "commands"}  # fmt: skip
"""Modules whose names no checkpoint needs: such a file is an attack, and is refused as one."""
HARMLESS = {"builtins.set", "builtins.frozenset", "builtins.object", "builtins.dict", "builtins.list",
            "builtins.complex", "builtins.slice", "builtins.range", "builtins.bytearray", "builtins.type",
            "builtins.int", "builtins.float", "builtins.str", "builtins.bool", "builtins.tuple"}  # fmt: skip
MAPPINGS = ("collections.defaultdict",)
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
MAX_UNKNOWN = 200


class Inert:
    """What an unknown name in a pickle becomes: takes any arguments and any state, keeps and does nothing."""

    def __new__(cls, *arguments: Any, **_: Any) -> Any:
        # An object made without arguments gets its items afterwards, which torch's unpickler allows for plain
        # dictionaries only.
        """Make an object that does nothing; without arguments, an empty mapping."""
        return super().__new__(cls) if arguments else OrderedDict()

    def __setstate__(self, state: Any) -> None:
        """Forget it."""


class InertMapping:
    """The same for classes whose objects are made with arguments and filled with items afterwards."""

    def __new__(cls, *_: Any) -> Any:
        """Make an empty mapping, whatever the arguments."""
        return OrderedDict()


class Refused(Exception):
    """A file that is not converted: what, expected, seen, hint, as the parent's error takes them."""

    def __init__(self, what: str, **parts: str | None) -> None:
        super().__init__(what)
        self.parts = {"what": what, **parts}


def main() -> None:
    """Read the job, do it, answer. Only `answer` goes to standard output; libraries print to standard error."""
    job = json.loads(sys.stdin.read())
    out = sys.stdout
    sys.stdout = sys.stderr
    try:
        answer = convert(job)
    except Refused as refusal:
        answer = {"refused": refusal.parts}
    except MemoryError:
        answer = {"memory": True}
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        answer = {"memory": True}
    out.write(json.dumps(answer))


def convert(job: dict[str, Any]) -> dict[str, Any]:
    """Open `job["path"]`, choose its weights, and write them to `job["out"]`; gives what was found and done."""
    import torch  # noqa: F401  (before the limit: what torch itself takes does not count)

    path = Path(job["path"])
    _limit(path.stat().st_size, job["memory"], job["seconds"])
    unknown: list[str] = []
    if job["safetensors"]:
        from safetensors.torch import load_file

        loaded: Any = load_file(path)
    else:
        _check_container(path)
        loaded = _load(path, job["skip_unknown"], unknown)
    found = dict(tensor_lists(loaded))
    chosen, tensors, left_out = _choose_and_take(found, job)
    _check_size(tensors, path.stat().st_size)
    _write(tensors, job)
    return {
        "found": {key: sum(map(_is_tensor, dict.values(value))) for key, value in found.items()},
        "chosen": chosen,
        "shapes": {name: list(value.shape) for name, value in tensors.items()},
        "left_out": left_out,
        "unknown": unknown,
    }


def _limit(size: int, memory: int, seconds: int) -> None:
    """Memory (beyond what torch itself takes), processor time and file size; where the system has such limits."""
    try:
        import resource
    except ModuleNotFoundError:
        return
    here = 0
    with contextlib.suppress(OSError):
        here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: 4 * size + 2**26, resource.RLIMIT_CORE: 0}
    if here:
        limits[resource.RLIMIT_AS] = here + memory
    for kind, value in limits.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


def _check_container(path: Path) -> None:
    """A zip must be one that torch wrote: entries stored, not packed, and no program (TorchScript) among them."""
    with path.open("rb") as stream:
        head = stream.read(4)
    if head[:2] == b"\x1f\x8b" or not zipfile.is_zipfile(path):
        if head[:2] == b"\x1f\x8b" or head == b"\x89HDF":
            raise Refused(
                f"{path.name} is not a checkpoint of torch",
                expected="a file that torch.save wrote",
                seen="a gzip file" if head[:2] == b"\x1f\x8b" else "an HDF5 file",
                hint="unpack it and give the checkpoint inside",
            )
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if any(name.endswith("constants.pkl") for name in names):
        raise Refused(
            f"{path.name} holds a program",
            expected="weights alone (a state dict)",
            seen="a TorchScript archive",
            hint="ask its authors for the state dict",
        )
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        raise Refused(
            f"{path.name} is not a checkpoint of torch",
            expected="a zip that torch.save wrote",
            seen=", ".join(names[:5]) or "an empty zip",
            hint="unpack it and give the checkpoint inside",
        )
    if (
        any(e.compress_type != zipfile.ZIP_STORED for e in entries)
        or sum(e.file_size for e in entries) > 2 * path.stat().st_size
    ):
        raise Refused(
            f"{path.name} is packed, which torch.save never does",
            expected="stored entries",
            seen="compressed or overlapping entries",
            hint="get the original file",
        )


def _load(path: Path, skip_unknown: bool, unknown: list[str]) -> Any:
    import torch

    while True:
        allowed: list[Any] = [(InertMapping if name in MAPPINGS else Inert, name) for name in unknown]
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = _unknown_global(str(error))
            if name is None or name in unknown or len(unknown) >= MAX_UNKNOWN:
                raise _cannot_open(path, error) from error
            _refuse_code(path, name)
            if not skip_unknown:
                raise _unknown_class(path, name) from error
            unknown.append(name)
        except MemoryError:
            raise
        except Exception as error:  # a damaged pickle or zip may raise anything
            if isinstance(error, RuntimeError) and "allocate memory" in str(error):
                raise
            raise _cannot_open(path, error) from error


def _unknown_global(message: str) -> str | None:
    """The name that torch's unpickler did not know; it writes names of `builtins` without their module."""
    if "blocked" not in message and "not an allowed global" not in message:
        return None
    match = GLOBAL.search(message)
    if match is None:
        return None
    return match[1] if "." in match[1] else f"builtins.{match[1]}"


def _refuse_code(path: Path, name: str) -> None:
    if name.split(".")[0] in NEVER and name not in HARMLESS:
        raise Refused(
            f"{path.name} asks for code to be run",
            expected="tensors and plain containers",
            seen=f"the function {name}; nothing of it was called",
            hint="do not use this file, and tell whoever gave it to you",
        )


def _unknown_class(path: Path, name: str) -> Refused:
    names = {name}
    with contextlib.suppress(Exception):  # a list of all is a courtesy; legacy files have none
        from torch.serialization import get_unsafe_globals_in_checkpoint

        names.update(get_unsafe_globals_in_checkpoint(str(path)))
    for each in sorted(names):
        _refuse_code(path, each)
    return Refused(
        f"{path.name} holds more than weights",
        expected="tensors and plain containers",
        seen=", ".join(sorted(names)),
        hint="--skip-unknown leaves these objects out (settings of a trainer, mostly) without running anything",
    )


def _cannot_open(path: Path, error: Exception) -> Refused:
    lines = str(error).strip().splitlines() or [""]
    telling = next((line.strip() for line in lines if "error: " in line), lines[0])
    return Refused(
        f"{path.name} cannot be opened as weights",
        expected="a complete file that torch.save wrote, with tensors and plain containers",
        seen=f"{type(error).__name__}: {telling}"[:300],
        hint="copy or download it again",
    )


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def tensor_lists(loaded: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary with tensors in it, by its dotted path (`.` is the file itself), outermost first."""
    if not isinstance(loaded, dict) or depth > 3:
        return
    if any(map(_is_tensor, dict.values(loaded))):
        yield path or ".", loaded
    for key, value in dict.items(loaded):
        if isinstance(key, str):
            yield from tensor_lists(value, f"{path}.{key}" if path else key, depth + 1)


def candidates(found: dict[str, dict[str, Any]], key: str | None) -> list[str]:
    """Which of the found dictionaries may be meant: the one named, else those that trainers use, else the only one."""
    said = ", ".join(f"{k} ({sum(map(_is_tensor, dict.values(v)))})" for k, v in list(found.items())[:12])
    if key is not None or not found:
        if key in found:
            return [str(key)]
        raise Refused(
            "there are no tensors under that key" if found else "the file holds no tensors",
            expected=key or "a state dict",
            seen=said or "none",
            hint="--key with one of these" if found else "check that this is the checkpoint",
        )
    known = [name for name in LISTS if name in found]
    if "." in found and (not known or sum(map(_is_tensor, dict.values(found["."]))) > 1):
        known.insert(0, ".")
    if known or len(found) == 1:
        return known or list(found)
    raise Refused("several parts of the file may be the weights", expected="one", seen=said, hint="--key with one")


def _choose_and_take(found: dict[str, Any], job: dict[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """The first candidate, or with a card the first that fits; its tensors by their new names, and what is left out."""
    refusal: Refused | None = None
    for name in candidates(found, job["key"]):
        tensors, left_out = _take(found[name], job["drop"])
        if job["card"] is None:
            return name, tensors, left_out
        try:
            fitting = _fitted(tensors, job)
        except NeuroFlamingoError as error:
            parts = {"expected": error.expected, "seen": error.seen, "hint": error.hint}
            refusal = refusal or Refused(f"{error.what} (under '{name}')", **parts)
            continue
        kept = set(fitting.values())
        return name, {k: tensors[v] for k, v in fitting.items()}, left_out + [k for k in tensors if k not in kept]
    assert refusal is not None
    raise refusal


def _fitted(tensors: dict[str, Any], job: dict[str, Any]) -> dict[str, str]:
    """The encoder's name of each of its tensors to the file's name, after a strict check."""
    card = EncoderCard.model_validate(job["card"])
    names = own_names(card.weights, tensors)
    check_fit(card, job["own"], {name: tuple(tensors[key].shape) for name, key in names.items()})
    return {name: key for name, key in names.items() if name in job["own"]}


def _take(chosen: dict[str, Any], drop: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Tensors to be written, and names of what is left out on purpose."""
    tensors: dict[str, Any] = {}
    left_out = []
    for key, value in dict.items(chosen):
        if isinstance(key, str) and _is_tensor(value) and not key.startswith(tuple(drop)):
            tensors[key] = value
        else:
            left_out.append(str(key))
    strange = [k for k, v in tensors.items() if str(v.layout) != "torch.strided" or v.is_meta or v.is_quantized]
    if strange or not tensors:
        raise Refused(
            "some tensors cannot be written" if strange else "no tensors are left",
            expected="dense tensors",
            seen=", ".join(strange[:5]) or "none",
            hint="--drop PREFIX leaves them out" if strange else "drop less",
        )
    return tensors, left_out


def _check_size(tensors: dict[str, Any], size: int) -> None:
    """Views that claim far more than the file holds (a stride of 0) are refused before they are copied."""
    claimed = sum(value.numel() * value.element_size() for value in tensors.values())
    if claimed > 3 * size + 2**24:
        raise Refused(
            "the tensors claim more than the file holds",
            expected=f"some {size:,} bytes",
            seen=f"{claimed:,} bytes",
            hint="get the original file",
        )


def _write(tensors: dict[str, Any], job: dict[str, Any]) -> None:
    """Each tensor with memory of its own (tied weights are written twice), in its own kind of number."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    try:
        save_file(plain, job["out"], metadata=job["metadata"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise Refused(
            "the tensors cannot be written", seen=str(error), expected="numbers that safetensors knows"
        ) from error


if __name__ == "__main__":
    main()
