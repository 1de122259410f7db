"""`build_encoder`: build an encoder from its card, load its weights strictly, and freeze it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_encoders.contract import BrainEncoder
from neuroflamingo_encoders.registry import encoder_card, load_dotted
from neuroflamingo_encoders.state_dict_fit import check_hash, not_safetensors
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError
from neuroflamingo_preprocessing.files import sha256_of

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard


def build_encoder(name: str, weights: str | Path | None = None, *, tiny: bool = False, **options: Any) -> BrainEncoder:
    """Build an encoder, load its weights strictly, and freeze it.

    Args:
        name: one of `list_encoders`.
        weights: a safetensors file; None leaves the initial weights (untrained, unless the encoder has none).
        tiny: build the small trial size of `BrainEncoder.tiny`, for which there are no weights.
        options: see `encoder_card`.

    Raises:
        ModelError: an unknown name; a module that cannot be imported; weights of another hash, keys or shapes (exit
            65).
        NotFoundError: no weight file.
    """
    card = encoder_card(name, **options)
    encoder = _construct(card, tiny=tiny)
    if weights is not None:
        encoder.load_weights(read_weights(card, Path(weights)))
    return encoder.freeze()


def outline(card: EncoderCard) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an encoder, built on the meta device without memory.

    Raises:
        ModelError: the module cannot be imported, or is not an encoder (exit 78).
    """
    import torch

    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in _construct(card).state_dict().items()}


def _construct(card: EncoderCard, *, tiny: bool = False) -> BrainEncoder:
    kind = load_dotted(card.name, card.implementation)
    small = tiny and isinstance(kind, type) and issubclass(kind, BrainEncoder)
    encoder = kind.tiny(card) if small else kind(card)
    encoder.tiny_size = small
    if not isinstance(encoder, BrainEncoder):
        raise ModelError(
            f"{card.implementation} is not an encoder",
            expected="a subclass of neuroflamingo_encoders.contract.BrainEncoder",
            seen=type(encoder).__name__,
            hint="correct `implementation` in the card",
            exit_code=78,
        )
    return encoder


def read_weights(card: EncoderCard, path: Path) -> dict[str, Any]:
    """Read a safetensors file, after checking its hash if the card declares one.

    Raises:
        NotFoundError: no such file.
        ModelError: another hash, a truncated file, or not a safetensors file (exit 65).
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        raise NotFoundError(
            f"there is no weight file {path}",
            expected=card.weights.file or "a safetensors file",
            hint="check the path",
        )
    try:
        with safe_open(path, "pt") as stream:
            converted_from = (stream.metadata() or {}).get("converted_from_sha256")
        check_hash(card, path, sha256_of(path), converted_from)
        return load_file(path)
    except SafetensorError as error:
        raise not_safetensors(path, error) from error
