"""`EncoderCard`: everything about an encoder that can be stated without loading it (no torch here)."""

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

from neuroflamingo_preprocessing.spec import Constants, Declaration, ScanSpec, digest_of_plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: lambda left, right: left // right,
}


def evaluate_formula(formula: str, sizes: Mapping[str, int]) -> int:
    """Evaluate a token formula such as `(x // 16) * (y // 16) + 1`: integers, axis names and `+ - * //` only.

    The syntax tree is walked here instead of calling `eval`: cards come with models of others and may hold anything.

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


class Demand(Declaration):
    """Processing that a scan must or should have had before the encoder sees it, or that the encoder does itself."""

    what: str
    level: Literal["required", "recommended", "done_here"]
    note: str = ""


class TokenGrid(Declaration):
    """Grid of tokens in template space: token (i, j, k) has its centre at origin + spacing * (i, j, k) mm (RAS).

    Tokens are in C order: the last axis varies fastest.
    """

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    @property
    def positions(self) -> NDArray[np.float32]:
        """World position of each token in millimetres, `[token, 3]`."""
        index = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1).reshape(-1, 3)
        return (np.asarray(self.origin_mm) + index * np.asarray(self.spacing_mm)).astype(np.float32)


class OutputSpec(Declaration):
    """Output of an encoder.

    Attributes:
        width: numbers per token.
        tokens: number of tokens per scan, or a formula over the axes of the input.
        order: axes of the input that the token index runs over, slowest first.
        grid: grid of the tokens in template space, if there is one. If `tokens` is less than its points, the module's
            `positions` say which points were kept.
        cls: position of a class token.
        variable_length: True if a mask marks missing tokens.
        normalised: True if a final norm is applied.
    """

    width: PositiveInt
    tokens: PositiveInt | str
    order: tuple[str, ...]
    grid: TokenGrid | None = None
    cls: Literal["none", "first", "last"] = "none"
    variable_length: bool = False
    normalised: bool = True

    def token_count(self, sizes: Mapping[str, int]) -> int:
        """Number of tokens per scan for an input with these axis sizes."""
        return self.tokens if isinstance(self.tokens, int) else evaluate_formula(self.tokens, sizes)


_WHERE = ("source", "file", "sha256", "revision")
"""What says where an encoder's weights lie, not what they are; no part of its card's digest."""


class Weights(Declaration):
    """Source and licence of an encoder's weights; files are safetensors only.

    Attributes:
        source: `embedded`, `none` (nothing to load), or the address where they are published.
        file, sha256: file name (or folder of a hub repository) and the file's hash, checked before loading.
        revision: commit of the hub repository that `file` is from; None: the newest, which is then reported.
        strip_prefixes: prefixes removed from key names, in order.
        allow_missing, allow_unexpected: the only key names that may differ, by name or as a pattern with `*`.
        licence: SPDX identifier or the licence's name.
        commercial, redistribution, derivatives: True if the licence permits it.
        gated: True if terms must be accepted before the download.
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
        """Leave out an unset revision, so that cards older than this field keep their former digests."""
        declared = handler(self)
        if self.revision is None:
            declared.pop("revision", None)
        return declared


class Cost(Declaration):
    """Cost of encoding a scan: parameters, GFLOP (two operations per multiply-add) and seconds on one CPU core."""

    parameters: int = Field(ge=0)
    gflop: float | None = Field(default=None, ge=0)
    cpu_seconds: float | None = Field(default=None, ge=0)


class EncoderCard(Declaration):
    """Declaration of an encoder as plain data: frozen, serialisable, hashed (`card.digest`).

    Attributes:
        name: name in the registry, configurations and reports.
        version: version of this card and its module together.
        summary: one line for `encoders list`.
        implementation: `package.module:Class`, imported only when the encoder is built. The digest holds the class's
            name only, so that a module may move without breaking saved models; nor does it hold where the weights lie
            and their pin (`source`, `file`, `sha256`, `revision`).
        repository, commit: upstream code that is matched; None for the project's own.
        paper, citation: for the methods section.
        scan: the input.
        demands: processing that the input must have had before.
        network: constants of the network that no tensor shape tells (strides, tapped stage, activation, slices).
        output, weights, cost: see `OutputSpec`, `Weights` and `Cost`.
        trainable: prefixes of parameter names that may be trained; everything is frozen by default.
        options: options given to `encoder_card`; the registry fills them in, and a saved model uses them to rebuild
            the card. Not part of the digest: what they change is in the card already.

    Example:
        >>> from neuroflamingo_encoders.registry import encoder_card
        >>> card = encoder_card("vit3d", patch=16)
        >>> card.scan.describe(), card.output.width
        ('volume3d (channel=1, x=96, y=112, z=96)', 384)
        >>> card.output.token_count({"x": 96, "y": 112, "z": 96})
        252
        >>> EncoderCard.model_validate_json(card.model_dump_json()).digest == card.digest
        True
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
        plain["weights"] = {key: value for key, value in plain["weights"].items() if key not in _WHERE}
        plain["implementation"] = self.implementation.rpartition(":")[2]  # a class may move to another module
        if not self.network:  # so that cards older than this field keep their digest
            del plain["network"]
        return plain

    @property
    def former_digests(self) -> tuple[str, str]:
        """Digests by the rules of before: with the place of the weights, and with the module too."""
        placed = self._digested() | {"weights": self.weights.model_dump(mode="json")}
        return digest_of_plain(placed), digest_of_plain(placed | {"implementation": self.implementation})

    @field_validator("summary")
    @classmethod
    def _one_line(cls, summary: str) -> str:
        if "\n" in summary or not summary.strip():
            raise ValueError("the summary must be one line")
        return summary

    @model_validator(mode="after")
    def _formula_holds(self) -> EncoderCard:
        if isinstance(self.output.tokens, str):
            evaluate_formula(self.output.tokens, {axis.name: axis.size or 64 for axis in self.scan.axes})
        return self

    def shrunk(
        self, axes: Mapping[str, int], *, width: int | None = None, tokens: int | str | None = None
    ) -> EncoderCard:
        """Card of a small instance of the same architecture, for checks and tests, without weights.

        It sees the same field of view in larger voxels.

        Args:
            axes: new sizes by axis name; a token grid is dropped, since it holds for the full size only.
            width, tokens: new output of the small instance; None: unchanged.

        Raises:
            ValueError: an axis that the card does not have.
        """
        unknown = sorted(set(axes) - {axis.name for axis in self.scan.axes})
        if unknown:
            raise ValueError(f"'{self.name}' has no axis {', '.join(unknown)}")
        changes: dict[str, Any] = {"grid": None} if axes else {}
        changes |= {"width": width} if width else {}
        changes |= {"tokens": tokens} if tokens else {}
        return self.model_copy(
            update={"scan": self.scan.with_sizes(axes), "output": self.output.model_copy(update=changes)}
        )


def current_digest(declared: Any, digest: str | None) -> str | None:
    """Translate the digest of a stored card to the current rule.

    Digests used to include the module path of `implementation`, and where the weights lie with their pin, so that
    moving either changed them. A digest by such a rule is replaced by the current one if it belongs to the card stored
    beside it; any other is returned unchanged.

    Args:
        declared: the stored card, as plain data.
        digest: the digest stored beside it.
    """
    try:
        card = EncoderCard.model_validate(declared)
    except ValueError:
        return digest
    return card.digest if digest in card.former_digests else digest
