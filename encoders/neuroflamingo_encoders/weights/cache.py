"""Where encoders' weights lie on this machine: one folder per encoder under the home folder. No torch, no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from neuroflamingo_encoders.registry import encoder_card, list_encoders
from neuroflamingo_preprocessing.cache_home import home_folder
from neuroflamingo_preprocessing.errors import NeuroFlamingoError

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard, Weights

READY = ".safetensors"
FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".tar")
NOTE = ".source.json"


@dataclass(frozen=True)
class WeightsRow:
    """What is known of one encoder's weights without any network.

    Attributes:
        name: of the encoder.
        source, file, revision, sha256: as its card says; `sha256` None: the hash is not known.
        licence, terms: the licence's name, and what it permits in words.
        gated: whether terms must be accepted before the download.
        present: whether a file that can be loaded is here.
        path, bytes: that file, or else the newest one that must be converted first.
    """

    name: str
    source: str
    file: str | None
    revision: str | None
    sha256: str | None
    licence: str
    terms: str
    gated: bool
    present: bool
    path: str | None
    bytes: int | None


def weights_folder(name: str) -> Path:
    """The folder of an encoder's weights. It is not created by asking."""
    return home_folder() / "weights" / name


def weight_files(name: str) -> list[Path]:
    """Finished weight files of an encoder, those that can be loaded first."""
    folder = weights_folder(name)
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix in (READY, *FOREIGN)]
    return sorted(files, key=lambda path: (path.suffix != READY, path.stem != name, path.name))


def find_weights(name: str) -> Path | None:
    """The safetensors file of an encoder in its folder: the one that bears its name, else the only one, else None."""
    ready = [path for path in weight_files(name) if path.suffix == READY]
    return ready[0] if ready and (len(ready) == 1 or ready[0].stem == name) else None


def list_weights() -> list[WeightsRow]:
    """All encoders' weights; an encoder whose card cannot be read says so in its row."""
    return [_row(name) for name in list_encoders()]


def _row(name: str) -> WeightsRow:
    try:
        card = encoder_card(name)
    except NeuroFlamingoError as failure:
        return WeightsRow(name, failure.what, None, None, None, "", failure.expected or "", False, False, None, None)
    weights, found = card.weights, find_weights(name)
    shown = found or next(iter(weight_files(name)), None)
    return WeightsRow(
        name=name,
        source=weights.source,
        file=weights.file,
        revision=weights.revision,
        sha256=weights.sha256,
        licence=weights.licence,
        terms=permits(weights),
        gated=weights.gated,
        present=found is not None,
        path=None if shown is None else str(shown),
        bytes=None if shown is None else shown.stat().st_size,
    )


def permits(weights: Weights) -> str:
    """A licence's terms in words."""
    terms = {
        "commercial use": weights.commercial,
        "redistribution": weights.redistribution,
        "derivatives": weights.derivatives,
    }
    words = [name if permitted else f"no {name}" for name, permitted in terms.items()]
    return ", ".join(words) + (", terms must be accepted first" if weights.gated else "")


def how_to_get(card: EncoderCard) -> str:
    """One thing to do for an encoder whose weights are not here."""
    source = card.weights.source
    if source == "none":
        return "none were released: train them, or say --init random"
    if fetchable(card.weights):
        return f"neuroflamingo models fetch {card.name}"
    return f"get the file from {source}, then: neuroflamingo models convert FILE --encoder {card.name}"


def fetchable(weights: Weights) -> bool:
    """Whether `fetch_weights` can download them: from a hub repository, or from an address that is the file itself."""
    return hub_repository(weights.source) is not None or _is_file_address(weights)


def hub_repository(source: str) -> str | None:
    """`owner/name` for an address of a hub repository, else None."""
    scheme, _, rest = source.partition("://")
    host, *parts = rest.rstrip("/").split("/")
    return "/".join(parts) if scheme == "https" and host == "huggingface.co" and len(parts) == 2 else None


def _is_file_address(weights: Weights) -> bool:
    name = PurePosixPath(weights.source.partition("?")[0]).name
    direct = weights.source.startswith("https://") or is_local(weights.source)
    return direct and (name == weights.file or PurePosixPath(name).suffix in (READY, *FOREIGN))


def is_local(address: str) -> bool:
    """An address on this machine, the only ones that may be without encryption."""
    return address.startswith(("http://127.0.0.1:", "http://localhost:"))
