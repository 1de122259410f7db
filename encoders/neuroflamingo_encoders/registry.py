"""Registry of encoders: a table of dotted strings and the installed plug-ins, read without importing any of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.card_list import ENTRY_POINT_GROUP
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, did_you_mean

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.spec import Constant

# name -> where in `families` its card is: an EncoderCard, or a function that makes one from options. The card names the
# module of its network. A new family is a folder and a row here.
_CARDS = {
    "brain-jepa-vitb": "brain_jepa.cards:BRAIN_JEPA",
    "brainiac-vitb": "vit3d.cards:BRAINIAC",
    "brainlm-13m": "brainlm.cards:brainlm_13m_card",
    "brainlm-vitmae-111m": "brainlm.cards:brainlm_111m_card",
    "brainlm-vitmae-650m": "brainlm.cards:brainlm_650m_card",
    "brainmt": "brainmt.cards:BRAINMT",
    "brainsegfounder": "swin3d.cards:brainsegfounder_card",
    "clip-tower": "vision_towers.cards:clip_tower_card",
    "clip-vit-l14": "vision_towers.cards:clip_vit_l14_card",
    "fc-baseline": "fc_baseline.cards:fc_baseline_card",
    "m3d-clip": "vit3d.cards:M3D_CLIP",
    "medicalnet-resnet10": "resnet3d.cards:MEDICALNET_10",
    "medicalnet-resnet18": "resnet3d.cards:MEDICALNET_18",
    "medicalnet-resnet34": "resnet3d.cards:MEDICALNET_34",
    "medicalnet-resnet50": "resnet3d.cards:MEDICALNET_50",
    "neuro-simclr-resnet18": "resnet3d.cards:NEURO_SIMCLR",
    "neurostorm": "swin4d.cards:NEUROSTORM",
    "nucleotide-transformer": "nucleotide_transformer.cards:nucleotide_transformer_card",
    "open-clip": "vision_towers.cards:open_clip_card",
    "precomputed": "precomputed.cards:precomputed_card",
    "siglip-so400m": "vision_towers.cards:siglip_so400m_card",
    "siglip-tower": "vision_towers.cards:siglip_tower_card",
    "swift": "swin4d.cards:SWIFT",
    "swinunetr-encoder": "swin3d.cards:swinunetr_card",
    "tiny-t1w-cnn": "tiny_t1w.cards:CARD",
    "vit3d": "vit3d.cards:vit3d_card",
}
BUILT_IN = {name: f"neuroflamingo_encoders.families.{place}" for name, place in _CARDS.items()}


def _plug_ins() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _table() -> dict[str, dict[str, str]]:
    """All encoders: name to owner to the dotted string of the card; a name claimed twice has two owners."""
    table = {name: {"neuroflamingo itself": dotted} for name, dotted in BUILT_IN.items()}
    for point in _plug_ins():
        owner = f"the package {point.dist.name}" if point.dist else point.value
        owners = table.setdefault(point.name, {})
        owners[owner if owner not in owners else f"{owner} ({point.value})"] = point.value
    return table


def list_encoders() -> tuple[str, ...]:
    """Names of all encoders, sorted. None is imported; a faulty one raises its error when its card is requested."""
    return tuple(sorted(_table()))


def is_plug_in(name: str) -> bool:
    """True for an encoder of another package, whose import may do anything."""
    return name not in BUILT_IN


def encoder_card(name: str, **options: Any) -> EncoderCard:
    """Card of an encoder, without loading its network.

    Args:
        name: one of `list_encoders`.
        options: for encoders whose card depends on them, for instance `precomputed` with `width=768`.

    Raises:
        ModelError: an unknown name, with the nearest ones; a name that two packages claim, a plug-in without a card
            (exit 78).
    """
    table = _table()
    if name not in table:
        raise ModelError(
            f"there is no encoder named '{name}'",
            expected=f"one of: {', '.join(sorted(table))}",
            seen=name,
            hint=did_you_mean(name, table, cutoff=0.4) or "see `neuroflamingo encoders list`",
            exit_code=66,
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
            hint="leave out the options",
            exit_code=78,
        )
    if card.name != name:
        raise ModelError(
            f"the encoder '{name}' has a card of another name",
            expected=name,
            seen=card.name,
            hint=f"use one name for the entry point and the card in {dotted}",
            exit_code=78,
        )
    return card


def load_dotted(name: str, dotted: str) -> Any:
    """Import `package.module:attribute` for the encoder `name`.

    Raises:
        ModelError: the import raises anything, or the module lacks the attribute (exit 78).
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
    """Options as stored in a card: sorted, without those that are None."""
    stated = {key: value for key, value in options.items() if value is not None}
    unsupported = [
        f"{key}={value!r}" for key, value in stated.items() if not isinstance(value, float | int | str | bool)
    ]
    if unsupported:
        raise ModelError(
            f"options of the encoder '{name}' cannot be saved with a model",
            expected="numbers, strings, true or false",
            seen=", ".join(unsupported),
            exit_code=78,
        )
    return tuple(sorted(stated.items()))
