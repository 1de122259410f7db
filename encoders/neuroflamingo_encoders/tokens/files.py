"""`read_tokens`, `write_tokens`: patch tokens of scans with their provenance, in zarr, npz or safetensors files.

The layout is the same in all three. `about` is JSON: the encoder's card and its digest, the hash of the weights,
software versions. Each scan has `tokens [token, width]`, optionally `mask [token]` and `positions [token, 3]` (template
mm, RAS), and JSON of its own: name, hash of the input, geometry log. In zarr a scan is the group `scans/00000` with its
JSON as attributes; in the others arrays are named `scans/00000/tokens`, and all JSON is under `about`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_encoders.card import EncoderCard, current_digest
from neuroflamingo_encoders.tokens.arrays import pack_npz, pack_safetensors, read_npz, read_safetensors
from neuroflamingo_encoders.tokens.format import FORMAT, KINDS, VERSION, ScanTokens, damaged
from neuroflamingo_encoders.tokens.zarr import check_store_target, read_store, write_store
from neuroflamingo_preprocessing.arrays import BROKEN_ZIP
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, OutputError, UsageError
from neuroflamingo_preprocessing.files import check_writable, write_bytes_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENDINGS = (".zarr", ".npz", ".safetensors")


@dataclass(frozen=True)
class TokenFile:
    """Content of a token file.

    Attributes:
        scans: tokens of the scans, in the order in which they were written.
        metadata: of the whole file; empty for arrays of another program.
        card: card of the encoder that made the tokens; None if the file has none.
    """

    scans: tuple[ScanTokens, ...]
    metadata: Mapping[str, Any]
    card: EncoderCard | None

    def batch(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Tokens `[1, scan, token, width]` and mask `[1, scan, token]`; shorter scans are padded with zeros."""
        longest = max(len(scan.tokens) for scan in self.scans)
        tokens = np.zeros((1, len(self.scans), longest, self.scans[0].tokens.shape[1]), self.scans[0].tokens.dtype)
        mask = np.zeros((1, len(self.scans), longest), bool)
        for number, scan in enumerate(self.scans):
            tokens[0, number, : len(scan.tokens)] = scan.tokens
            mask[0, number, : len(scan.tokens)] = True if scan.mask is None else scan.mask
        return tokens, mask


def check_token_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """Check an output before the long work.

    Raises:
        UsageError: another extension.
        OutputError: it exists (a folder is replaced only if it is a zarr store), or cannot be created (exit 73).
    """
    target = Path(path)
    if target.suffix not in ENDINGS:
        raise UsageError(
            f"-o {target.name}: the extension is not one of a token file",
            expected=" or ".join(ENDINGS),
            seen=target.suffix or "no extension",
            hint=f"-o {target.name}.zarr",
        )
    if target.suffix != ".zarr":
        return check_writable(target, overwrite=overwrite)

    return check_store_target(target, overwrite=overwrite)


def write_tokens(
    path: str | Path, scans: Iterable[ScanTokens], metadata: Mapping[str, Any], *, overwrite: bool = False
) -> int:
    """Write tokens of scans atomically.

    Args:
        path: file name ending in `.zarr` (written scan by scan, not gathered in memory), `.npz` or `.safetensors`.
        scans: tokens of the scans; may be a generator.
        metadata: of the whole file (see `describe_tokens`).
        overwrite: replace an existing output.

    Returns:
        Number of scans.

    Raises:
        UsageError, OutputError: see `check_token_target`; no scans at all.
    """
    target = check_token_target(path, overwrite=overwrite)
    head = {"format": FORMAT, "version": VERSION, **metadata}
    if target.suffix == ".zarr":
        return write_store(target, scans, head, overwrite=overwrite)
    return _write_one_file(target, list(scans), head, overwrite)


