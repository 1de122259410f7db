"""Group 5: tokens are in the declared order. Catches swapped, mirrored and shuffled axes.

A third of the input at the low end of an axis is changed, then a third at the high end. The tokens that respond more to
one change than to the other must be displaced along that axis, in that direction, and along no other: by their
positions in millimetres if the module gives them, else by the card's token order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neuroflamingo_encoders.conformance.subject import Check, Failure, NotApplicable, Subject

LEAST_MOVE = 0.15
"""Smallest displacement of the response along its own axis, as a share of the axis."""
LEAST_ANSWER = 1e-6


def every_part_counts(subject: Subject) -> str:
    """Changing any third of the input along any axis changes the tokens."""
    for axis in subject.card.scan.axes:
        for end in ("low", "middle", "high"):
            if float(_answer(subject, axis.name, end).max()) < LEAST_ANSWER:
                raise Failure(f"changing the {end} third of {axis.name} changes no token")
    return f"{len(subject.card.scan.axes)} axes, each in three parts"


def tokens_follow(subject: Subject) -> str:
    """A change that moves along an axis of the input moves the response along that axis of the tokens."""
    positions = subject.encode(subject.input(sizes=subject.large_sizes())).positions
    names = [axis.name for axis in subject.card.scan.axes]
    if positions is not None and subject.card.scan.spacing_mm is not None:
        return _by_position(subject, positions, [name for name in "xyz" if name in names])
    axes = [name for name in subject.card.output.order if name in names]
    if not axes or len(axes) < len(subject.card.output.order):
        raise NotApplicable(f"the token order {subject.card.output.order} is not made of the input's axes")
    return _by_order(subject, axes)


def _by_position(subject: Subject, positions: Tensor, axes: Sequence[str]) -> str:
    placed = positions[~positions.isnan().any(dim=1)]
    extent = placed.amax(0) - placed.amin(0)
    moves = {}
    for name in axes:
        low, high = (_centroid(answer, positions / extent.clamp(min=1.0)) for answer in _contrast(subject, name))
        moves[name] = high - low
    for name, move in moves.items():
        if float(extent["xyz".index(name)]) == 0.0:
            continue
        _judge(name, {other: float(move[i]) for i, other in enumerate("xyz")})
    return "answers move with the input: " + _in_words(
        {name: float(move["xyz".index(name)]) for name, move in moves.items()}
    )


def _by_order(subject: Subject, axes: list[str]) -> str:
    """Check by the declared order: the shape of the token lattice is not declared, but one shape must explain all."""
    sizes = dict(zip((axis.name for axis in subject.card.scan.axes), subject.large_sizes(), strict=True))
    answers = {name: [_without_class(subject, a) for a in _contrast(subject, name)] for name in axes}
    count = len(answers[axes[0]][0])
    if count == 1:
        raise NotApplicable("there is one token")
    faults, best = [], None
    for shape in _lattices(count, [sizes[name] for name in axes]):
        index = torch.cartesian_prod(*(torch.arange(n).float() / max(n - 1, 1) for n in shape)).view(count, -1)
        moves = {name: _centroid(high, index) - _centroid(low, index) for name, (low, high) in answers.items()}
        own = {name: float(moves[name][i]) for i, name in enumerate(axes) if shape[i] > 1}
        as_lattice = f"tokens as {' x '.join(map(str, shape))}"
        try:
            for name in own:
                _judge(name, dict(zip(axes, moves[name].tolist(), strict=True)))
        except Failure as fault:
            faults.append((min(own.values()), f"{fault} ({as_lattice})"))
            continue
        best = max(
            best or (0.0, ""), (min(own.values()), f"{as_lattice}, answers move with the input: {_in_words(own)}")
        )
    if best is not None:
        return best[1]
    if not faults:
        raise Failure(f"{count} tokens cannot be laid out along {', '.join(axes)} of the input")
    raise Failure(max(faults)[1])


def _judge(name: str, moves: dict[str, float]) -> None:
    own = moves[name]
    furthest = (
        max((abs(move), other) for other, move in moves.items() if other != name) if len(moves) > 1 else (0.0, "")
    )
    if own <= -LEAST_MOVE:
        raise Failure(f"moving up {name} in the input moves the answer down {name}: the axis is mirrored")
    if furthest[0] > max(abs(own), LEAST_MOVE):
        raise Failure(f"moving along {name} in the input moves the answer along {furthest[1]}: the axes are swapped")
    if own < LEAST_MOVE:
        raise Failure(f"moving along {name} in the input moves the answer by {own:+.2f} of the axis only: no order")


def _contrast(subject: Subject, name: str) -> tuple[Tensor, Tensor]:
    """Excess of each token's response to the low end of an axis over the high end, and the reverse.

    Tokens that respond to both alike (a mirror image among the channels, global attention) say nothing about the order.
    """
    low, high = _answer(subject, name, "low"), _answer(subject, name, "high")
    return (low - high).clamp(min=0.0), (high - low).clamp(min=0.0)


def _answer(subject: Subject, name: str, end: str) -> Tensor:
    """Response of each token, `[token]`, when a third of an axis is replaced by that of another example."""
    sizes = subject.large_sizes()
    number = [axis.name for axis in subject.card.scan.axes].index(name)
    x, other = subject.input(sizes=sizes), subject.input(seed=1, sizes=sizes)
    keys = (..., _third(sizes[number], end), *(slice(None),) * (len(sizes) - 1 - number))
    x[keys] = other[keys]
    return (subject.encode(x).tokens - subject.tokens())[0, 0].norm(dim=-1)


def _third(size: int, end: str) -> slice:
    length = max(1, size // 3)
    start = {"low": 0, "middle": (size - length) // 2, "high": size - length}[end]
    return slice(start, start + length)


def _without_class(subject: Subject, answer: Tensor) -> Tensor:
    cls = subject.card.output.cls
    return answer[1:] if cls == "first" else answer[:-1] if cls == "last" else answer


def _centroid(answer: Tensor, places: Tensor) -> Tensor:
    """Centroid of the response: positions weighted by its square, without tokens that have no position."""
    weight = (answer / answer.max().clamp(min=1e-30)) ** 2
    weight = torch.where(places.isnan().any(dim=1), 0.0, weight)
    return (weight[:, None] * places.nan_to_num(0.0)).sum(0) / weight.sum().clamp(min=1e-30)


def _lattices(count: int, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Possible lattice shapes for a number of tokens, none larger than the input.

    Of these, the ones that divide most axes, and those evenly: others would explain any order.
    """
    ranges = [[n for n in range(1, size + 1) if count % n == 0] for size in sizes[:-1]]
    found = []
    for head in itertools.product(*ranges):
        rest, odd = divmod(count, math.prod(head))
        if not odd and 1 <= rest <= sizes[-1]:
            found.append((*head, rest))

    def rank(shape: tuple[int, ...]) -> tuple[int, int]:
        uneven = sum(size % n != 0 for size, n in zip(sizes, shape, strict=True))
        return shape.count(1), uneven

    return [shape for shape in found if rank(shape) == min(map(rank, found))]


def _in_words(moves: dict[str, float]) -> str:
    return ", ".join(f"{name} {move:+.2f}" for name, move in moves.items())


CHECKS = (
    Check("order.every_part_counts", 5, every_part_counts),
    Check("order.tokens_follow", 5, tokens_follow),
)
