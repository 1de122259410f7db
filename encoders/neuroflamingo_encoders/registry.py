"""Which encoders there are: a table of dotted strings plus installed plug-ins, read without importing any of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.listing import ENTRY_POINT_GROUP
from neuroflamingo_encoders.weights_fit import check_hash, sha256_of
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, NotFoundError, did_you_mean
from neuroflamingo_preprocessing.spec import Constant

if TYPE_CHECKING:
    from neuroflamingo_encoders.contract import BrainEncoder

# name -> where its card is: an EncoderCard, or a function that makes one from options. The card names the module.
BUILT_IN = {
    "brain-jepa-vitb": "neuroflamingo_encoders.published_cards:BRAIN_JEPA",
    "brainiac-vitb": "neuroflamingo_encoders.volume_cards:BRAINIAC",
    "brainlm-13m": "neuroflamingo_encoders.published_cards:brainlm_13m_card",
    "brainlm-vitmae-111m": "neuroflamingo_encoders.published_cards:brainlm_111m_card",
    "brainlm-vitmae-650m": "neuroflamingo_encoders.published_cards:brainlm_650m_card",
    "brainmt": "neuroflamingo_encoders.published_cards:BRAINMT",
    "brainsegfounder": "neuroflamingo_encoders.swin_cards:brainsegfounder_card",
    "clip-tower": "neuroflamingo_encoders.picture_cards:clip_tower_card",
    "clip-vit-l14": "neuroflamingo_encoders.picture_cards:clip_vit_l14_card",
    "fc-baseline": "neuroflamingo_encoders.fc_baseline_card:fc_baseline_card",
    "m3d-clip": "neuroflamingo_encoders.volume_cards:M3D_CLIP",
    "medicalnet-resnet10": "neuroflamingo_encoders.resnet_cards:MEDICALNET_10",
    "medicalnet-resnet18": "neuroflamingo_encoders.resnet_cards:MEDICALNET_18",
    "medicalnet-resnet34": "neuroflamingo_encoders.resnet_cards:MEDICALNET_34",
    "medicalnet-resnet50": "neuroflamingo_encoders.resnet_cards:MEDICALNET_50",
    "neuro-simclr-resnet18": "neuroflamingo_encoders.resnet_cards:NEURO_SIMCLR",
    "neurostorm": "neuroflamingo_encoders.published_cards:NEUROSTORM",
    "nucleotide-transformer": "neuroflamingo_encoders.sequence_cards:nucleotide_transformer_card",
    "open-clip": "neuroflamingo_encoders.picture_cards:open_clip_card",
    "precomputed": "neuroflamingo_encoders.precomputed_card:precomputed_card",
    "siglip-so400m": "neuroflamingo_encoders.picture_cards:siglip_so400m_card",
    "siglip-tower": "neuroflamingo_encoders.picture_cards:siglip_tower_card",
    "swift": "neuroflamingo_encoders.published_cards:SWIFT",
    "swinunetr-encoder": "neuroflamingo_encoders.swin_cards:swinunetr_card",
    "tiny-t1w-cnn": "neuroflamingo_encoders.tiny_t1w_card:CARD",
    "vit3d": "neuroflamingo_encoders.volume_cards:vit3d_card",
}


def _plug_ins() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _table() -> dict[str, dict[str, str]]:
    """All encoders: name to owner to the dotted string of the card. A name that two owners claim has two entries."""
    table = {name: {"neuroflamingo itself": dotted} for name, dotted in BUILT_IN.items()}
    for point in _plug_ins():
        owner = f"the package {point.dist.name}" if point.dist else point.value
        owners = table.setdefault(point.name, {})
        owners[owner if owner not in owners else f"{owner} ({point.value})"] = point.value
    return table


def list_encoders() -> tuple[str, ...]:
    """Names of all encoders, sorted. Imports none of them; what is wrong with one is told when it is asked for."""
    return tuple(sorted(_table()))


def is_plug_in(name: str) -> bool:
    """Whether an encoder comes from another package, so that anything may happen when it is imported."""
    return name not in BUILT_IN


def encoder_card(name: str, **options: Any) -> EncoderCard:
    """The card of an encoder, without loading its network.

    Args:
        name: as `list_encoders` gives it.
        options: for encoders whose card depends on them, for instance `precomputed` with `width=768`.

    Raises:
        ModelError: unknown name (the nearest ones are named); a name that two packages claim, a plug-in that gives no
            card (exit 78).
    """
    table = _table()
    if name not in table:
        raise ModelError(
            f"there is no encoder named '{name}'",
            expected=f"one of: {', '.join(sorted(table))}",
            seen=name,
            hint=did_you_mean(name, table, cutoff=0.4) or "see `neuroflamingo encoders list`",
        )
    owners, (dotted, *others) = list(table[name]), table[name].values()
    if others:
        raise ModelError(
            f"{len(owners)} encoders are named '{name}'",
            expected="one package per encoder name",
            seen=" and ".join(owners),
            hint="uninstall all but one of them, or rename a plug-in's entry point",
            exit_code=78,
        )
    card = load_dotted(name, dotted)
    if not isinstance(card, EncoderCard):
        card = _card_from_options(name, card, options)
    elif options:
        raise ModelError(
            f"the encoder '{name}' takes no options",
            expected="none",
            seen=", ".join(options),
            hint="leave the options out",
            exit_code=78,
        )
    if card.name != name:
        raise ModelError(
            f"the encoder '{name}' has a card of another name",
            expected=name,
            seen=card.name,
            hint=f"give the entry point or the card in {dotted} the other's name",
            exit_code=78,
        )
    return card


def build_encoder(name: str, weights: str | Path | None = None, *, tiny: bool = False, **options: Any) -> BrainEncoder:
    """Build an encoder, load its weights strictly, and freeze it.

    Args:
        name: as `list_encoders` gives it.
        weights: a safetensors file; None leaves the module as it was initialised (untrained, unless it needs none).
        tiny: its toy size (`BrainEncoder.tiny`) instead: the same code for trials, which no weights belong to.
        options: see `encoder_card`.

    Raises:
        ModelError: unknown name; a module that does not import; weights of another hash, keys or shapes (exit 65).
        NotFoundError: no weight file there.
    """
    card = encoder_card(name, **options)
    encoder = _construct(card, tiny=tiny)
    if weights is not None:
        encoder.load_weights(read_weights(card, Path(weights)))
    return encoder.freeze()


def outline(card: EncoderCard) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the encoder is made of; the network takes no memory (meta device).

    Raises:
        ModelError: the module does not import, or is no encoder (exit 78).
    """
    import torch

    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in _construct(card).state_dict().items()}


