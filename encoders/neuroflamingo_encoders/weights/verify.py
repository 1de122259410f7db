"""`verify_weights`: check weight files for completeness, hash, fit to an encoder, and finite numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_encoders.build import outline
from neuroflamingo_encoders.registry import encoder_card, list_encoders
from neuroflamingo_encoders.state_dict_fit import check_hash, misfits, own_names
from neuroflamingo_encoders.weights.cache import READY, how_to_get, weight_files, weights_folder
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, NotFoundError
from neuroflamingo_preprocessing.files import sha256_of

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard

MAX_HEADER_BYTES = 100_000_000
SHOWN = 3


@dataclass(frozen=True)
class VerifyResult:
    """Result of checking a weight file.

    Attributes:
        path, bytes, sha256: the file.
        encoder: encoder that it was compared with; None: with none.
        tensors, parameters: numbers of tensors and parameters.
        pinned: True if the card declares the hash (or that of the file it was converted from).
        problems: reasons not to use it; empty for a sound file.
        notes: remarks for the user.
    """

    path: str
    bytes: int
    sha256: str
    encoder: str | None
    tensors: int
    parameters: int
    pinned: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with the file."""
        return not self.problems


def verify_weights(what: Sequence[str | Path] = (), *, encoder: str | None = None) -> list[VerifyResult]:
    """Check weight files.

    Args:
        what: files, and names of encoders (all their local files are checked); empty: every file in the home folder.
        encoder: encoder that the given files must fit; None: the encoder whose folder a file is in, or that
            `convert_weights` noted in it, else none.

    Raises:
        NotFoundError: neither a file nor an encoder.
        ModelError: an encoder without local files (exit 69).
    """
    names = list_encoders()
    if not what:
        return [verify_file(path, name) for name in names for path in weight_files(name)]
    found = []
    for item in map(str, what):
        if item in names and not Path(item).is_file():
            found += [verify_file(path, item) for path in _files_of(item)]
        elif Path(item).is_file():
            found.append(verify_file(Path(item), encoder or _owner(Path(item), names)))
        else:
            raise NotFoundError(
                f"there is no file and no encoder {item}",
                expected="a weight file, or a name of `neuroflamingo encoders list`",
                hint="check the path or the spelling",
            )
    return found


def _files_of(name: str) -> list[Path]:
    files = weight_files(name)
    if not files:
        card = encoder_card(name)
        raise ModelError(
            f"the weights of '{name}' are not installed",
            expected=f"a file in {weights_folder(name)}",
            hint="there is nothing to verify" if card.weights.source == "embedded" else how_to_get(card),
        )
    return files


def _owner(path: Path, names: Sequence[str]) -> str | None:
    folder = path.absolute().parent.name
    return folder if folder in names and weights_folder(folder).absolute() == path.absolute().parent else None


def verify_file(path: Path, encoder: str | None = None, *, part: str = "") -> VerifyResult:
    """Check one file; its faults are in the result, not raised.

    Args:
        path: the file.
        encoder: encoder to compare names and shapes with.
        part: compare only tensors with this prefix, which is removed (an encoder within a model).
    """
    seen, size = sha256_of(path), path.stat().st_size
    problems: list[str] = []
    notes: list[str] = []
    tensors = parameters = 0
    pinned = False
    if path.suffix == READY:
        try:
            shapes, metadata, faults = _contents(path)
        except NeuroFlamingoError as failure:
            problems.append(f"{failure.what}: {failure.seen}")
        else:
            tensors, parameters = len(shapes), sum(map(_count, shapes.values()))
            problems += faults
            encoder = encoder or _named_in(metadata)
            inside = {key.removeprefix(part): shape for key, shape in shapes.items() if key.startswith(part)}
            pinned = _compare(path, seen, encoder, inside, metadata.get("converted_from_sha256"), problems, notes)
    else:
        notes.append("not safetensors: never loaded; neuroflamingo models convert makes a file that is")
        if encoder is not None:
            pinned = _compare(path, seen, encoder, None, None, problems, notes)
    if encoder is None:
        notes.append("not compared with any encoder; --encoder NAME does that")
    return VerifyResult(str(path), size, seen, encoder, tensors, parameters, pinned, tuple(problems), tuple(notes))


def _named_in(metadata: dict[str, str]) -> str | None:
    name = metadata.get("encoder")
    return name if name in list_encoders() else None


def _compare(
    path: Path,
    seen: str,
    encoder: str | None,
    shapes: dict[str, list[int]] | None,
    converted_from: str | None,
    problems: list[str],
    notes: list[str],
) -> bool:
    """Compare a file with a card, adding to problems and notes; gives whether the card declares its hash."""
    if encoder is None:
        return False
    try:
        card = encoder_card(encoder)
        _compare_hash(card, path, seen, converted_from, notes, has_own_name=shapes is not None)
        if shapes is not None:
            names = own_names(card.weights, shapes)
            problems += misfits(card.weights, outline(card), {name: shapes[key] for name, key in names.items()})
    except NeuroFlamingoError as failure:
        problems.append(f"{failure.what}: {failure.seen}")
        return False
    return card.weights.sha256 is not None


def _compare_hash(
    card: EncoderCard, path: Path, seen: str, converted_from: str | None, notes: list[str], *, has_own_name: bool
) -> None:
    if card.weights.sha256 is None:
        notes.append("hash unknown: the card declares none")
    elif has_own_name or path.name == Path(card.weights.file or "").name:
        check_hash(card, path, seen, converted_from)


def _count(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _contents(path: Path) -> tuple[dict[str, list[int]], dict[str, str], list[str]]:
    """Shapes, metadata and faults of a safetensors file; one tensor at a time is in memory.

    Raises:
        ModelError: the header is damaged, or bytes are missing (exit 65).
    """
    import torch
    from safetensors import SafetensorError, safe_open

    _check_length(path)
    shapes: dict[str, list[int]] = {}
    bad: list[str] = []
    try:
        with safe_open(path, "pt") as stream:
            metadata: dict[str, Any] = stream.metadata() or {}
            for name in stream.keys():  # noqa: SIM118  (not a dictionary)
                tensor = stream.get_tensor(name)
                shapes[name] = list(tensor.shape)
                if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
                    bad.append(name)
    except (SafetensorError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{path.name} is damaged", seen=str(error), exit_code=65) from error
    faults = [f"{len(bad)} tensors hold numbers that are not finite ({', '.join(bad[:SHOWN])})"] if bad else []
    return shapes, metadata, faults + ([] if shapes else ["there are no tensors in it"])


def _check_length(path: Path) -> None:
    """Check the length of the header before anything relies on it."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if size < 8 or header > min(MAX_HEADER_BYTES, size - 8):
        raise ModelError(
            f"{path.name} is damaged", seen=f"a header of {header:,} bytes in a file of {size:,}", exit_code=65
        )
