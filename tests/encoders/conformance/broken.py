"""A small sound encoder, and broken ones: each breaks one promise of the contract, for the kit to find."""

from __future__ import annotations

from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from neuroflamingo_encoders.card import Cost, EncoderCard, OutputSpec, TokenGrid, Weights
from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step

SIZES: dict[Any, int] = {"channel": 1, "x": 8, "y": 12, "z": 16}
WEIGHTS: dict[str, Any] = {"commercial": True, "redistribution": True, "derivatives": True}


def card_for(encoder: type[BrainEncoder], **changes: Any) -> EncoderCard:
    fields: dict[str, Any] = {
        "name": "sound",
        "version": "1",
        "summary": "for tests of the kit",
        "implementation": f"{encoder.__module__}:{encoder.__qualname__}",
        "scan": ScanSpec(
            modality="volume3d",
            axes=tuple(Axis(name=name, size=size) for name, size in SIZES.items()),
            channels=("T1w",),
            orientation="RAS",
            spacing_mm=(20.0, 15.0, 10.0),
            origin_mm=(-70.0, -100.0, -70.0),
            steps=(Step.named("gaussian_antialias", fwhm_mm=8.0), Step.named("linear_resampling")),
        ),
        "output": OutputSpec(width=8, tokens="(x // 4) * (y // 4) * (z // 4)", order=("x", "y", "z")),
        "weights": Weights(source="none", licence="Apache-2.0", **WEIGHTS),
        "cost": Cost(parameters=520),
    }
    return EncoderCard(**(fields | changes))


class Sound(BrainEncoder):
    """A projection of each cube of 4 voxels; keeps the contract."""

    changes: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, card: EncoderCard | None = None) -> None:
        super().__init__(card or card_for(type(self), **self.changes))
        self.project = nn.Linear(64, self.card.output.width)

    def cubes(self, x: Tensor) -> Tensor:
        return rearrange(x[:, :, 0], "b s (x i) (y j) (z k) -> b s (x y z) (i j k)", i=4, j=4, k=4)

    def encode(self, x: Tensor) -> Tensor:
        return self.project(self.cubes(x))

    def forward(self, x: Tensor) -> EncoderOutput:
        return EncoderOutput(self.encode(x))


class SwapsAxes(Sound):
    def cubes(self, x: Tensor) -> Tensor:
        return rearrange(x[:, :, 0], "b s (x i) (y j) (z k) -> b s (z y x) (i j k)", i=4, j=4, k=4)


class Mirrors(Sound):
    def cubes(self, x: Tensor) -> Tensor:
        return super().cubes(x.flip(3))


class MirrorsPlaces(Sound):
    """Tokens in order, but their positions are given with left and right exchanged."""

    changes = {  # noqa: RUF012
        "output": OutputSpec(
            width=8,
            tokens=24,
            order=("x", "y", "z"),
            grid=TokenGrid(shape=(2, 3, 4), spacing_mm=(80.0, 60.0, 40.0), origin_mm=(-40.0, -77.5, -55.0)),
        )
    }

    def forward(self, x: Tensor) -> EncoderOutput:
        assert self.card.output.grid is not None
        places = torch.from_numpy(self.card.output.grid.positions).view(2, 12, 3).flip(0).reshape(24, 3)
        return EncoderOutput(self.encode(x), None, places.to(x.device))


class FarFromItsGrid(MirrorsPlaces):
    def forward(self, x: Tensor) -> EncoderOutput:
        assert self.card.output.grid is not None
        return EncoderOutput(self.encode(x), None, torch.from_numpy(self.card.output.grid.positions).to(x.device) + 3)


class ShufflesAtRandom(Sound):
    def encode(self, x: Tensor) -> Tensor:
        tokens = super().encode(x)
        return tokens[:, :, torch.randperm(tokens.shape[2])]


class ShufflesAlways(Sound):
    def encode(self, x: Tensor) -> Tensor:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(3)).to(x.device)
        return super().encode(x)[:, :, order]


class SeesHalf(Sound):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(torch.cat([x[..., :8], x[..., :8]], dim=-1))


class NormsOverTheBatch(Sound):
    def encode(self, x: Tensor) -> Tensor:
        tokens = super().encode(x)
        return tokens - tokens.mean((0, 1), keepdim=True) * 0.5


class DropsWhenTheParentTrains(Sound):
    def train(self, mode: bool = True) -> Self:
        nn.Module.train(self, mode)
        return self

    def encode(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().encode(x), 0.5, self.training)


class StaysOpen(Sound):
    def freeze(self) -> Self:
        self.frozen = True
        return self.train(False)


class CountsItsCalls(Sound):
    def __init__(self, card: EncoderCard | None = None) -> None:
        super().__init__(card)
        self.register_buffer("calls", torch.zeros(()))

    def encode(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().encode(x)


class TooWide(Sound):
    def encode(self, x: Tensor) -> Tensor:
        return nn.functional.pad(super().encode(x), (0, 1))


class DoublePrecision(Sound):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x).double()


class GivesABareTensor(Sound):
    def forward(self, x: Tensor) -> Any:
        return self.encode(x)


class LoadsHalfAFile(Sound):
    def load_weights(self, state: dict[str, Tensor]) -> Self:
        fitting = {k: v for k, v in state.items() if k in dict(self.named_parameters())}
        shapes = {k: v for k, v in fitting.items() if v.shape == self.state_dict()[k].shape}
        self.load_state_dict(shapes, strict=False)
        return self


class LoadsThenComplains(Sound):
    def load_weights(self, state: dict[str, Tensor]) -> Self:
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in state and state[name].shape == parameter.shape:
                    parameter.copy_(state[name])
        return super().load_weights(state)


