"""The encoder card: everything about an encoder that can be said without loading it (no torch here)."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import (
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from neuroflamingo_preprocessing.spec import Axis, Constants, Declared, ScanSpec, digest_of_plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: lambda left, right: left // right,
}


def evaluate_formula(formula: str, sizes: Mapping[str, int]) -> int:
    """Value of a token formula such as `(x // 16) * (y // 16) + 1`; only whole numbers, axis names and `+ - * //`.

    Raises:
        ValueError: other syntax, or a name that is not in `sizes`.
    """

    def value(node: ast.AST) -> int:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int() as number):
                return number
            case ast.Name(id=name) if name in sizes:
                return sizes[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case _:
                pass
        raise ValueError(f"'{ast.unparse(node)}' is not allowed in the token formula '{formula}'")

    try:
        return value(ast.parse(formula, mode="eval"))
    except (SyntaxError, ZeroDivisionError) as error:
        raise ValueError(f"the token formula '{formula}' cannot be evaluated: {error}") from error


class Demand(Declared):
    """Something that must, or should, have happened to a scan before the encoder sees it."""

    what: str
    level: Literal["required", "recommended", "done_here"]
    note: str = ""


class TokenGrid(Declared):
    """Where grid tokens lie in the template: token (i, j, k) has its centre at origin + spacing * (i, j, k) mm (RAS).

    Tokens are in C order: the last axis runs fastest.
    """

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    @property
    def positions(self) -> NDArray[np.float32]:
        """World position of each token in millimetres, `[token, 3]`."""
        index = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1).reshape(-1, 3)
        return (np.asarray(self.origin_mm) + index * np.asarray(self.spacing_mm)).astype(np.float32)


class OutputSpec(Declared):
    """The tokens an encoder gives.

    Attributes:
        width: numbers per token.
        tokens: how many tokens a scan gives, as a number or as a formula over the input's axes.
        order: the axes that the token index runs over, slowest first.
        grid: lattice of the tokens in template space, where one exists. With `tokens` fewer than lattice points,
            the module's `positions` say which points were kept.
        cls: where a class token stands.
        variable_length: whether a mask marks missing tokens.
        normalised: whether a last norm was applied.
    """

    width: PositiveInt
    tokens: PositiveInt | str
    order: tuple[str, ...]
    grid: TokenGrid | None = None
    cls: Literal["none", "first", "last"] = "none"
    variable_length: bool = False
    normalised: bool = True

    def token_count(self, sizes: Mapping[str, int]) -> int:
        """Tokens per scan for an input with these axis sizes."""
        return self.tokens if isinstance(self.tokens, int) else evaluate_formula(self.tokens, sizes)


class Weights(Declared):
    """Where an encoder's weights come from and what their licence permits; files are safetensors only.

    Attributes:
        source: `embedded`, `none` (nothing to load), or where they are offered.
        file, sha256: file name (or folder of a hub repository) and the file's hash, checked before loading.
        revision: commit of the hub repository that `file` is taken from; None: the newest, which is then named.
        strip_prefixes: taken off the front of key names, in order.
        allow_missing, allow_unexpected: the only key names that may differ, by name or as a pattern with `*`.
        licence: SPDX identifier or the licence's name.
        commercial, redistribution, derivatives: what the licence permits.
        gated: whether terms must be accepted before the download.
    """

    source: str
    file: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    strip_prefixes: tuple[str, ...] = ()
    allow_missing: tuple[str, ...] = ()
    allow_unexpected: tuple[str, ...] = ()
    licence: str
    commercial: bool
    redistribution: bool
    derivatives: bool
    gated: bool = False

    @model_serializer(mode="wrap")
    def _without_unset_revision(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A card without a revision keeps the digest it had before there were revisions: saved models name it."""
        declared = handler(self)
        if self.revision is None:
            declared.pop("revision", None)
        return declared


