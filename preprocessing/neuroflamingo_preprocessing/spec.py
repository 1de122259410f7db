"""`ScanSpec`: the input that an encoder declares, as plain data, from which preprocessing is derived."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveInt,
    model_serializer,
    model_validator,
)

from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Modality = Literal["image2d", "volume3d", "volume4d", "parcels", "sequence", "tokens"]
AxisName = Literal["x", "y", "z", "time", "channel", "parcel", "token", "width"]
Constant = float | int | str | bool


class Declaration(BaseModel):
    """Base class of declarations: frozen, without unknown keys, identified by a digest of their canonical JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration; it depends on every constant, but not on the order of keys or the machine."""
        return digest_of_plain(self._digested())

    def _digested(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def digest_of_plain(plain: Mapping[str, Any]) -> str:
    """SHA-256 of plain data as canonical JSON."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sorted_pairs(value: Any) -> Any:
    return tuple(sorted(cast("Mapping[str, Constant]", value).items())) if isinstance(value, Mapping) else value


Constants = Annotated[
    tuple[tuple[str, Constant], ...],
    BeforeValidator(_sorted_pairs),
    PlainSerializer(dict[str, Any], return_type=dict[str, Any]),
]


class Step(Declaration):
    """One named preprocessing step, with every constant it uses.

    Attributes:
        name: name of the step; an unknown one is refused when a scan is prepared.
        constants: name to value; given and serialised as a mapping, kept as sorted pairs so that steps are hashable.
        scope: data over which the step takes statistics; `training_set` needs stored statistics among the constants.
    """

    name: str
    constants: Constants = ()
    scope: Literal["sample", "run", "training_set"] = "sample"

    @classmethod
    def named(cls, name: str, **constants: Constant) -> Step:
        """Shorthand for a step over one sample: `Step.named("gaussian_antialias", fwhm_mm=3.0)`."""
        return cls(name=name, constants=tuple(sorted(constants.items())))

    def __getitem__(self, name: str) -> Constant:
        for key, value in self.constants:
            if key == name:
                return value
        raise ModelError(
            f"the step '{self.name}' lacks the constant '{name}'",
            expected=f"'{name}' among the step's constants",
            seen=", ".join(key for key, _ in self.constants) or "no constants",
            hint="correct the encoder's card",
            exit_code=65,
        )


class Axis(Declaration):
    """One axis of the prepared tensor: a fixed size, or a range of sizes, optionally in multiples of a number."""

    name: AxisName
    size: PositiveInt | None = None
    minimum: PositiveInt | None = None
    maximum: PositiveInt | None = None
    multiple_of: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Axis:
        if self.size is not None and (self.minimum or self.maximum or self.multiple_of):
            raise ValueError(f"axis '{self.name}': give a size or a range, not both")
        return self

    def accepts(self, size: int) -> bool:
        """True if a tensor axis of this size fits."""
        if self.size is not None:
            return size == self.size
        return (
            size >= (self.minimum or 1)
            and (self.maximum is None or size <= self.maximum)
            and size % (self.multiple_of or 1) == 0
        )

    def describe(self) -> str:
        """Axis in words, for error messages: `x=56`, `time=1..200`, `x=1..any in multiples of 16`."""
        if self.size is not None:
            return f"{self.name}={self.size}"
        bounds = f"{self.minimum or 1}..{self.maximum or 'any'}"
        return f"{self.name}={bounds}" + (f" in multiples of {self.multiple_of}" if self.multiple_of else "")


class RepetitionTime(Declaration):
    """Repetition time that an fMRI encoder was trained on, in seconds, and what to do with runs of another one."""

    seconds: float = Field(gt=0)
    tolerance: float = Field(default=0.0, ge=0)
    policy: Literal["as_is", "resample", "refuse"] = "refuse"


