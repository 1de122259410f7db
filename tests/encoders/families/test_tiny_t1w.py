"""The embedded model's encoder keeps its contract."""

from __future__ import annotations

import pytest
import torch

from neuroflamingo_encoders.families.tiny_t1w.network import BRAIN_CELLS, SUMMARIES, TinyT1wEncoder
from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.structural.template import load_template


@pytest.fixture(scope="module")
def encoder() -> TinyT1wEncoder:
    torch.manual_seed(0)
    return TinyT1wEncoder().eval()


def heads(count: int) -> torch.Tensor:
    torch.manual_seed(1)
    template = torch.from_numpy(load_template().grid_t1)
    return template + 0.1 * torch.randn(count, 1, 1, *template.shape)


def test_shapes_are_the_cards(encoder: TinyT1wEncoder) -> None:
    out = encoder(heads(2))
    assert out.tokens.shape == (2, 1, encoder.card.output.tokens, encoder.card.output.width)
    assert len(encoder.cells) == BRAIN_CELLS and encoder.card.output.tokens == BRAIN_CELLS + SUMMARIES
    assert encoder.card.cost.parameters == sum(p.numel() for p in encoder.parameters())


def test_positions_are_in_the_brain_and_summaries_have_none(encoder: TinyT1wEncoder) -> None:
    positions = encoder(heads(1)).positions
    assert positions is not None and positions[:BRAIN_CELLS].isfinite().all() and positions[BRAIN_CELLS:].isnan().all()
    assert float(positions[:BRAIN_CELLS, 0].abs().max()) < 85


@pytest.mark.slow
def test_a_scan_gives_the_same_tokens_alone_and_in_a_batch(encoder: TinyT1wEncoder) -> None:
    x = heads(3)
    with torch.no_grad():
        together, alone = encoder(x).tokens, torch.cat([encoder(one[None]).tokens for one in x])
        stacked = encoder(x.transpose(0, 1)).tokens.transpose(0, 1)
    assert torch.allclose(together, alone, atol=1e-5) and torch.allclose(together, stacked, atol=1e-5)


def test_a_change_in_one_place_moves_the_token_of_that_place_most(encoder: TinyT1wEncoder) -> None:
    """Catches swapped or flipped axes: the nearest token changes more than the one at the mirrored place."""
    x = heads(1)
    place = torch.tensor([-40.0, 20.0, 20.0])
    index = ((place + torch.tensor([82.5, 112.5, 76.5])) / 3).round().long().tolist()
    changed = x.clone()
    changed[0, 0, 0, index[0] - 2 : index[0] + 3, index[1] - 2 : index[1] + 3, index[2] - 2 : index[2] + 3] += 1.0
    with torch.no_grad():
        before, after = encoder(x), encoder(changed)
    moved = (after.tokens - before.tokens)[0, 0, :BRAIN_CELLS].norm(dim=-1)
    centres = encoder.centres
    near = (centres - place).norm(dim=1).argmin()
    behind = (centres - place * torch.tensor([1.0, -1.0, 1.0])).norm(dim=1).argmin()
    below = (centres - place * torch.tensor([1.0, 1.0, -1.0])).norm(dim=1).argmin()
    assert moved[near] > 2 * moved[behind] and moved[near] > 2 * moved[below]


@pytest.mark.slow
def test_every_parameter_but_the_heads_gets_a_gradient_through_the_tokens(encoder: TinyT1wEncoder) -> None:
    encoder.zero_grad()
    encoder(heads(1)).tokens.square().sum().backward()
    without = {n for n, p in encoder.named_parameters() if p.grad is None}
    assert {n.split(".")[0] for n in without} == {
        "focal_head",
        "grade_heads",
        "lobe_head",
        "occupancy_head",
        "fine_occupancy_head",
    }


def test_other_shapes_are_refused(encoder: TinyT1wEncoder) -> None:
    with pytest.raises(UsageError, match="tiny-t1w-cnn"):
        encoder(torch.zeros(1, 1, 1, 64, 64, 56))


def test_typical_is_symmetric_and_passes_over_a_lesion() -> None:
    torch.manual_seed(3)
    encoder = TinyT1wEncoder().eval()
    many = heads(15)[:, 0, 0]
    many[0, 10:20, 30:40, 30:40] += 5.0
    encoder.learn_typical(many)
    assert torch.equal(encoder.typical, encoder.typical.flip(0)) and torch.equal(encoder.spread, encoder.spread.flip(0))
    assert float(encoder.spread.min()) > 0.0399 and float(encoder.typical.max()) < 2.0
    assert 0.05 < float(encoder.spread.median()) < 0.15, "the heads differ by a standard deviation of 0.1"
