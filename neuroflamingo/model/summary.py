"""Summary of a model: its modules, the shapes of their weights, and which of them train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from neuroflamingo.model.parameters import GROUPS, grouped_names

if TYPE_CHECKING:
    from torch import nn

    from neuroflamingo.model.neuroflamingo import NeuroFlamingo


@dataclass(frozen=True)
class Part:
    """One module of a model.

    Attributes:
        name: name within its parent.
        kind: class name.
        weights: shape and trainability of the module's own parameters, by name.
        parameters, trained: number of weights and of trainable ones, submodules included; shared ones count once.
        repeats: number of consecutive identical siblings that this part stands for.
        parts: submodules.
    """

    name: str
    kind: str
    weights: dict[str, tuple[tuple[int, ...], bool]]
    parameters: int
    trained: int
    repeats: int = 1
    parts: tuple[Part, ...] = field(default=())

    @property
    def state(self) -> str:
        """`frozen`, `trained` or `partly trained`; empty for a module without weights."""
        if not self.parameters:
            return ""
        return "frozen" if not self.trained else "trained" if self.trained == self.parameters else "partly trained"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "state": self.state,
            "parameters": self.parameters,
            "trained": self.trained,
            "repeats": self.repeats,
            "weights": {
                name: {"shape": list(shape), "trained": trained} for name, (shape, trained) in self.weights.items()
            },
            "parts": [part.as_dict() for part in self.parts],
        }


def inspect_module(module: nn.Module, name: str = "model") -> Part:
    """Tree of a module; identical neighbours, such as the layers of a stack, are folded into one part."""
    children = [inspect_module(child, child_name) for child_name, child in module.named_children()]
    unique = {id(parameter): parameter for parameter in module.parameters()}.values()
    return Part(
        name=name,
        kind=type(module).__name__,
        weights={
            key: (tuple(value.shape), value.requires_grad) for key, value in module.named_parameters(recurse=False)
        },
        parameters=sum(parameter.numel() for parameter in unique),
        trained=sum(parameter.numel() for parameter in unique if parameter.requires_grad),
        parts=tuple(_fold(children)),
    )


def _fold(parts: list[Part]) -> Iterator[Part]:
    """Fold runs of identical numbered siblings into one part, named such as `0-5`."""
    run: list[Part] = []
    for part in [*parts, None]:
        if part is not None and run and part.name.isdigit() and _inside(part) == _inside(run[0]):
            run.append(part)
            continue
        if run:
            yield _joined(run)
        run = [part] if part is not None else []


def _inside(part: Part) -> tuple:
    return part.kind, part.parameters, part.trained, tuple(part.weights.items()), tuple(_named(p) for p in part.parts)


def _named(part: Part) -> tuple:
    return part.name, part.repeats, _inside(part)


def _joined(run: list[Part]) -> Part:
    first = run[0]
    if len(run) == 1:
        return first
    return Part(
        name=f"{first.name}-{run[-1].name}",
        kind=first.kind,
        weights=first.weights,
        parameters=sum(part.parameters for part in run),
        trained=sum(part.trained for part in run),
        repeats=len(run),
        parts=first.parts,
    )


def as_lines(part: Part, depth: int | None = None, indent: int = 0) -> Iterator[str]:
    """Format the tree as indented text: name, class, number of weights, state; then the shape of each weight."""
    pad = "  " * indent
    times = f"{part.repeats} x " if part.repeats > 1 else ""
    count = f"  {part.parameters:,}" if part.parameters else ""
    yield f"{pad}{part.name}: {times}{part.kind}{count}{'  ' + part.state if part.state else ''}"
    if depth is not None and indent >= depth:
        return
    for name, (shape, trained) in part.weights.items():
        size = " x ".join(map(str, shape)) or "scalar"
        yield f"{pad}  .{name}  {size}{'  trained' if trained else ''}"
    for below in part.parts:
        if below.parameters or below.kind not in _EMPTY:
            yield from as_lines(below, depth, indent + 1)


# Empty containers of peft for adapter variants that are not used.
_EMPTY = ("ModuleDict", "ParameterDict", "BufferDict", "Identity")


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of a model.

    Attributes:
        name: name as in `named_parameters`.
        shape, dtype: shape and dtype of the tensor.
        group: its parameter group, see `neuroflamingo.model.parameters.GROUPS`.
        trained: the parameter trains.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: str
    trained: bool

    @property
    def numbers(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "shape": list(self.shape)}


def parameter_rows(model: NeuroFlamingo) -> list[ParameterRow]:
    """Rows for all parameters of a model, shared ones once."""
    belongs = grouped_names(model)
    return [
        ParameterRow(
            name, tuple(value.shape), str(value.dtype).removeprefix("torch."), belongs[name], value.requires_grad
        )
        for name, value in model.named_parameters()
    ]


def count_groups(rows: Iterable[ParameterRow]) -> dict[str, dict[str, int]]:
    """Numbers of trained and frozen weights per group, in the order of the groups."""
    counts = {group: {"trained": 0, "frozen": 0} for group in GROUPS}
    for row in rows:
        counts[row.group]["trained" if row.trained else "frozen"] += row.numbers
    return {group: count for group, count in counts.items() if any(count.values())}


def group_lines(rows: Iterable[ParameterRow]) -> Iterator[str]:
    """Format the counts per group as a table with a total."""
    counts = count_groups(rows)
    whole = {state: sum(count[state] for count in counts.values()) for state in ("trained", "frozen")}
    yield f"{'':<16}{'trained':>18}{'frozen':>18}"
    for group, count in [*counts.items(), ("all", whole)]:
        yield f"{group.replace('_', ' '):<16}{count['trained']:>18,}{count['frozen']:>18,}"


def frozen_lines(rows: list[ParameterRow]) -> Iterator[str]:
    """Format all parameters, one per line, followed by the counts per group."""
    for row in rows:
        size = " x ".join(map(str, row.shape)) or "scalar"
        yield f"{'trained' if row.trained else 'frozen ':<8} {row.name}  {size}"
    yield ""
    yield from group_lines(rows)
