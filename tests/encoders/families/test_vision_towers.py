"""2D towers on slices: which planes, which way round, which numbers; and open_clip for real, in a folder of its own."""

from __future__ import annotations

import importlib.abc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from neuroflamingo_encoders.families.vision_towers.cards import TINY
from neuroflamingo_encoders.families.vision_towers.clip import ClipTower, SiglipTower
from neuroflamingo_encoders.families.vision_towers.open_clip import OpenClipTower
from neuroflamingo_encoders.families.vision_towers.slices import cut, slice_indices, slices_as_scans, to_square, to_unit
from neuroflamingo_encoders.registry import encoder_card, load_dotted
from neuroflamingo_preprocessing.errors import ModelError, ScanError, UsageError
from tests.encoders.families.small import sizes_of, small

ROOT = Path(__file__).resolve().parents[3]
PARAMETERS = {
    "clip-vit-l14": 303_179_776,
    "clip-tower": 87_456_000,
    "siglip-so400m": 412_987_248,
    "siglip-tower": 85_797_120,
}
TOKENS = {"clip-vit-l14": 8 * 256, "clip-tower": 8 * 49, "siglip-so400m": 8 * 729, "siglip-tower": 8 * 196}
SIZES = {"side": 32, "patch": 8, "width": 16, "depth": 1, "heads": 2, "mlp": 32}
VOLUME = {"x": 16, "y": 24, "z": 16, "spacing_mm": 8.0, "slices": 4, "window": "value", "low": 0.0, "high": 1.0}


def tower(name: str = "clip-tower", seed: int = 0, **options: Any) -> Any:
    card = encoder_card(name, **(SIZES | options))
    torch.manual_seed(seed)
    return load_dotted(name, card.implementation)(card).freeze()


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters_and_tokens_are_those_of_the_published_towers(name: str) -> None:
    card = encoder_card(name)
    with torch.device("meta"):
        encoder = load_dotted(name, card.implementation)(card)
    assert sum(p.numel() for p in encoder.parameters()) == PARAMETERS[name] == card.cost.parameters
    assert card.output.tokens == TOKENS[name]
    assert set(TINY) == set(PARAMETERS)


@pytest.mark.parametrize("name", ["clip-tower", "siglip-tower"])
def test_slices_as_frames_and_as_scans_give_the_same_tokens(name: str) -> None:
    frames, scans = tower(name, **VOLUME), tower(name, slices=0)
    scans.load_state_dict(frames.state_dict())
    heads = torch.rand(2, 1, 1, 16, 24, 16)
    pictures = slices_as_scans(heads[:, 0, 0], frames.card)
    assert pictures.shape == (2, 4, 3, 32, 32)
    one_each = scans(pictures).tokens
    assert one_each.shape == (2, 4, 16, 16)
    torch.testing.assert_close(one_each.reshape(2, 1, 64, 16), frames(heads).tokens, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="takes images, not volumes"):
        slices_as_scans(heads[:, 0, 0], scans.card)


@pytest.mark.parametrize("name", sorted(TINY))
def test_tokens_fit_the_card_and_do_not_depend_on_the_batch(name: str) -> None:
    encoder = small(name)
    x = torch.rand(2, 2, *sizes_of(encoder.card).values())
    tokens, mask, positions = encoder(x)
    assert tokens.shape == (2, 2, encoder.card.output.tokens, 16) and mask is None
    assert positions is not None and positions.shape == (encoder.card.output.tokens, 3)
    torch.testing.assert_close(encoder(x[1:, :1]).tokens, tokens[1:, :1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="does not fit"):
        encoder(x.transpose(3, 4))


def test_a_siglip_tower_of_full_width_runs() -> None:
    card = encoder_card("siglip-so400m", slices=1)
    encoder = SiglipTower(card, {"depth": 1}).freeze()
    tokens = encoder(torch.rand(1, 1, *sizes_of(card).values())).tokens
    assert tokens.shape == (1, 1, 729, 1152) and tokens.isfinite().all()


def test_clip_gives_the_last_layers_patch_tokens_before_the_last_norm() -> None:
    encoder = tower(**VOLUME)
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    own = CLIPVisionModel(CLIPVisionConfig(**sizes, intermediate_size=32, hidden_act="quick_gelu")).eval()
    own.load_state_dict({k.removeprefix("vision_model."): v for k, v in encoder.state_dict().items()})
    x = torch.rand(1, 1, 1, 16, 24, 16)
    expected = own(pixel_values=encoder.pictures(x[0])[0]).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder(x).tokens[0, 0], expected.flatten(0, 1))


def test_quick_gelu_stands_on_the_card_and_changes_the_numbers() -> None:
    quick, exact = tower(**VOLUME), tower(quick_gelu=False, **VOLUME)
    assert dict(quick.card.network)["activation"] == "quick_gelu" != dict(exact.card.network)["activation"]
    assert dict(encoder_card("clip-vit-l14").network)["activation"] == "quick_gelu"
    assert quick.card.digest != exact.card.digest
    exact.load_weights(quick.state_dict())
    x = torch.rand(1, 1, 1, 16, 24, 16)
    assert not torch.equal(quick(x).tokens, exact(x).tokens)