def describe_tokens(card: EncoderCard, weights: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Metadata of tokens that an encoder made.

    Args:
        card: card of the encoder.
        weights: `file` and `sha256` of its weights, or how they were initialised.
        more: other plain data, for instance software versions.
    """
    return {
        "encoder": card.name,
        "card": card.model_dump(mode="json"),
        "card_digest": card.digest,
        "weights": dict(weights),
        **more,
    }


def read_tokens(path: str | Path, *, card: EncoderCard | None = None) -> TokenFile:
    """Read a token file; pickles, links and arrays larger than the file can hold are refused.

    An `.npz` or `.safetensors` file of another program may hold one array `tokens [token, width]`, and `mask`.

    Args:
        path: see `write_tokens`.
        card: card of the encoder that must have made the tokens, or of `precomputed` with a width and optionally a
            number of tokens; None accepts any.

    Raises:
        NotFoundError: no such file.
        ModelError: damaged, or other tokens (exit 65).
    """
    source = Path(path)
    if not source.exists():
        raise NotFoundError(f"there is no token file {source}", expected=" or ".join(ENDINGS), hint="check the path")
    if source.suffix not in ENDINGS:
        raise UsageError(f"{source.name} is not a token file", expected=" or ".join(ENDINGS), seen=source.suffix)
    if source.suffix == ".zarr":
        read = read_store
    elif source.suffix == ".npz":
        read = read_npz
    else:
        read = read_safetensors
    try:
        scans, metadata = read(source)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, *BROKEN_ZIP) as error:
        raise damaged(source, f"{type(error).__name__}: {error}") from error
    return _checked(source, scans, metadata, card)


def _checked(path: Path, scans: list[ScanTokens], metadata: dict[str, Any], card: EncoderCard | None) -> TokenFile:
    if not scans:
        raise damaged(path, "no scans in it")
    if metadata and (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise damaged(path, f"{metadata.get('format')}, version {metadata.get('version')}; this is version {VERSION}")
    for number, scan in enumerate(scans):
        _check_arrays(path, number, scan)
    own = _card_in(path, metadata)
    if own is not None:
        _check_against(path, scans, own)
    if card is not None:
        if card.name != "precomputed" and (own is None or own.digest != card.digest):
            raise _wrong_tokens(path, f"the card of '{card.name}', digest {card.digest}", _card_in_words(own))
        _check_against(path, scans, card)
    return TokenFile(tuple(scans), metadata, own)


def _card_in_words(card: EncoderCard | None) -> str:
    return "no card" if card is None else f"the card of '{card.name}', digest {card.digest}"


def _check_arrays(path: Path, number: int, scan: ScanTokens) -> None:
    for name, value in scan.arrays.items():
        if value.dtype.name not in KINDS[name]:
            raise damaged(path, f"{name} of scan {number} are {value.dtype.name}")
    count = len(scan.tokens) if scan.tokens.ndim == 2 else -1
    shapes = {name: list(value.shape) for name, value in scan.arrays.items()}
    lengths = scan.mask is not None and scan.mask.shape != (count,)
    places = scan.positions is not None and scan.positions.shape != (count, 3)
    if count < 1 or lengths or places:
        raise damaged(path, f"arrays of scan {number} have the shapes {shapes}")


def _card_in(path: Path, metadata: Mapping[str, Any]) -> EncoderCard | None:
    """Card stored in the file, whose digest must be the one stored beside it."""
    if "card" not in metadata:
        return None
    try:
        card = EncoderCard.model_validate(metadata["card"])
    except ValueError as error:
        raise damaged(path, f"its card: {error}") from error
    if card.digest != current_digest(metadata["card"], metadata.get("card_digest")):
        raise damaged(path, "its card does not have the digest stored beside it")
    return card


def _check_against(path: Path, scans: list[ScanTokens], card: EncoderCard) -> None:
    width, count = card.output.width, card.output.tokens
    for scan in scans:
        wrong_count = isinstance(count, int) and not card.output.variable_length and len(scan.tokens) != count
        if scan.tokens.shape[1] != width or wrong_count:
            wanted = f"{count if isinstance(count, int) else 'any number of'} tokens of width {width}"
            raise _wrong_tokens(
                path, f"{wanted}, as the card of '{card.name}' says", f"shape {list(scan.tokens.shape)}"
            )


def _wrong_tokens(path: Path, expected: str, seen: str) -> ModelError:
    return ModelError(
        f"{path.name} does not hold the tokens that were asked for",
        expected=expected,
        seen=seen,
        hint="encode the scans again with this encoder",
        exit_code=65,
    )


def _write_one_file(target: Path, scans: list[ScanTokens], head: dict[str, Any], overwrite: bool) -> int:
    if not scans:
        raise OutputError(f"{target.name}: there is nothing to write", expected="at least one scan")
    arrays = {f"scans/{i:05}/{k}": v for i, scan in enumerate(scans) for k, v in scan.arrays.items()}
    text = json.dumps(head | {"scans": [dict(scan.metadata) for scan in scans]})
    pack = pack_npz if target.suffix == ".npz" else pack_safetensors
    write_bytes_atomic(target, pack(arrays, text), overwrite=overwrite)
    return len(scans)