class Parcellation(Declaration):
    """Parcellation of a parcel series: name, row order, and the hash of the label file where it is known."""

    identifier: str
    row_order: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class ScanSpec(Declaration):
    """Input of an encoder: modality, axes of the tensor, grid in world space, and preprocessing steps.

    Attributes:
        modality: kind of input.
        axes: axes of the tensor after `batch scan`, in order, for instance channel, x, y, z.
        channels: meaning of each channel, for instance `("T1w",)`.
        orientation: of the voxel axes; `LAS` is how FSL stores MNI152, and published loaders take runs as stored.
        spacing_mm, origin_mm: voxel size, and world position of the centre of voxel (0, 0, 0), in millimetres of
            the template space; both None where there is no grid.
        template: name of the template space.
        repetition_time, parcellation: for time series and parcels.
        filtering: temporal filtering of the encoder's training runs: `none`, `any` if it makes no difference, None if
            it is not known. None is left out of the card's digest.
        steps: preprocessing steps, in the order in which they are applied.
        fill: value outside the field of view and outside the mask.

    Example:
        >>> axes = [Axis(name="channel", size=1), *(Axis(name=name, size=64) for name in ("x", "y", "z"))]
        >>> spec = ScanSpec(modality="volume3d", axes=axes, channels=["T1w"], orientation="RAS",
        ...                 spacing_mm=(3, 3, 3), origin_mm=(-96, -132, -78), template="MNI152",
        ...                 steps=[Step.named("affine_alignment"), Step.named("linear_resampling")])
        >>> spec.describe()
        'volume3d (channel=1, x=64, y=64, z=64)'
        >>> spec.accepts((1, 64, 64, 64)), spec.accepts((64, 64, 64))
        (True, False)
        >>> spec.grid_affine[:3, 3].tolist()
        [-96.0, -132.0, -78.0]
    """

    modality: Modality
    axes: tuple[Axis, ...]
    channels: tuple[str, ...] = ()
    orientation: Literal["RAS", "LAS"] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    origin_mm: tuple[float, float, float] | None = None
    template: str | None = None
    repetition_time: RepetitionTime | None = None
    parcellation: Parcellation | None = None
    filtering: Literal["none", "any"] | None = None
    steps: tuple[Step, ...] = ()
    fill: float = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> ScanSpec:
        names = [axis.name for axis in self.axes]
        if len(set(names)) != len(names):
            raise ValueError(f"axes are named twice: {names}")
        counts = {axis.name: axis.size for axis in self.axes}
        if self.channels and counts.get("channel") != len(self.channels):
            raise ValueError(
                f"{len(self.channels)} channels are named, but the channel axis is {counts.get('channel')}"
            )
        if (self.spacing_mm is None) != (self.origin_mm is None):
            raise ValueError("give spacing_mm and origin_mm together, or neither")
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm must be positive, seen {self.spacing_mm}")
        return self

    @model_serializer(mode="wrap")
    def _without_unknown(self, handler: Any) -> dict[str, Any]:
        plain = handler(self)
        if plain.get("filtering") is None:  # so that cards older than this field keep their digest
            plain.pop("filtering", None)
        return plain

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Sizes of x, y and z; `ModelError` if the encoder declares no fixed grid."""
        sizes = {axis.name: axis.size for axis in self.axes}
        x, y, z = sizes.get("x"), sizes.get("y"), sizes.get("z")
        if x is None or y is None or z is None:
            raise ModelError(
                "this encoder declares no fixed grid",
                expected="axes x, y and z with a size",
                seen=self.describe(),
                hint="give prepared tensors instead of a scan file",
                exit_code=65,
            )
        return x, y, z

    @property
    def grid_affine(self) -> NDArray[np.float64]:
        """Voxel index to template world millimetres (RAS), `[4, 4]`; `ModelError` if no grid is declared."""
        if self.spacing_mm is None or self.origin_mm is None:
            raise ModelError(
                "this encoder declares no grid in world space",
                expected="spacing_mm and origin_mm in its card",
                seen=self.describe(),
                hint="give prepared tensors instead of a scan file",
                exit_code=65,
            )
        affine = np.diag([*self.spacing_mm, 1.0])
        if self.orientation == "LAS":
            affine[0, 0] = -affine[0, 0]
        affine[:3, 3] = self.origin_mm
        return affine

    def with_sizes(self, sizes: Mapping[str, int]) -> ScanSpec:
        """The same input with axes of other sizes: the same field of view in voxels of another size.

        Args:
            sizes: by axis name.
        """
        axes = tuple(
            Axis(name=axis.name, size=sizes.get(axis.name)) if axis.name in sizes else axis for axis in self.axes
        )
        changes: dict[str, Any] = {"axes": axes}
        stretch = {a.name: a.size / sizes[a.name] for a in self.axes if a.size and a.name in sizes and a.name in "xyz"}
        if self.spacing_mm is not None and self.origin_mm is not None:
            by_axis = [stretch.get(name, 1.0) for name in "xyz"]
            grown = [s * f for s, f in zip(self.spacing_mm, by_axis, strict=True)]
            signs = (-1 if self.orientation == "LAS" else 1, 1, 1)
            half = [sign * (new - old) / 2 for sign, new, old in zip(signs, grown, self.spacing_mm, strict=True)]
            changes["spacing_mm"] = tuple(grown)
            changes["origin_mm"] = tuple(o + h for o, h in zip(self.origin_mm, half, strict=True))
        changes["steps"] = tuple(_resized(step, {a.name: a.size for a in axes}, stretch) for step in self.steps)
        return self.model_copy(update=changes)

    def takes_contrast(self, contrast: str) -> bool:
        """Whether a channel is said to be of this contrast (`T1w`), or of any that MR has."""
        words = {word for channel in self.channels for word in re.findall(r"[A-Za-z0-9]+", channel)}
        return bool(words & {contrast, "MR", "MRI"})

    @property
    def takes_runs(self) -> bool:
        """Whether the encoder takes fMRI runs, or parcel series of them."""
        return self.modality in ("volume4d", "parcels")

    def step(self, name: str) -> Step | None:
        """Step of that name, None if this encoder does not ask for it."""
        return next((step for step in self.steps if step.name == name), None)

    def accepts(self, shape: Sequence[int]) -> bool:
        """True if the encoder takes a tensor of this shape, given without `batch scan`."""
        return len(shape) == len(self.axes) and all(a.accepts(n) for a, n in zip(self.axes, shape, strict=True))

    def describe(self) -> str:
        """Modality and axes in one line, for error messages."""
        return f"{self.modality} ({', '.join(axis.describe() for axis in self.axes)})"


def _resized(step: Step, sizes: Mapping[str, int | None], stretch: Mapping[str, float]) -> Step:
    """A step whose constants are sizes in voxels or widths in mm, for other sizes."""
    if step.name in ("resize", "crop"):
        return Step.named(step.name, **{name: size for name, size in sizes.items() if name in "xyz" and size})
    if step.name == "gaussian_antialias":
        wider = float(step["fwhm_mm"]) * max(stretch.values(), default=1.0)
        return Step.named(step.name, **(dict(step.constants) | {"fwhm_mm": wider}))
    return step


class InputCard(Protocol):
    """Part of an encoder's card that preprocessing needs: name, input and digest."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    @property
    def scan(self) -> ScanSpec:
        """Input of the encoder."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the whole card."""
        ...