def test_slices_are_evenly_spaced_and_lie_as_declared() -> None:
    assert slice_indices(96, 8) == [6, 18, 30, 42, 54, 66, 78, 90]
    assert slice_indices(7, 7) == list(range(7)) and slice_indices(5, 1) == [2]
    x, y, z = np.indices((3, 4, 5))
    volume = torch.from_numpy(100.0 * x + 10 * y + z)[None]
    axial, coronal, sagittal = (cut(volume, axis, 2)[0] for axis in "zyx")
    assert axial.shape == (2, 4, 3) and coronal.shape == (2, 5, 3) and sagittal.shape == (2, 5, 4)
    # slice 1 of z is z=3; the first row is anterior (y=3), the first column the patient's left (x=0)
    assert axial[1, 0, 0] == 33 and axial[1, 0, 2] == 233 and axial[1, 3, 0] == 3
    assert coronal[0, 0, 0] == 14 and coronal[1, 0, 0] == 34 and coronal[0, 4, 2] == 210  # first row superior (z=4)
    assert sagittal[0, 0, 0] == 4 and sagittal[1, 0, 3] == 234 and sagittal[0, 4, 0] == 0


def test_windows() -> None:
    volume = torch.arange(-10.0, 90.0).view(1, 4, 5, 5)
    assert to_unit(volume, "value", 0.0, 50.0).flatten()[[0, 10, 35, 99]].tolist() == [0.0, 0.0, 0.5, 1.0]
    ranks = torch.cat([torch.zeros(99), torch.arange(1.0, 102.0)]).view(1, 8, 5, 5)
    unit = to_unit(ranks, "percentile", 10.0, 90.0).flatten()
    assert not unit[:109].any() and float(unit[109]) == 0.0 and float(unit[110]) > 0  # rank 11 is the 10th percentile
    assert float(unit[189]) == 1.0 and float(unit[188]) < 1 and float(unit[149]) == 0.5
    assert not to_unit(torch.zeros(1, 2, 2, 2), "percentile", 0.5, 99.5).any()
    one = to_unit(torch.cat([ranks, 1000 * ranks]), "percentile", 10.0, 90.0)  # each volume by itself
    torch.testing.assert_close(one[0], one[1])


def test_pictures_are_padded_around_the_middle() -> None:
    square = to_square(torch.ones(1, 1, 4, 2), 4)[0, 0]
    assert square.tolist() == [[0, 1, 1, 0]] * 4
    assert to_square(torch.rand(1, 3, 5, 9), 32).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("name", ["clip-tower", "siglip-tower"])
def test_a_changed_place_changes_the_token_whose_position_it_is_most(name: str, axis: str) -> None:
    encoder = tower(name, axis=axis, **VOLUME)
    scan = encoder.card.scan
    x = torch.rand(1, 1, 1, 16, 24, 16)
    before = encoder(x)
    assert encoder.card.output.order[0] == axis
    index = (before.positions.numpy() - np.array(scan.origin_mm)) / np.array(scan.spacing_mm)
    inside = [i for i, at in enumerate(index) if ((at >= 1) & (at <= np.array([14, 22, 14]))).all()]
    for token in (inside[0], inside[len(inside) // 3], inside[-1]):
        low = np.round(index[token]).astype(int) - 1
        changed = x.clone()
        changed[..., low[0] : low[0] + 3, low[1] : low[1] + 3, low[2] : low[2] + 3] = 3.0
        moved = (encoder(changed).tokens - before.tokens)[0, 0].norm(dim=-1)
        assert int(moved.argmax()) == token
        per_slice = moved.view(4, -1).amax(1)
        assert int((per_slice > 0).sum()) == 1 and int(per_slice.argmax()) == token // 16


def test_pictures_go_in_as_they_are() -> None:
    encoder = tower("siglip-tower", slices=0)
    assert encoder.card.scan.modality == "image2d" and encoder.card.output.tokens == 16
    x = torch.rand(1, 2, 3, 32, 32)
    torch.testing.assert_close(encoder.pictures(x[0])[:, 0], (x[0] - 0.5) / 0.5)
    tokens, _, positions = encoder(x)
    assert tokens.shape == (1, 2, 16, 16) and positions is None
    changed = x.clone()
    changed[0, 0, :, 8:16, 24:32] = 0  # row 1, column 3
    moved = (encoder(changed).tokens - tokens)[0, 0].norm(dim=-1)
    assert int(moved.argmax()) == 1 * 4 + 3
    with pytest.raises(ScanError, match=r"values 0\.\.1"):
        encoder(x * 255)


def test_nan_and_impossible_policies_are_refused() -> None:
    encoder = tower(**VOLUME)
    with pytest.raises(ScanError, match="finite"):
        encoder(torch.full((1, 1, 1, 16, 24, 16), torch.nan))
    assert encoder(torch.zeros(1, 1, 1, 16, 24, 16)).tokens.isfinite().all()
    for wrong in ({"axis": "t"}, {"slices": 200}, {"window": "mean"}, {"low": 99.9}, {"planes": 3}):
        with pytest.raises(ModelError, match="cannot be made"):
            encoder_card("clip-vit-l14", **wrong)
    with pytest.raises(ModelError, match="cannot be made"):
        encoder_card("open-clip", colours="grey")


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("clip-tower", ("text_model.final_layer_norm.weight", "visual_projection.weight", "logit_scale")),
        ("siglip-tower", ("text_model.head.bias", "vision_model.head.probe", "logit_bias")),
    ],
)
def test_whole_models_files_load_by_their_published_names(name: str, rest: tuple[str, ...]) -> None:
    source, target = tower(name), tower(name, seed=1)
    state = source.state_dict()
    assert all(key.startswith("vision_model.") for key in state)
    target.load_weights(state | {key: torch.zeros(1) for key in (*rest, "vision_model.embeddings.position_ids")})
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in state.items())
    other = tower("clip-tower" if name == "siglip-tower" else "siglip-tower")
    with pytest.raises(ModelError, match="do not fit"):
        other.load_weights(state)
    state.pop("vision_model.post_layernorm.bias")
    with pytest.raises(ModelError, match="1 missing"):
        target.load_weights(state)


