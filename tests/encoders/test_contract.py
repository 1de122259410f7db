"""Cards are plain data; modules check their batches, stay frozen and load strictly."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from neuroflamingo_encoders.card import Cost, EncoderCard, OutputSpec, TokenGrid, Weights, evaluate_formula
from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.families.precomputed.network import PrecomputedEncoder
from neuroflamingo_preprocessing.errors import ModelError, UsageError
from neuroflamingo_preprocessing.spec import Axis, ScanSpec


def card(**changes: Any) -> EncoderCard:
    fields: dict[str, Any] = {
        "name": "patches",
        "version": "1",
        "summary": "for tests",
        "implementation": "somewhere.else:Patches",
        "scan": ScanSpec(modality="volume3d", axes=tuple(Axis(name=n, size=s) for n, s in SIZES.items())),  # type: ignore
        "output": OutputSpec(width=5, tokens="(x // 2) * (y // 2) * (z // 2)", order=("x", "y", "z")),
        "weights": Weights(
            source="none",
            licence="Apache-2.0",
            commercial=True,
            redistribution=True,
            derivatives=True,
            strip_prefixes=("module.", "encoder."),
            allow_unexpected=("head.weight",),
        ),
        "cost": Cost(parameters=45),
    }
    return EncoderCard(**(fields | changes))


SIZES = {"channel": 1, "x": 4, "y": 6, "z": 8}


class Patches(BrainEncoder):
    """The smallest possible encoder: one convolution, with dropout to see whether eval mode holds."""

    def __init__(self, card: EncoderCard) -> None:
        super().__init__(card)
        self.conv = nn.Conv3d(1, card.output.width, 2, stride=2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> EncoderOutput:
        batch = x.shape[0]
        y = self.drop(self.conv(x.flatten(0, 1))).flatten(2).transpose(1, 2)
        return EncoderOutput(y.reshape(batch, -1, *y.shape[1:]))


def test_card_round_trips() -> None:
    one = card()
    for copy in (EncoderCard.model_validate_json(one.model_dump_json()), pickle.loads(pickle.dumps(one))):
        assert copy == one and hash(copy) == hash(one) and copy.digest == one.digest
    assert card(version="2").digest != one.digest


def test_cards_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError, match="widht"):
        OutputSpec(width=5, tokens=1, order=(), widht=5)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="implementation"):
        card(implementation="os.system('x')")
    with pytest.raises(ValidationError, match="one line"):
        card(summary="a\nb")
    with pytest.raises(ValidationError, match="not allowed"):
        card(output=OutputSpec(width=5, tokens="x ** 2", order=()))
    with pytest.raises(ValidationError, match="not allowed"):
        card(output=OutputSpec(width=5, tokens="parcel", order=()))


@pytest.mark.parametrize(
    ("formula", "value"), [("24", 24), ("x // 2 + 1", 3), ("(x - 1) * y", 18), ("x * y // z", 3), ("channel", 1)]
)
def test_token_formulas(formula: str, value: int) -> None:
    assert evaluate_formula(formula, SIZES) == value


@pytest.mark.parametrize("formula", ["x.real", "__import__('os')", "x / 2", "x // 0", "1.5", "x if y else z", "x("])
def test_token_formulas_are_no_programs(formula: str) -> None:
    with pytest.raises(ValueError, match="token formula"):
        evaluate_formula(formula, SIZES)


def test_token_grid_runs_last_axis_fastest() -> None:
    grid = TokenGrid(shape=(2, 1, 2), spacing_mm=(10.0, 1.0, 20.0), origin_mm=(-5.0, 3.0, 0.0))
    np.testing.assert_array_equal(grid.positions, [[-5, 3, 0], [-5, 3, 20], [5, 3, 0], [5, 3, 20]])


def test_declared_shapes_hold() -> None:
    encoder = Patches(card())
    tokens, mask, positions = encoder(torch.randn(2, 3, 1, 4, 6, 8))
    assert tokens.shape == (2, 3, encoder.card.output.token_count(SIZES), encoder.card.output.width)
    assert mask is None and positions is None


@pytest.mark.parametrize("shape", [(2, 3, 1, 6, 4, 8), (2, 1, 4, 6, 8), (2, 3, 2, 4, 6, 8), (1,)])
def test_other_shapes_are_refused_before_the_network_sees_them(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="does not fit the encoder 'patches'") as caught:
        Patches(card())(torch.zeros(shape))
    assert "x=4, y=6, z=8" in str(caught.value.expected) and str(list(shape)) in str(caught.value.seen)


def test_frozen_means_no_gradient_and_eval_mode_whatever_the_parent_does() -> None:
    encoder = Patches(card()).freeze()
    parent = nn.Sequential(encoder).train()
    assert not encoder.training and not encoder.drop.training
    assert not any(p.requires_grad for p in parent.parameters())
    x = torch.randn(1, 1, 1, 4, 6, 8)
    assert torch.equal(encoder(x).tokens, encoder(x).tokens)
    encoder.unfreeze().train()
    assert encoder.drop.training and encoder.conv.weight.requires_grad


def test_unfreezing_opens_only_what_the_card_declares() -> None:
    encoder = Patches(card(trainable=("conv.bias",))).freeze().unfreeze()
    assert encoder.conv.bias is not None and encoder.conv.bias.requires_grad
    assert not encoder.conv.weight.requires_grad


def test_weights_load_by_the_cards_rules() -> None:
    source, target = Patches(card()), Patches(card())
    state = {f"module.encoder.{k}": v for k, v in source.state_dict().items()} | {"head.weight": torch.zeros(1)}
    target.load_weights(state)
    assert torch.equal(target.conv.weight, source.conv.weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("conv.bias"), r"1 missing \(conv.bias\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (lambda s: s.update({"conv.bias": torch.zeros(6)}), r"conv.bias: \[6\], not \[5\]"),
    ],
)
def test_weights_that_do_not_fit_are_never_half_loaded(change: Any, words: str) -> None:
    encoder = Patches(card())
    before = encoder.conv.weight.clone()
    state = {k: v + 1 for k, v in encoder.state_dict().items()}
    change(state)
    with pytest.raises(ModelError, match=words) as caught:
        encoder.load_weights(state)
    assert caught.value.exit_code == 65
    assert torch.equal(encoder.conv.weight, before)


def test_precomputed_passes_tokens_and_checks_their_width() -> None:
    encoder = PrecomputedEncoder(precomputed_card(width=7))
    x = torch.randn(2, 1, 9, 7)
    assert torch.equal(encoder(x).tokens, x)
    assert encoder.card.output.token_count({"token": 9, "width": 7}) == 9
    with pytest.raises(UsageError):
        encoder(torch.randn(2, 1, 9, 8))
    with pytest.raises(UsageError):
        PrecomputedEncoder(precomputed_card(width=7, tokens=4))(x)
