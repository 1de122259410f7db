"""DNA sequences: FASTA or plain text to token ids, by the step that the encoder's card names.

`six_letter_words` is InstaDeep's tokenizer (instadeepai/nucleotide-transformer): the stretches between Ns are cut into
6-mers from the first base on; remaining bases, and each N, are single tokens. Ids: 0 unknown, 1 padding, 2 mask,
3 class, then all 6-mers with bases in the order A, T, C, G, then A, T, C, G and N.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, ScanError
from neuroflamingo_preprocessing.user_files import decode_text

if TYPE_CHECKING:
    from jaxtyping import Int64

    from neuroflamingo_preprocessing.spec import ScanSpec

ENDINGS = (".fa", ".fasta", ".fna", ".txt")
MAX_BYTES = 2**24
WORD = 6
LETTERS = "ATCG"
SPECIAL = ("<unk>", "<pad>", "<mask>", "<cls>")
PADDING, CLASS = SPECIAL.index("<pad>"), SPECIAL.index("<cls>")
STEP = "six_letter_words"


@dataclass(frozen=True)
class Sequence:
    """Sequence prepared for an encoder.

    Attributes:
        ids: token ids, as integers, since half-precision floats could not hold them.
        letters: number of bases.
        sha256, bytes: hash and size of the file.
        warnings: problems that do not make the sequence unusable.
    """

    ids: Int64[np.ndarray, " token"]
    letters: int
    sha256: str
    bytes: int
    warnings: tuple[str, ...] = ()


def is_sequence_file(source: object) -> bool:
    """Tell whether a source has the ending of a sequence file."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in ENDINGS


def read_sequence(path: Path, spec: ScanSpec) -> Sequence:
    """Read one DNA sequence and cut it into the tokens of an encoder.

    Args:
        path: FASTA with one record, or plain text.
        spec: `card.scan` of the encoder.

    Raises:
        NotFoundError: no such file (exit 66).
        ScanError: several records, other letters, no text, or a number of tokens that the encoder does not take (65).
        ModelError: the card names an unknown step (exit 65).
    """
    check_sequence_spec(spec)
    if not path.is_file():
        raise NotFoundError(
            f"there is no file {path}", expected="a DNA sequence, as FASTA or text", hint="check the path"
        )
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ScanError(
            f"{path.name} is too long for a sequence", expected=f"at most {MAX_BYTES:,} bytes", seen=f"{size:,}"
        )
    raw = path.read_bytes()
    letters = _letters(raw, path.name)
    token = next(axis for axis in spec.axes if axis.name == "token")
    ids = np.array(word_ids(letters, token.maximum or token.size), np.int64)
    if not token.accepts(len(ids)):
        raise ScanError(
            f"{path.name} does not have a length that the encoder takes",
            expected=token.describe(),
            seen=f"{len(ids)} tokens, including the class token",
            hint="cut the sequence to a region of that length",
        )
    return Sequence(ids, len(letters), hashlib.sha256(raw).hexdigest(), len(raw))


def check_sequence_spec(spec: ScanSpec) -> None:
    """Check that `read_sequence` can do what a spec asks for.

    Raises:
        ModelError: no step, or another one (exit 65).
    """
    if [step.name for step in spec.steps] != [STEP]:
        raise ModelError(
            "this encoder's sequences cannot be prepared from a file",
            expected=f"the step {STEP}",
            seen=", ".join(step.name for step in spec.steps) or "no step",
            hint="give ready ids as .npy",
            exit_code=65,
        )


def _letters(raw: bytes, name: str) -> str:
    try:
        lines = decode_text(raw).encode("ascii").decode().splitlines()
    except UnicodeError as error:
        raise ScanError(
            f"{name} is not a DNA sequence",
            expected="letters A, C, G, T and N",
            seen=str(error),
            hint="save it as text",
        ) from error
    headers = [line for line in lines if line.startswith(">")]
    if len(headers) > 1:
        raise ScanError(
            f"{name} contains {len(headers)} sequences",
            expected="one record",
            seen=f"headers of {len(headers)} records",
            hint="write one file for each sequence, one <image> each",
        )
    return "".join("".join(line.split()) for line in lines if not line.startswith((">", ";")))


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Map tokens to ids, in the published order."""
    words = ("".join(letters) for letters in product(LETTERS, repeat=WORD))
    return {token: number for number, token in enumerate((*SPECIAL, *words, *LETTERS, "N"))}


def word_ids(text: str, longest: int | None = None) -> list[int]:
    """Convert one DNA sequence to ids, class token first; white space is ignored, lower case counts as upper case.

    Args:
        text: the sequence.
        longest: maximum number of tokens, including the class token.

    Raises:
        ScanError: an empty sequence, letters other than A, C, G, T and N, or more tokens than `longest`.
    """
    letters = "".join(text.split()).upper()
    foreign = sorted(set(letters) - set(LETTERS + "N"))
    if foreign or not letters:
        raise ScanError(
            "the DNA sequence cannot be read",
            expected="letters A, C, G, T and N",
            seen=f"{', '.join(foreign[:8])}" if foreign else "an empty sequence",
            hint="leave out FASTA headers, write T for U and N for other letters" if foreign else "check the region",
        )
    tokens: list[str] = []
    for number, stretch in enumerate(letters.split("N")):
        tokens += ["N"] * (number > 0) + _words(stretch)
    if longest is not None and len(tokens) + 1 > longest:
        raise ScanError(
            "the DNA sequence is too long",
            expected=f"at most {longest - 1} tokens ({(longest - 1) * WORD} letters without N)",
            seen=f"{len(tokens)} tokens",
            hint="cut it into several sequences, one <image> each",
        )
    known = vocabulary()
    return [CLASS, *(known[token] for token in tokens)]


def _words(stretch: str) -> list[str]:
    whole = len(stretch) // WORD * WORD
    return [stretch[i : i + WORD] for i in range(0, whole, WORD)] + list(stretch[whole:])