class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "open_clip":
            raise RuntimeError("operator torchvision::nms does not exist")


def test_what_to_do_without_open_clip_or_with_a_torchvision_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModelError, match=r"pip install 'neuroflamingo\[clip\]'") as caught:
        OpenClipTower(encoder_card("open-clip"))
    assert caught.value.exit_code == 69
    monkeypatch.delitem(sys.modules, "open_clip")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ModelError, match="torchvision::nms does not exist"):
        OpenClipTower(encoder_card("open-clip"))


OPEN_CLIP = ("open_clip_torch==3.3.0", "torchvision==0.28.0", "timm==1.0.31", "ftfy", "regex", "wcwidth")
# torchvision's compiled operators do not load beside a CPU build of torch: two names are all that it needs to import.
REAL = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
if not torch.cuda.is_available():
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from neuroflamingo_encoders.families.vision_towers.clip import ClipTower
from neuroflamingo_encoders.families.vision_towers.open_clip import OpenClipTower
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_preprocessing.errors import ModelError

policy = {"slices": 2, "x": 12, "y": 20, "z": 16}
card = encoder_card("open-clip", **policy)
tower = OpenClipTower(card).freeze()
assert sum(p.numel() for p in tower.parameters()) == card.cost.parameters
x = torch.rand(1, 2, 1, 12, 20, 16)
tokens = tower(x).tokens
assert tokens.shape == (1, 2, 2 * 49, 768) and tokens.isfinite().all()

own = ClipTower(encoder_card("clip-tower", quick_gelu=False, **policy)).freeze()
names = [("visual.conv1", "embeddings.patch_embedding"), ("visual.ln_pre", "pre_layrnorm"),
    ("visual.transformer.resblocks", "encoder.layers"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
    ("visual.class_embedding", "embeddings.class_embedding"),
    ("visual.positional_embedding", "embeddings.position_embedding.weight")]
state = {key: value for key, value in own.state_dict().items() if "post_layernorm" in key}
for key, value in tower.state_dict().items():
    if key == "visual.proj":
        continue
    for old, new in names:
        key = key.replace(old, new)
    if "in_proj_" in key:
        for part, name in zip(value.chunk(3), "qkv"):
            state["vision_model." + key.replace("attn.in_proj_", f"self_attn.{name}_proj.")] = part
    else:
        state["vision_model." + key] = value
own.load_weights(state)
torch.testing.assert_close(own(x).tokens, tokens, rtol=1e-3, atol=1e-4)

whole = {"module." + key: value for key, value in tower.state_dict().items()} | {"text_projection": torch.zeros(1)}
whole["module.visual.ln_post.bias"] = torch.zeros(768)
tower.load_weights(whole)
for model, words in (("RN50", "no patch tokens"), ("ViT-B-16", "other sizes"), ("hf-hub:a/b", "no model named")):
    try:
        OpenClipTower(encoder_card("open-clip", model=model, **policy)).freeze()(x)
    except ModelError as error:
        assert words in str(error), error
    else:
        raise AssertionError(model)
print("real forward of open_clip")
"""


@pytest.mark.slow
def test_open_clip_for_real(tmp_path: Path) -> None:
    """ViT-B-32 against transformers' tower with the same weights; installed aside, since it breaks peft otherwise."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
    run = subprocess.run([*pip, "--target", str(site), *OPEN_CLIP], capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"pip cannot get {', '.join(OPEN_CLIP[:3])}: {run.stderr.strip().splitlines()[-1]}")
    folders = (ROOT / "encoders", ROOT / "preprocessing", ROOT, site)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    run = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    assert "real forward of open_clip" in run.stdout


def test_classes_take_their_card_alone() -> None:
    assert ClipTower(encoder_card("clip-tower", **SIZES)).card.name == "clip-tower"
