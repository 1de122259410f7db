"""Local weights of encoders: one folder per encoder in the home folder. No torch, no network."""

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
    """State of an encoder's weights, as known without network.

    Attributes:
        name: name of the encoder.
        source, file, revision, sha256: from its card; `sha256` is None if the hash is not known.
        licence, terms: name of the licence, and what it permits in words.
        gated: True if terms must be accepted before the download.
        present: True if there is a local file that can be loaded.
        path, bytes: that file, or else one that must be converted first.
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
    """Folder of an encoder's weights; it is not created."""
    return home_folder() / "weights" / name


def weight_files(name: str) -> list[Path]:
    """Complete weight files of an encoder, those that can be loaded first."""
    folder = weights_folder(name)
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix in (READY, *FOREIGN)]
    return sorted(files, key=lambda path: (path.suffix != READY, path.stem != name, path.name))


def find_weights(name: str) -> Path | None:
    """Safetensors file of an encoder in its folder: the one with its name, else the only one, else None."""
    ready = [path for path in weight_files(name) if path.suffix == READY]
    return ready[0] if ready and (len(ready) == 1 or ready[0].stem == name) else None


def list_weights() -> list[WeightsRow]:
    """State of the weights of all encoders; the row of an encoder without a readable card holds its error."""
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
    """Terms of a licence in words."""
    terms = {
        "commercial use": weights.commercial,
        "redistribution": weights.redistribution,
        "derivatives": weights.derivatives,
    }
    words = [name if permitted else f"no {name}" for name, permitted in terms.items()]
    return ", ".join(words) + (", terms must be accepted first" if weights.gated else "")


def how_to_get(card: EncoderCard) -> str:
    """Hint for an encoder whose weights are not on this machine."""
    source = card.weights.source
    if source == "none":
        return "none were released: train them, or begin with random ones"
    if fetchable(card.weights):
        return f"neuroflamingo models fetch {card.name}"
    return f"get the file from {source}, then: neuroflamingo models convert FILE --encoder {card.name}"


def fetchable(weights: Weights) -> bool:
    """True if `fetch_weights` can download the weights: from a hub repository, or an address of the file itself."""
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
    """True for an address on this machine; only those may be unencrypted."""
    return address.startswith(("http://127.0.0.1:", "http://localhost:"))