def _construct(card: EncoderCard, *, tiny: bool = False) -> BrainEncoder:
    from neuroflamingo_encoders.contract import BrainEncoder

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


def load_dotted(name: str, dotted: str) -> Any:
    """What `package.module:attribute` names, for the encoder `name`.

    Raises:
        ModelError: the module cannot be imported, whatever it raises, or lacks the attribute (exit 78).
    """
    module, _, attribute = dotted.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a plug-in may raise anything; the user must learn which one it was
        raise ModelError(
            f"the encoder '{name}' cannot be imported",
            expected=f"{attribute or 'an attribute'} in the module {module}",
            seen=f"{type(error).__name__}: {error}",
            hint="install what it needs, or uninstall the plug-in",
            exit_code=78,
        ) from error


def _card_from_options(name: str, make: Callable[..., Any], options: dict[str, Any]) -> EncoderCard:
    try:
        card = make(**options)
    except NeuroFlamingoError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"the card of the encoder '{name}' cannot be made",
            expected="options that its card function takes",
            seen=f"{type(error).__name__}: {error}",
            hint="see encoders/README.md",
            exit_code=78,
        ) from error
    if not isinstance(card, EncoderCard):
        raise ModelError(
            f"the encoder '{name}' has no card",
            expected="an EncoderCard, or a function that returns one",
            seen=type(card).__name__,
            hint="correct the entry point",
            exit_code=78,
        )
    return card.model_copy(update={"options": _plain(name, options)})


def _plain(name: str, options: dict[str, Any]) -> tuple[tuple[str, Constant], ...]:
    """Options as a card keeps them: sorted, without those left at None."""
    given = {key: value for key, value in options.items() if value is not None}
    odd = [f"{key}={value!r}" for key, value in given.items() if not isinstance(value, float | int | str | bool)]
    if odd:
        raise ModelError(
            f"options of the encoder '{name}' cannot be kept with a model",
            expected="numbers, words, true or false",
            seen=", ".join(odd),
            exit_code=78,
        )
    return tuple(sorted(given.items()))


def read_weights(card: EncoderCard, path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file, after its hash was checked where the card declares one.

    Raises:
        NotFoundError: no such file.
        ModelError: another hash, or a file that is cut off or no safetensors file (exit 65).
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
        raise ModelError(
            f"{path} is not a safetensors file",
            expected="safetensors (pickles are never loaded)",
            seen=str(error),
            hint="convert the checkpoint first: neuroflamingo models convert",
            exit_code=65,
        ) from error
