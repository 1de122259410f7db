"""`fetch_weights`: download an encoder's published weights, on request only."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_encoders.state_dict_fit import check_hash
from neuroflamingo_encoders.weights.cache import NOTE, READY, fetchable, hub_repository, weights_folder
from neuroflamingo_encoders.weights.http_download import Progress, Remote, download, remove_part
from neuroflamingo_encoders.weights.hub import find_on_hub
from neuroflamingo_preprocessing.errors import ModelError, OutputError, UsageError
from neuroflamingo_preprocessing.files import sha256_of, write_text_atomic

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class FetchResult:
    """Downloaded weight file.

    Attributes:
        name: name of the encoder.
        path: path of the file.
        sha256, bytes: hash and size of the file.
        source, revision: where it came from, and the commit for a hub.
        pinned: True if the card declares this hash. If not, only the source vouches for the file.
        declared: hash that the source itself gives; None if it gives none.
        resumed_from: bytes left by an earlier, interrupted download.
        ready: True if it can be loaded as it is; else it must be converted.
    """

    name: str
    path: str
    sha256: str
    bytes: int
    source: str
    revision: str | None
    pinned: bool
    declared: str | None
    resumed_from: int
    ready: bool


def fetch_weights(
    name: str,
    *,
    file: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FetchResult:
    """Download an encoder's weights into its folder; the file gets its name only after its hash was checked.

    An existing file is checked, not downloaded again. The next call resumes an interrupted download.

    Args:
        name: one of `list_encoders`.
        file, revision: another file or commit of the hub repository than the card's.
        overwrite: download again.
        progress: called with (bytes so far, total bytes).

    Raises:
        ModelError: no network or offline mode, not downloadable, no access (exit 69); another hash (exit 65).
        UsageError: `file` or `revision` for weights that are not on a hub.
        OutputError: the folder cannot be written (exit 73 or 74); another process is fetching there (exit 75).
    """
    card = encoder_card(name)
    _refuse_unfetchable(card, file, revision)
    _refuse_offline(card)
    folder = weights_folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            return _fetch(card, folder, file, revision, overwrite, progress)
    except Timeout as error:
        raise OutputError(
            f"another process is fetching the weights of '{name}'", hint="wait for it", exit_code=75
        ) from error
    except OSError as error:
        raise OutputError(
            f"the folder {folder} cannot be written",
            expected="a writable folder",
            seen=error.strerror or str(error),
            hint="set NEUROFLAMINGO_HOME to a writable folder",
        ) from error


def _refuse_unfetchable(card: EncoderCard, file: str | None, revision: str | None) -> None:
    weights = card.weights
    if weights.source in ("none", "embedded"):
        there = weights.source == "embedded"
        raise ModelError(
            f"'{card.name}' has no weights to fetch",
            expected="an encoder with published weights",
            seen="they are in the package" if there else f"none are published ({weights.licence})",
            hint="use it as it is" if there else "use it without, or train it",
        )
    if not fetchable(weights):
        raise ModelError(
            f"the weights of '{card.name}' cannot be fetched by a program",
            expected="a hub repository, or the address of a file",
            seen=weights.source,
            hint=f"download {weights.file or 'the file'} with a browser, mind the licence ({weights.licence}), then: "
            f"neuroflamingo models convert FILE --encoder {card.name}",
        )
    if (file or revision) and hub_repository(weights.source) is None:
        raise UsageError(f"the weights of '{card.name}' are one file", expected="neither --file nor --revision")


def _refuse_offline(card: EncoderCard) -> None:
    variable = next((v for v in OFFLINE if os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE")), None)
    if variable:
        raise ModelError(
            f"the weights of '{card.name}' are not fetched: the network is switched off",
            expected=f"{variable} unset",
            seen=f"{variable}={os.environ[variable]}",
            hint=f"unset {variable}, or fetch elsewhere and copy the file into {weights_folder(card.name)}",
        )


def _fetch(
    card: EncoderCard, folder: Path, file: str | None, revision: str | None, overwrite: bool, progress: Progress | None
) -> FetchResult:
    repository = hub_repository(card.weights.source)
    if repository is None:
        name = card.weights.file or PurePosixPath(card.weights.source.partition("?")[0]).name
        remote, commit, declared = Remote(card.weights.source), None, None
    else:
        found = find_on_hub(card, repository, file, revision)
        name, remote, commit, declared = found.file, found.remote, found.commit, found.sha256
    target = folder / PurePosixPath(name).name  # the last part only: a server must not choose the folder
    resumed = 0
    if overwrite or not target.is_file():
        part = folder / f"{target.name}.part"
        pinned = card.weights.sha256 is not None or declared is not None
        resumed = download(remote, part, progress, trusted=pinned)
        _check(card, part, declared)
        os.replace(part, target)
        remove_part(part)
    seen = sha256_of(target)
    check_hash(card, target, seen)
    if declared and seen != declared:
        raise ModelError(
            f"{target} is not the version that {card.weights.source} offers now",
            expected=f"SHA-256 {declared} at {commit}",
            seen=seen,
            hint="--overwrite downloads the one offered, --revision names the one that is here",
            exit_code=65,
        )
    fetched = FetchResult(
        name=card.name,
        path=str(target),
        sha256=seen,
        bytes=target.stat().st_size,
        source=card.weights.source,
        revision=commit,
        pinned=card.weights.sha256 is not None,
        declared=declared,
        resumed_from=resumed,
        ready=target.suffix == READY,
    )
    note = json.dumps(asdict(fetched) | {"path": target.name, "licence": card.weights.licence}, indent=2)
    write_text_atomic(folder / f"{target.name}{NOTE}", note + "\n", overwrite=True)
    return fetched


def _check(card: EncoderCard, part: Path, declared: str | None) -> None:
    """Refuse and remove a download whose hash is not that of the card or of the source itself."""
    seen = sha256_of(part)
    for wanted, whose in ((card.weights.sha256, f"the card of '{card.name}'"), (declared, "the source itself")):
        if wanted and seen != wanted:
            remove_part(part)
            raise ModelError(
                f"the download of {part.name.removesuffix('.part')} is not the file that {whose} declares",
                expected=f"SHA-256 {wanted}",
                seen=f"{seen}; it was removed",
                hint="run the same command again; if this repeats, do not use the file and tell its authors",
                exit_code=65,
            )
