"""Published encoders: what their parity cases cannot catch (wrong files, missing tables, order, padding)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.families.brain_jepa.network import BrainJepaEncoder
from neuroflamingo_encoders.families.brainlm.network import BrainLmEncoder
from neuroflamingo_encoders.families.brainlm.vitmae import BrainLmVitMaeEncoder
from neuroflamingo_encoders.families.brainmt.network import BrainMtEncoder
from neuroflamingo_encoders.families.swin4d.network import NeuroStormEncoder, SwiftEncoder, _mask
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_preprocessing.errors import ModelError, UsageError
from neuroflamingo_preprocessing.spec import Axis


def small_card(name: str, **sizes: int) -> EncoderCard:
    card = encoder_card(name)
    axes = tuple(Axis(name=axis.name, size=sizes.get(axis.name, axis.size)) for axis in card.scan.axes)
    return card.model_copy(update={"scan": card.scan.model_copy(update={"axes": axes})})


BRAINLM = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "timepoint_patching_size": 5}
PICTURE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def brainlm() -> BrainLmEncoder:
    torch.manual_seed(0)
    config = BRAINLM | {"num_brain_voxels": 6, "conv_kernel_size": 9}
    return BrainLmEncoder(small_card("brainlm-13m", parcel=6, time=10), config)


@pytest.fixture
def picture() -> BrainLmVitMaeEncoder:
    torch.manual_seed(0)
    card = small_card("brainlm-vitmae-111m", parcel=6, time=10)
    return BrainLmVitMaeEncoder(card, PICTURE | {"image_size": 32, "patch_size": 4}, parcels=6, frames=10)


def test_a_picture_files_weights_are_refused_by_the_other_layout_and_back(brainlm: Any, picture: Any) -> None:
    with pytest.raises(ModelError, match="missing"):
        brainlm.load_weights(picture.state_dict())
    with pytest.raises(ModelError, match="missing"):
        picture.load_weights(brainlm.state_dict())


def test_the_nystrom_branch_is_refused() -> None:
    with pytest.raises(ModelError, match="Nystrom"):
        BrainLmEncoder(encoder_card("brainlm-13m"), BRAINLM | {"num_landmarks": 32})


def test_tables_that_are_no_weights_are_asked_for(brainlm: Any, picture: Any) -> None:
    x = torch.randn(1, 1, 6, 10)
    for encoder in (brainlm, picture):
        with pytest.raises(UsageError, match="coordinates"):
            encoder(x)
        with pytest.raises(UsageError, match=r"\[6, 3\]"):
            encoder.set_coordinates(torch.zeros(5, 3))
        encoder.set_coordinates(torch.arange(18.0).view(6, 3))
        assert encoder(x).tokens.isfinite().all()
    sizes = {"num_rois": 6, "num_timepoints": 40, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    jepa = BrainJepaEncoder(small_card("brain-jepa-vitb", parcel=6, time=40), sizes)
    with pytest.raises(UsageError, match="gradient table"):
        jepa(torch.randn(1, 1, 6, 40))
    jepa.set_gradient(torch.randn(6, 30))
    assert jepa(torch.randn(1, 1, 6, 40)).tokens.shape == (1, 1, 60, 16)


def test_parcels_of_one_y_keep_their_order_and_padding_is_left_out(picture: Any) -> None:
    picture.set_coordinates(torch.tensor([[0, 5, 0], [1, -3, 0], [2, 5, 0], [3, -3, 0], [4, 0, 0], [5, 5, 0]]))
    assert picture.order.tolist() == [1, 3, 4, 0, 2, 5]
    image = picture.picture(torch.ones(1, 6, 10))
    assert image.shape == (1, 1, 32, 32) and float(image[0, 0, 0, 0]) == -1.0
    assert int((image > 0).sum()) == 60
    # 6 parcels lie in rows 13 to 18 (patches 3 and 4), 10 frames in columns 11 to 20 (patches 2 to 5)
    assert picture(torch.randn(1, 1, 6, 10)).tokens.shape == (1, 1, 1 + 2 * 4, 16)


def test_released_pictures_keep_the_columns_that_touch_data() -> None:
    for name in ("brainlm-vitmae-111m", "brainlm-vitmae-650m"):
        with torch.device("meta"):
            encoder = BrainLmVitMaeEncoder(encoder_card(name))
        assert len(encoder.kept) == encoder.card.output.tokens


@pytest.mark.parametrize("module", [SwiftEncoder, NeuroStormEncoder])
def test_a_moved_block_of_voxels_changes_the_token_of_its_place_most(module: Any) -> None:
    torch.manual_seed(0)
    sizes = dict.fromkeys(("x", "y", "z"), 12) | {"time": 2}
    config = {
        "img_size": (12, 12, 12, 2), "patch_size": (3, 3, 3, 1), "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2),
        "window_size": (2, 2, 2, 2), "first_window_size": (2, 2, 2, 2), "last_layer_full_MSA": False,
    }  # fmt: skip
    name = "swift" if module is SwiftEncoder else "neurostorm"
    encoder = module(small_card(name, **sizes), config).freeze()
    x = torch.randn(1, 1, 1, 12, 12, 12, 2)
    changed = x.clone()
    changed[..., 6:, :6, :6, 0] += 3.0  # x high, y and z low, the first frame: token ((1 * 2 + 0) * 2 + 0) * 2 + 0
    moved = (encoder(changed).tokens - encoder(x).tokens)[0, 0].norm(dim=-1)
    assert len(moved) == 2 * 2 * 2 * 2 and int(moved.argmax()) == 8


def test_a_mask_first_made_under_meta_keeps_its_values() -> None:
    _mask.cache_clear()
    with torch.device("meta"):
        mask = _mask((4, 4, 4, 4), (2, 2, 2, 2), (1, 1, 1, 1))
    assert mask.device.type == "cpu" and set(mask.unique().tolist()) == {-100.0, 0.0}
    assert _mask((4, 4, 4, 4), (2, 2, 2, 2), (1, 1, 1, 1)) is mask


def test_brainmt_pools_time_where_asked() -> None:
    config = {"num_frames": 6, "grid": (1, 1, 1), "embed_dim": 32, "stem_in_dim": 4, "stem_dim": 8, "depth": (1, 1)}
    card = small_card("brainmt", time=6, x=16, y=16, z=16)
    x = torch.randn(1, 2, 6, 1, 16, 16, 16)
    torch.manual_seed(0)
    whole = BrainMtEncoder(card, config).freeze()
    pooled = BrainMtEncoder(card, config, pooled_frames=2).freeze()
    pooled.load_weights(whole.state_dict())
    tokens, fewer = whole(x).tokens, pooled(x).tokens
    assert tokens.shape == (1, 2, 7, 32) and fewer.shape == (1, 2, 3, 32)
    torch.testing.assert_close(fewer[:, :, 1], tokens[:, :, 1:4].mean(2))
    with pytest.raises(UsageError, match="divisor of 6"):
        BrainMtEncoder(card, config, pooled_frames=4)


def test_the_baseline_is_the_correlation_matrix() -> None:
    import numpy as np

    x = torch.randn(2, 1, 5, 40)
    x[1, 0, 3] = 7.0  # a parcel without variance
    tokens = build_encoder("fc-baseline", parcels=5)(x).tokens
    expected = np.arctanh(np.corrcoef(x[0, 0].numpy()) - np.eye(5))
    np.testing.assert_allclose(tokens[0, 0].numpy(), expected * (1 - np.eye(5)), atol=1e-5)
    assert tokens.isfinite().all() and not tokens[1, 0, 3].any() and not tokens[1, 0, :, 3].any()