class DividesByTheSpread(Sound):
    def encode(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        shape = (*x.shape[:2], *(1,) * (x.ndim - 2))
        return super().encode((x - flat.mean(-1).view(shape)) / flat.std(-1).view(shape))


class WritesIntoItsInput(Sound):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x.mul_(0.5))


class LeavesATensorBehind(Sound):
    def __init__(self, card: EncoderCard | None = None) -> None:
        super().__init__(card)
        self.table = torch.ones(24, 8)

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x) + self.table


class NeedsManyDigits(Sound):
    def encode(self, x: Tensor) -> Tensor:
        return (super().encode(x) + 300.0) - 300.0


class ForgetsATable(Sound):
    def __init__(self, card: EncoderCard | None = None) -> None:
        super().__init__(card)
        self.register_buffer("table", torch.randn(24, 8), persistent=False)
        self.table: Tensor

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x) + self.table


class TakesAnything(Sound):
    def __init__(self, card: EncoderCard | None = None) -> None:
        super().__init__(card)
        self._forward_pre_hooks.clear()
        self.pool = nn.AdaptiveAvgPool3d((8, 12, 16))

    def forward(self, x: Tensor) -> EncoderOutput:
        return EncoderOutput(self.encode(x if x.shape[2:] == (1, 8, 12, 16) else x.new_zeros(1, 1, 1, 8, 12, 16)))


class MasksEverything(Sound):
    changes = {  # noqa: RUF012
        "output": OutputSpec(width=8, tokens=24, order=("x", "y", "z"), variable_length=True)
    }

    def forward(self, x: Tensor) -> EncoderOutput:
        tokens = self.encode(x)
        return EncoderOutput(tokens, tokens.new_zeros(tokens.shape[:3], dtype=torch.bool))


class Talks(Sound):
    def encode(self, x: Tensor) -> Tensor:
        print("encoding")
        return super().encode(x)


class CannotBeBuilt(Sound):
    def __init__(self, card: EncoderCard | None = None) -> None:
        raise RuntimeError("no network today")


class NamesAnother(Sound):
    changes = {"implementation": "tests.encoders.conformance.broken:Sound"}  # noqa: RUF012


class UnclearLicence(Sound):
    changes = {"weights": Weights(source="none", licence="TODO", **WEIGHTS)}  # noqa: RUF012


class OpensWhatIsNotThere(Sound):
    changes = {"trainable": ("projection.",)}  # noqa: RUF012


class AsksForAnUnknownStep(Sound):
    changes = {  # noqa: RUF012
        "scan": card_for(Sound).scan.model_copy(update={"steps": (Step.named("sharpen"),)})
    }


class WrongAtFullSize(Sound):
    """Its tiny instance is sound; the published card says 9 numbers a token and the module gives 8."""

    changes = {"output": OutputSpec(width=9, tokens=24, order=("x", "y", "z"))}  # noqa: RUF012

    def __init__(self, card: EncoderCard | None = None) -> None:
        super().__init__(card)
        self.project = nn.Linear(64, 8)

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        return cls(card.shrunk({}, width=8))


class IgnoresTheScan(Sound):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(torch.ones_like(x))


ORDER = {"order.tokens_follow"}
LOADING = {f"loading.{what}" for what in ("missing", "surplus", "shape", "other_architecture", "not_finite")}

# Broken encoder -> all checks of groups 1 to 10 that must fail, and no other may.
EXPECTED: dict[type[BrainEncoder], set[str]] = {
    SwapsAxes: ORDER,
    Mirrors: ORDER,
    MirrorsPlaces: ORDER,
    ShufflesAlways: ORDER,
    FarFromItsGrid: {"shapes.positions"},
    SeesHalf: {"order.every_part_counts", *ORDER},
    NormsOverTheBatch: {"batch.alone_or_together", "batch.neighbours"},
    DropsWhenTheParentTrains: {"determinism.parent_trains"},
    StaysOpen: {"freezing.no_gradient", "freezing.step_changes_nothing", "freezing.unfreeze"},
    CountsItsCalls: {"freezing.step_changes_nothing"},
    LoadsHalfAFile: LOADING,
    LoadsThenComplains: LOADING - {"loading.other_architecture"},
    DividesByTheSpread: {"preparation.zeros", "preparation.constant"},
    LeavesATensorBehind: {"device.moves", "device.bfloat16"},
    NeedsManyDigits: {"device.bfloat16"},
    ForgetsATable: {"parity.reload"},
    TakesAnything: {"shapes.refuses_others", "preparation.nan", "preparation.infinite"},
    MasksEverything: {"batch.masks"},
    Talks: {"device.silence"},
    CannotBeBuilt: {"card.builds"},
    NamesAnother: {"card.implementation"},
    UnclearLicence: {"card.licence"},
    OpensWhatIsNotThere: {"freezing.unfreeze"},
    AsksForAnUnknownStep: {"preparation.steps", "preparation.geometry"},
    WrongAtFullSize: {"shapes.full_size"},
}

# Broken encoder -> some of the checks that must fail: these break so much that others fail too.
AT_LEAST: dict[type[BrainEncoder], set[str]] = {
    ShufflesAtRandom: {"determinism.repeatable", "batch.alone_or_together"},
    TooWide: {"shapes.smallest"},
    DoublePrecision: {"shapes.smallest", "device.bfloat16"},
    WritesIntoItsInput: {"determinism.input_untouched"},
    GivesABareTensor: {"shapes.smallest", "determinism.repeatable"},
    IgnoresTheScan: {"order.every_part_counts", *ORDER},
}
