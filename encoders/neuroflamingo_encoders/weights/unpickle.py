"""Process that opens a foreign checkpoint with a restricted unpickler and limited memory and time.

Run by `convert`, never imported by it. One job (JSON) comes in on standard input, one answer goes out on standard
output. The unpickler is torch's own, of `torch.load(weights_only=True)`: it calls only the functions that rebuild
tensors and plain containers. With `skip_unknown`, every other name in the file is replaced by `Inert`, so that an
object of an unknown class becomes an empty one; nothing of that name is imported or called.
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
"""Keys under which trainers store weights, in order of preference."""
NEVER = {"builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "runpy", "pty", "socket",
         "shutil", "importlib", "ctypes", "io", "_io", "code", "codecs", "pickle", "webbrowser", "operator",
         "functools", "pip", "commands"}  # fmt: skip
"""Modules whose names no checkpoint needs: such a file is refused as an attack."""
HARMLESS = {"builtins.set", "builtins.frozenset", "builtins.object", "builtins.dict", "builtins.list",
            "builtins.complex", "builtins.slice", "builtins.range", "builtins.bytearray", "builtins.type",
            "builtins.int", "builtins.float", "builtins.str", "builtins.bool", "builtins.tuple"}  # fmt: skip
MAPPINGS = ("collections.defaultdict",)
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
MAX_UNKNOWN = 200


class Inert:
    """Substitute for unknown names in a pickle: accepts any arguments and any state, and does nothing."""

    def __new__(cls, *arguments: Any, **_: Any) -> Any:
        # An object made without arguments gets its items afterwards, which torch's unpickler allows for plain
        # dictionaries only.
        """Make an object that does nothing; without arguments, an empty mapping."""
        return super().__new__(cls) if arguments else OrderedDict()

    def __setstate__(self, state: Any) -> None:
        """Discard the state."""


class InertMapping:
    """Substitute for classes whose objects are made with arguments and filled with items afterwards."""

    def __new__(cls, *_: Any) -> Any:
        """Make an empty mapping, whatever the arguments."""
        return OrderedDict()


class Refusal(Exception):
    """Refusal of a file: what, expected, seen and hint, as the error of the parent process takes them."""

    def __init__(self, what: str, **parts: str | None) -> None:
        super().__init__(what)
        self.parts = {"what": what, **parts}


def main() -> None:
    """Read the job, run it, and answer. Only the answer goes to standard output; libraries print to standard error."""
    job = json.loads(sys.stdin.read())
    out = sys.stdout
    sys.stdout = sys.stderr
    try:
        answer = convert(job)
    except Refusal as refusal:
        answer = {"refused": refusal.parts}
    except MemoryError:
        answer = {"memory": True}
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        answer = {"memory": True}
    out.write(json.dumps(answer))


def convert(job: dict[str, Any]) -> dict[str, Any]:
    """Open `job["path"]`, choose its weights, write them to `job["out"]`, and give the answer."""
    import torch  # noqa: F401  (before the limits: torch's own memory does not count)

    path = Path(job["path"])
    _limit(path.stat().st_size, job["memory"], job["seconds"])
    unknown: list[str] = []
    if job["safetensors"]:
        from safetensors.torch import load_file

        loaded: Any = load_file(path)
    else:
        _check_container(path)
        loaded = _load(path, job["skip_unknown"], unknown)
    dictionaries = dict(tensor_lists(loaded))
    chosen, tensors, left_out = _choose_and_take(dictionaries, job)
    _check_size(tensors, path.stat().st_size)
    _write(tensors, job)
    return {
        "found": {key: sum(map(_is_tensor, dict.values(value))) for key, value in dictionaries.items()},
        "chosen": chosen,
        "shapes": {name: list(value.shape) for name, value in tensors.items()},
        "left_out": left_out,
        "unknown": unknown,
    }


def _limit(size: int, memory: int, seconds: int) -> None:
    """Limit memory (on top of torch's own), processor time and file size, where the system supports it."""
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
    """Check that a zip file is one that torch wrote: entries stored, not compressed, and no program (TorchScript)."""
    with path.open("rb") as stream:
        head = stream.read(4)
    if head[:2] == b"\x1f\x8b" or not zipfile.is_zipfile(path):
        if head[:2] == b"\x1f\x8b" or head == b"\x89HDF":
            raise Refusal(
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
        raise Refusal(
            f"{path.name} holds a program",
            expected="weights alone (a state dict)",
            seen="a TorchScript archive",
            hint="ask its authors for the state dict",
        )
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        raise Refusal(
            f"{path.name} is not a checkpoint of torch",
            expected="a zip that torch.save wrote",
            seen=", ".join(names[:5]) or "an empty zip",
            hint="unpack it and give the checkpoint inside",
        )
    if (
        any(e.compress_type != zipfile.ZIP_STORED for e in entries)
        or sum(e.file_size for e in entries) > 2 * path.stat().st_size
    ):
        raise Refusal(
            f"{path.name} is compressed, which torch.save never does",
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
    """Name that torch's unpickler did not know, from its message; names of `builtins` come without their module."""
    if "blocked" not in message and "not an allowed global" not in message:
        return None
    match = GLOBAL.search(message)
    if match is None:
        return None
    return match[1] if "." in match[1] else f"builtins.{match[1]}"


def _refuse_code(path: Path, name: str) -> None:
    if name.split(".")[0] in NEVER and name not in HARMLESS:
        raise Refusal(
            f"{path.name} wants to run code",
            expected="tensors and plain containers",
            seen=f"the function {name}; nothing of it was called",
            hint="do not use this file, and tell whoever gave it to you",
        )


def _unknown_class(path: Path, name: str) -> Refusal:
    names = {name}
    with contextlib.suppress(Exception):  # a list of all is a courtesy; legacy files have none
        from torch.serialization import get_unsafe_globals_in_checkpoint

        names.update(get_unsafe_globals_in_checkpoint(str(path)))
    for each in sorted(names):
        _refuse_code(path, each)
    return Refusal(
        f"{path.name} holds more than weights",
        expected="tensors and plain containers",
        seen=", ".join(sorted(names)),
        hint="--skip-unknown leaves out these objects (mostly settings of a trainer) without running anything",
    )


def _cannot_open(path: Path, error: Exception) -> Refusal:
    lines = str(error).strip().splitlines() or [""]
    telling = next((line.strip() for line in lines if "error: " in line), lines[0])
    return Refusal(
        f"{path.name} cannot be opened as weights",
        expected="a complete file that torch.save wrote, with tensors and plain containers",
        seen=f"{type(error).__name__}: {telling}"[:300],
        hint="copy or download it again",
    )


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def tensor_lists(loaded: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every dictionary that holds tensors, by its dotted path (`.` is the file itself), outermost first."""
    if not isinstance(loaded, dict) or depth > 3:
        return
    if any(map(_is_tensor, dict.values(loaded))):
        yield path or ".", loaded
    for key, value in dict.items(loaded):
        if isinstance(key, str):
            yield from tensor_lists(value, f"{path}.{key}" if path else key, depth + 1)


def candidates(dictionaries: dict[str, dict[str, Any]], key: str | None) -> list[str]:
    """Paths of the dictionaries that may hold the weights: the named one, else the usual ones, else the only one."""
    listing = ", ".join(f"{k} ({sum(map(_is_tensor, dict.values(v)))})" for k, v in list(dictionaries.items())[:12])
    if key is not None or not dictionaries:
        if key in dictionaries:
            return [str(key)]
        raise Refusal(
            "there are no tensors under this key" if dictionaries else "the file holds no tensors",
            expected=key or "a state dict",
            seen=listing or "none",
            hint="--key with one of these" if dictionaries else "check that this is the checkpoint",
        )
    known = [name for name in LISTS if name in dictionaries]
    if "." in dictionaries and (not known or sum(map(_is_tensor, dict.values(dictionaries["."]))) > 1):
        known.insert(0, ".")
    if known or len(dictionaries) == 1:
        return known or list(dictionaries)
    raise Refusal("several parts of the file may be the weights", expected="one", seen=listing, hint="--key with one")


def _choose_and_take(dictionaries: dict[str, Any], job: dict[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """First candidate, or with a card the first that fits; its tensors by their new names, and the names left out."""
    refusal: Refusal | None = None
    for name in candidates(dictionaries, job["key"]):
        tensors, left_out = _take(dictionaries[name], job["drop"])
        if job["card"] is None:
            return name, tensors, left_out
        try:
            fitting = _fitted(tensors, job)
        except NeuroFlamingoError as error:
            parts = {"expected": error.expected, "seen": error.seen, "hint": error.hint}
            refusal = refusal or Refusal(f"{error.what} (under '{name}')", **parts)
            continue
        kept = set(fitting.values())
        return name, {k: tensors[v] for k, v in fitting.items()}, left_out + [k for k in tensors if k not in kept]
    assert refusal is not None
    raise refusal


def _fitted(tensors: dict[str, Any], job: dict[str, Any]) -> dict[str, str]:
    """Map the encoder's tensor names to those in the file, after a strict check."""
    card = EncoderCard.model_validate(job["card"])
    names = own_names(card.weights, tensors)
    check_fit(card, job["own"], {name: tuple(tensors[key].shape) for name, key in names.items()})
    return {name: key for name, key in names.items() if name in job["own"]}


def _take(chosen: dict[str, Any], drop: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Tensors to write, and names that are left out on purpose."""
    tensors: dict[str, Any] = {}
    left_out = []
    for key, value in dict.items(chosen):
        if isinstance(key, str) and _is_tensor(value) and not key.startswith(tuple(drop)):
            tensors[key] = value
        else:
            left_out.append(str(key))
    strange = [k for k, v in tensors.items() if str(v.layout) != "torch.strided" or v.is_meta or v.is_quantized]
    if strange or not tensors:
        raise Refusal(
            "some tensors cannot be written" if strange else "no tensors are left",
            expected="dense tensors",
            seen=", ".join(strange[:5]) or "none",
            hint="--drop PREFIX leaves them out" if strange else "drop less",
        )
    return tensors, left_out


def _check_size(tensors: dict[str, Any], size: int) -> None:
    """Refuse views that claim far more than the file holds (a stride of 0), before they are copied."""
    claimed = sum(value.numel() * value.element_size() for value in tensors.values())
    if claimed > 3 * size + 2**24:
        raise Refusal(
            "the tensors claim more than the file holds",
            expected=f"some {size:,} bytes",
            seen=f"{claimed:,} bytes",
            hint="get the original file",
        )


def _write(tensors: dict[str, Any], job: dict[str, Any]) -> None:
    """Write each tensor with memory of its own (tied weights are written twice), in its own dtype."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    try:
        save_file(plain, job["out"], metadata=job["metadata"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise Refusal(
            "the tensors cannot be written", seen=str(error), expected="dtypes that safetensors supports"
        ) from error


if __name__ == "__main__":
    main()
