"""The registry: names without imports, cards without torch, clear words for what is missing."""

from __future__ import annotations

import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from neuroflamingo_encoders import registry
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.registry import BUILT_IN, encoder_card, list_encoders
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE, grid_affine


class Scale(BrainEncoder):
    """Multiplies tokens by one weight."""

    def __init__(self, card: EncoderCard) -> None:
        super().__init__(card)
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> EncoderOutput:
        return EncoderOutput(x * self.factor)


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An installed package that offers the encoder `scale`."""
    module = types.ModuleType("scale_plug_in")
    fields: dict[str, Any] = {"name": "scale", "implementation": "scale_plug_in:Scale"}
    module.CARD = precomputed_card(width=4).model_copy(update=fields)  # type: ignore[attr-defined]
    module.Scale = Scale  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scale_plug_in", module)
    offer(monkeypatch, scale="scale_plug_in:CARD")
    return module


def offer(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = tuple(
        EntryPoint(name.replace("_", "-"), value, registry.ENTRY_POINT_GROUP) for name, value in points.items()
    )
    monkeypatch.setattr(registry, "_plug_ins", lambda: found)


def test_listing_and_cards_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from neuroflamingo_encoders.registry import list_encoders, encoder_card\n"
        "print(*(encoder_card(name).name for name in list_encoders()))\n"
        "heavy = {'torch', 'scipy', 'nilearn', 'SimpleITK', 'monai', 'transformers'}\n"
        "assert not heavy & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(BUILT_IN)


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"open-clip"}))  # built in test_picture_encoders
def test_every_built_in_encoder_builds_frozen_with_its_card(name: str) -> None:
    with torch.device("meta" if encoder_card(name).cost.parameters > 50_000_000 else "cpu"):
        encoder = build_encoder(name)
    assert encoder.card == encoder_card(name)
    assert encoder.frozen and not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert sum(p.numel() for p in encoder.parameters()) == encoder.card.cost.parameters


def test_the_embedded_encoder_does_what_its_card_says() -> None:
    encoder = build_encoder("tiny-t1w-cnn")
    scan, output = encoder.card.scan, encoder.card.output
    assert scan.grid_shape == GRID_SHAPE
    assert (scan.grid_affine == grid_affine()).all()
    tokens, mask, positions = encoder(torch.zeros(1, 1, 1, *GRID_SHAPE))
    assert tokens.shape == (1, 1, output.tokens, output.width)
    assert mask is None and positions is not None and len(positions) == output.tokens
    assert output.grid is not None
    lattice = torch.from_numpy(output.grid.positions)
    placed = positions[~positions.isnan().any(dim=1)]
    assert len(placed) > 100
    assert torch.cdist(placed, lattice).min(dim=1).values.max() < 1e-2


def test_options_make_the_card() -> None:
    assert build_encoder("precomputed", width=12).card.output.width == 12
    with pytest.raises(ModelError, match="cannot be made") as caught:
        encoder_card("precomputed", depth=3)
    assert caught.value.exit_code == 78
    with pytest.raises(ModelError, match="takes no options"):
        encoder_card("tiny-t1w-cnn", width=3)


@pytest.mark.parametrize("name", ["brainlm-13m", "brainlm-vitmae-111m", "brain-jepa-vitb", "siglip-tower"])
def test_small_instances_have_their_tables_and_are_built_without_memory_too(name: str) -> None:
    """As saved models are read: on the meta device first. Pictures keep the side of the tower."""
    options: dict[str, Any] = {"slices": 0, "side": 56, "patch": 14} if name == "siglip-tower" else {}
    encoder = build_encoder(name, tiny=True, **options)
    sizes = [axis.size or 0 for axis in encoder.card.scan.axes]
    assert encoder(torch.rand(1, 1, *sizes)).tokens.isfinite().all()
    with torch.device("meta"):
        outline = build_encoder(name, tiny=True, **options)
    assert [tuple(v.shape) for v in outline.state_dict().values()] == [
        tuple(v.shape) for v in encoder.state_dict().values()
    ]


def test_unknown_names_get_the_nearest_ones() -> None:
    with pytest.raises(ModelError, match=r"no encoder named 'tiny-t1-cnn'(.|\n)*did you mean tiny-t1w-cnn\?") as caught:
        encoder_card("tiny-t1-cnn")
    assert caught.value.exit_code == 66


def test_a_plug_in_is_listed_built_and_loaded(plug_in: types.ModuleType, tmp_path: Path) -> None:
    assert "scale" in list_encoders()
    save_file({"factor": torch.tensor(3.0)}, tmp_path / "w.safetensors")
    encoder = build_encoder("scale", tmp_path / "w.safetensors")
    assert encoder(torch.ones(1, 1, 2, 4)).tokens.max() == 3.0


def test_listing_survives_a_broken_plug_in_which_is_named_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, broken="no_such_module_anywhere:CARD")
    assert "broken" in list_encoders()
    with pytest.raises(ModelError, match="'broken' cannot be imported") as caught:
        build_encoder("broken")
    assert "no_such_module_anywhere" in str(caught.value)


def test_two_encoders_of_one_name_are_refused_and_the_others_still_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, precomputed="elsewhere:CARD")
    assert list_encoders() == tuple(sorted(BUILT_IN))
    for ask in (encoder_card, build_encoder):
        with pytest.raises(ModelError, match="2 encoders are named 'precomputed'") as caught:
            ask("precomputed")
        assert "neuroflamingo itself and elsewhere:CARD" in str(caught.value.seen)
    assert build_encoder("fc-baseline", parcels=3).card.output.width == 3


def test_cards_under_another_name_and_no_cards_are_refused(
    plug_in: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, other="scale_plug_in:CARD", none="scale_plug_in:dict")
    plug_in.dict = dict  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="card of another name"):
        encoder_card("other")
    with pytest.raises(ModelError, match="has no card"):
        encoder_card("none")


def test_what_is_no_encoder_is_refused(plug_in: types.ModuleType) -> None:
    plug_in.Scale = lambda card: torch.nn.Identity()  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="is not an encoder"):
        build_encoder("scale")


def test_weight_files(plug_in: types.ModuleType, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        build_encoder("scale", tmp_path / "gone.safetensors")
    torch.save({"factor": torch.tensor(3.0)}, tmp_path / "pickle.pt")
    with pytest.raises(ModelError, match="not a safetensors file"):
        build_encoder("scale", tmp_path / "pickle.pt")
    save_file({"other": torch.tensor(3.0)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        build_encoder("scale", tmp_path / "w.safetensors")
    weights = plug_in.CARD.weights.model_copy(update={"sha256": "0" * 64})
    plug_in.CARD = plug_in.CARD.model_copy(update={"weights": weights})  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="not the file that the card"):
        build_encoder("scale", tmp_path / "w.safetensors")