class Cost(Declared):
    """What one scan costs: parameters, GFLOP (two per multiply-add) and seconds on one CPU core."""

    parameters: int = Field(ge=0)
    gflop: float | None = Field(default=None, ge=0)
    cpu_seconds: float | None = Field(default=None, ge=0)


class EncoderCard(Declared):
    """An encoder as plain data: frozen, serialisable, hashed (`card.digest`).

    Attributes:
        name: what the registry, configurations and reports call it.
        version: of this card and its module together.
        summary: one line for `encoders list`.
        implementation: `package.module:Class`, imported only when the encoder is built. The digest holds the class's
            name only, so that moving its module breaks no saved model.
        repository, commit: the upstream code matched, None for the project's own.
        paper, citation: to be printed in the methods text.
        scan: the input.
        demands: what must have been done before.
        network: constants of the network that no tensor's shape tells (strides, tapped stage, activation, slices).
        output, weights, cost: see there.
        trainable: parts (parameter name prefixes) that may be trained; everything is frozen by default.
        options: what `encoder_card` was given beside the name; the registry fills it in, and a saved model asks for
            the same again. No part of the digest: what the options change is in the card already.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str
    summary: str
    implementation: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    repository: str | None = None
    commit: str | None = None
    paper: str | None = None
    citation: str | None = None
    scan: ScanSpec
    demands: tuple[Demand, ...] = ()
    network: Constants = ()
    output: OutputSpec
    weights: Weights
    cost: Cost
    trainable: tuple[str, ...] = ()
    options: Constants = ()

    def _digested(self) -> dict[str, Any]:
        plain = super()._digested()
        del plain["options"]
        plain["implementation"] = self.implementation.rpartition(":")[2]  # a class may move to another module
        if not self.network:  # cards that were in saved models before there was this field keep their digest
            del plain["network"]
        return plain

    @property
    def digest_with_module(self) -> str:
        """The digest by the rule of before, which held the module of `implementation` too."""
        return digest_of_plain(self._digested() | {"implementation": self.implementation})

    @field_validator("summary")
    @classmethod
    def _one_line(cls, summary: str) -> str:
        if "\n" in summary or not summary.strip():
            raise ValueError("the summary is one line")
        return summary

    @model_validator(mode="after")
    def _formula_holds(self) -> EncoderCard:
        if isinstance(self.output.tokens, str):
            evaluate_formula(self.output.tokens, {axis.name: axis.size or 64 for axis in self.scan.axes})
        return self

    def shrunk(
        self, axes: Mapping[str, int], *, width: int | None = None, tokens: int | str | None = None
    ) -> EncoderCard:
        """The card of a small instance of the same architecture, for checks and tests; it belongs to no weights.

        Args:
            axes: new sizes by axis name; a token grid in space is dropped, since it holds for the full size only.
            width, tokens: of the small instance's output; None: as they are.

        Raises:
            ValueError: an axis that the card does not have.
        """
        unknown = sorted(set(axes) - {axis.name for axis in self.scan.axes})
        if unknown:
            raise ValueError(f"'{self.name}' has no axis {', '.join(unknown)}")
        sizes = tuple(Axis(name=a.name, size=axes[a.name]) if a.name in axes else a for a in self.scan.axes)
        changes: dict[str, Any] = {"grid": None} if axes else {}
        changes |= {"width": width} if width else {}
        changes |= {"tokens": tokens} if tokens else {}
        return self.model_copy(
            update={
                "scan": self.scan.model_copy(update={"axes": sizes}),
                "output": self.output.model_copy(update=changes),
            }
        )


def current_digest(declared: Any, digest: str | None) -> str | None:
    """The digest to compare a stored card by.

    Digests once held the module path of `implementation`, so that moving a module changed them. Such a digest becomes
    today's if it is that of the card stored beside it; any other comes back as it is.

    Args:
        declared: the stored card, as plain data.
        digest: the digest stored beside it.
    """
    try:
        card = EncoderCard.model_validate(declared)
    except ValueError:
        return digest
    return card.digest if digest == card.digest_with_module else digest
