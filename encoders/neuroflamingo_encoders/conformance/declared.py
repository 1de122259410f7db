"""Groups 1 and 2: the card is valid plain data, and the module gives the shapes that it declares."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import torch

from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.conformance.subject import LARGEST_INPUT, Check, Failure, NotApplicable, Subject
from neuroflamingo_preprocessing.errors import NeuroFlamingoError

if TYPE_CHECKING:
    from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput

PLACEHOLDERS = {"", "?", "-", "todo", "tbd", "fixme", "unknown", "none", "n/a", "xxx"}
NEAR_MM = 0.01


def round_trip(subject: Subject) -> str:
    """A round trip through JSON, also with another order of keys, gives the same card and digest."""
    card = subject.full_card
    again = EncoderCard.model_validate_json(card.model_dump_json())
    turned = EncoderCard.model_validate(_turned(json.loads(card.model_dump_json())))
    if not again == turned == card:
        raise Failure("the card differs after a round trip through JSON")
    if {again.digest, turned.digest} != {card.digest}:
        raise Failure("the card's digest differs after a round trip through JSON")
    return f"digest {card.digest[:12]}"


def _turned(value: object) -> object:
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    return [_turned(item) for item in value] if isinstance(value, list) else value


def licence(subject: Subject) -> str:
    """Licence, source and version are filled in, and matched upstream code is named with repository and commit."""
    card = subject.full_card
    named = {"weights.licence": card.weights.licence, "weights.source": card.weights.source, "version": card.version}
    blank = [
        name
        for name, text in named.items()
        if text.strip().lower() in PLACEHOLDERS and not (name == "weights.source" and text == "none")
    ]
    if blank:
        raise Failure(f"not filled in: {', '.join(blank)}")
    if card.commit and not card.repository:
        raise Failure("a commit without a repository")
    return f"{card.weights.licence}, weights: {card.weights.source}"


def implementation(subject: Subject) -> str:
    """The card names the class that is checked; otherwise another one would be built from it."""
    own = f"{subject.type.__module__}:{subject.type.__qualname__}"
    if subject.full_card.implementation != own:
        raise Failure(f"the card names {subject.full_card.implementation}, but the class is {own}")
    return own


def smallest(subject: Subject) -> str:
    """Declared shapes at the smallest allowed input, with two scans."""
    return _shapes(subject, subject.sizes(), batch=1, scans=2)


def largest(subject: Subject) -> str:
    """Declared shapes at the largest allowed input, with a batch of two."""
    sizes = subject.sizes(largest=True)
    if sizes == subject.sizes():
        raise NotApplicable("the card allows one size only")
    if math.prod(sizes) > LARGEST_INPUT:
        raise NotApplicable(f"the largest input, {list(sizes)}, is too large for a check: give the class a tiny()")
    return _shapes(subject, sizes, batch=2, scans=1)


def _shapes(subject: Subject, sizes: tuple[int, ...], batch: int, scans: int) -> str:
    output = subject.encode(subject.input(batch, scans, sizes=sizes))
    _fits(subject.card, output, sizes, batch, scans)
    if not bool(output.tokens.isfinite().all()):
        raise Failure("some tokens are NaN or infinite")
    return f"{list(sizes)} -> {list(output.tokens.shape)}"


def _fits(card: EncoderCard, output: EncoderOutput, sizes: tuple[int, ...], batch: int, scans: int) -> None:
    named = {axis.name: size for axis, size in zip(card.scan.axes, sizes, strict=True)}
    declared = (batch, scans, card.output.token_count(named), card.output.width)
    tokens, mask, positions = output
    if tuple(tokens.shape) != declared:
        raise Failure(f"tokens {list(tokens.shape)}, but the card declares {list(declared)} for an input {list(sizes)}")
    if tokens.dtype != torch.float32:
        raise Failure(f"tokens are {tokens.dtype}, but weights and input are float32")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape[:3]):
        raise Failure(f"the mask is {mask.dtype} {list(mask.shape)}, not bool {list(tokens.shape[:3])}")
    if mask is not None and not mask.is_meta and not card.output.variable_length and not bool(mask.all()):
        raise Failure("tokens are masked, but the card does not declare a variable length")
    if positions is not None and tuple(positions.shape) != (tokens.shape[2], 3):
        raise Failure(f"positions {list(positions.shape)}, not {[tokens.shape[2], 3]}")


def refuses_others(subject: Subject) -> str:
    """An input that the card does not describe is refused with a typed error, before any layer sees it."""
    x = subject.input()
    wrong = {"without an axis": x[..., 0], "with an axis more": x[..., None]}
    for number, axis in enumerate(subject.card.scan.axes):
        if axis.size is not None:
            wrong[f"with {axis.name}={axis.size + 1}"] = torch.cat([x, x.narrow(number + 2, 0, 1)], dim=number + 2)
    for difference, other in wrong.items():
        try:
            subject.encode(other)
        except NeuroFlamingoError:
            continue
        except Exception as error:
            raise Failure(f"an input {difference} is not refused, but raises {type(error).__name__}") from error
        raise Failure(f"an input {difference}, {list(other.shape)}, is taken")
    return f"{len(wrong)} other shapes refused"


def positions(subject: Subject) -> str:
    """Positions of tokens are finite or NaN (no position), and lie on the declared grid."""
    found, grid = subject.encode(subject.input()).positions, subject.card.output.grid
    if found is None:
        if grid is not None:
            raise Failure("the card declares a grid of tokens, but the module gives no positions")
        raise NotApplicable("no positions are given and no grid is declared")
    placed = found[~found.isnan().any(dim=1)]
    if not len(placed) or not bool(placed.isfinite().all()):
        raise Failure(
            "positions are infinite or all NaN; a token without one has NaN, an encoder without any gives None"
        )
    if grid is None:
        return f"{len(placed)} of {len(found)} tokens placed"
    distance = torch.cdist(placed.double(), torch.from_numpy(grid.positions).double()).min(dim=1).values.max()
    if float(distance) > NEAR_MM:
        raise Failure(f"a token lies {float(distance):.1f} mm from the nearest place of the declared grid")
    return f"{len(placed)} of {len(found)} tokens placed, on the declared grid"


def full_size(subject: Subject) -> str:
    """The published size gives the declared shape and number of weights, on torch's meta device, without memory."""
    card = subject.full_card
    if card == subject.card:
        return f"the instance that is checked is the full size, {_counted(subject.fresh(), card)}"
    if any(axis.size is None for axis in card.scan.axes):
        raise NotApplicable("the card names no single full size")
    sizes = tuple(axis.size or 0 for axis in card.scan.axes)
    try:
        with torch.device("meta"), torch.no_grad():
            encoder = subject.type(card).freeze()
            output = encoder(torch.empty(1, 1, *sizes))
    except (NeuroFlamingoError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "meta" not in str(error).lower():
            raise
        raise NotApplicable(f"cannot run on the meta device: {type(error).__name__}: {str(error)[:120]}") from error
    _fits(card, output, sizes, 1, 1)
    return f"{list(sizes)} -> {list(output.tokens.shape)}, {_counted(encoder, card)}"


def _counted(encoder: BrainEncoder, card: EncoderCard) -> str:
    count = sum(parameter.numel() for parameter in encoder.parameters())
    if count != card.cost.parameters:
        raise Failure(f"{count:,} weights, but the card declares {card.cost.parameters:,}")
    return f"{count:,} weights"


CHECKS = (
    Check("card.round_trip", 1, round_trip),
    Check("card.licence", 1, licence),
    Check("card.implementation", 1, implementation),
    Check("shapes.smallest", 2, smallest),
    Check("shapes.largest", 2, largest),
    Check("shapes.refuses_others", 2, refuses_others),
    Check("shapes.positions", 2, positions),
    Check("shapes.full_size", 2, full_size),
)
