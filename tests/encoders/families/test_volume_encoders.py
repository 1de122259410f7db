"""3D MRI encoders through MONAI: shapes, order, strides, key rules, and left that stays left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.networks.nets.vit import ViT
from torch import Tensor, nn
from torch.nn import functional as F

from neuroflamingo_encoders.families.resnet3d.network import ResNet3dEncoder
from neuroflamingo_encoders.families.vit3d.cards import vit3d_card
from neuroflamingo_encoders.families.vit3d.network import Vit3dEncoder
from neuroflamingo_encoders.layers.intensity import scale_intensity, unit, zscore_nonzero
from neuroflamingo_encoders.registry import BUILT_IN, encoder_card, load_dotted
from neuroflamingo_preprocessing.errors import ModelError, ScanError, UsageError
from neuroflamingo_preprocessing.geometry import block_mean
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.structural.prepare_volume import prepare_volume
from neuroflamingo_preprocessing.structural.template import load_template
from tests.encoders.families.small import TINY, VOLUMES, sizes_of, small

PARAMETERS = {
    "brainiac-vitb": 88_359_168,
    "m3d-clip": 87_407_616,
    "medicalnet-resnet10": 14_355_520,
    "medicalnet-resnet18": 32_986_176,
    "medicalnet-resnet34": 63_295_808,
    "medicalnet-resnet50": 46_155_072,
    "neuro-simclr-resnet18": 33_160_896,
    "brainsegfounder": 8_062_386,
    "vit3d": 22_959_744,
    "swinunetr-encoder": 8_062_002,
}
OUTPUT = {  # tokens and width of the released sizes
    "brainiac-vitb": (216, 768),
    "m3d-clip": (2049, 768),
    "medicalnet-resnet50": (12 * 14 * 12, 2048),
    "medicalnet-resnet18": (12 * 14 * 12, 512),
    "neuro-simclr-resnet18": (1440, 512),
    "brainsegfounder": (216, 384),
}


def scan(name_or_card: Any, *lead: int, seed: int = 1) -> Tensor:
    card = small(name_or_card).card if isinstance(name_or_card, str) else name_or_card
    return torch.randn(*lead, *sizes_of(card).values(), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters_are_those_of_the_published_networks(name: str) -> None:
    card = encoder_card(name)
    make = load_dotted(name, card.implementation)
    if "swin3d" in card.implementation:  # MONAI computes with numbers while it builds one
        encoder = make(card)
    else:
        with torch.device("meta"):
            encoder = make(card)
    assert sum(p.numel() for p in encoder.parameters()) == PARAMETERS[name] == card.cost.parameters


def test_every_volume_encoder_has_tiny_sizes_and_a_count() -> None:
    modules = ("vit3d.cards", "resnet3d.cards", "swin3d.cards")
    names = {name for name, dotted in BUILT_IN.items() if dotted.split(":")[0].endswith(modules)}
    assert names == set(VOLUMES) == set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(OUTPUT))
def test_released_sizes_give_the_published_tokens(name: str) -> None:
    card = encoder_card(name)
    assert (card.output.token_count(sizes_of(card)), card.output.width) == OUTPUT[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VOLUMES))
def test_tokens_fit_the_card_and_do_not_depend_on_the_batch(name: str) -> None:
    encoder = small(name)
    x = scan(encoder.card, 2, 2)
    tokens, mask, positions = encoder(x)
    assert tokens.shape == (2, 2, encoder.card.output.token_count(sizes_of(encoder.card)), VOLUMES[name][1]["width"])
    assert mask is None and positions is None
    assert float(tokens.std()) > 1e-3
    torch.testing.assert_close(encoder(x[1:, :1]).tokens, tokens[1:, :1], rtol=1e-4, atol=1e-5)


CNNS = sorted(name for name in VOLUMES if "resnet" in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(VOLUMES) - set(CNNS)))
def test_a_moved_block_changes_the_token_of_its_place_most(name: str) -> None:
    encoder = small(name)
    network, order = dict(encoder.card.network), encoder.card.output.order
    steps = [int(network.get(f"patch_{axis}", 16)) for axis in order]
    cells = [sizes_of(encoder.card)[axis] // step for axis, step in zip(order, steps, strict=True)]
    cls = encoder.card.output.cls == "first"
    for place in ([0, 0, cells[2] - 1], [cells[0] - 1, 0, 0], [0, cells[1] - 1, 0]):
        x, other = (scan(encoder.card, 1, 1, seed=n).clamp(-1, 1) for n in (1, 7))  # one range: scaling stays
        where = torch.zeros(x.shape[3:], dtype=torch.bool)
        where[tuple(slice(cell * step, (cell + 1) * step) for cell, step in zip(place, steps, strict=True))] = True
        moved = (encoder(torch.where(where, other, x)).tokens - encoder(x).tokens)[0, 0].norm(dim=-1)[cls:]
        assert len(moved) == np.prod(cells)
        assert int(moved.argmax()) == int(np.ravel_multi_index(place, cells)), place


@pytest.mark.parametrize("name", CNNS)
def test_a_changed_slab_changes_the_layer_of_tokens_of_its_place_most(name: str) -> None:
    """At the first stage: what a deep ResNet without training gives for a place comes from all around it."""
    card, config = small(name, sizes={"x": 64, "y": 48, "z": 80}).card, VOLUMES[name][1]
    torch.manual_seed(0)
    encoder = ResNet3dEncoder(card, config | {"stage": 1, "width": config["width"] // 8}).freeze()
    step = 4 if name.startswith("medicalnet") else 2
    x, other = (scan(card, 1, 1, seed=n) for n in (1, 7))
    cells = [side // step for side in x.shape[3:]]
    for axis in range(3):
        place = cells[axis] // 4  # off the middle, which a swap of axes would leave where it is
        where = torch.zeros(x.shape[3:], dtype=torch.bool)
        where.movedim(axis, 0)[place * step - 4 : place * step + 4] = True
        moved = (encoder(torch.where(where, other, x)).tokens - encoder(x).tokens)[0, 0].norm(dim=-1)
        layers = moved.view(cells).movedim(axis, 0).flatten(1).mean(1)
        assert abs(int(layers.argmax()) - place) <= 1, (axis, layers)  # the slab lies between two layers


def test_numbers_are_those_of_monais_own_networks() -> None:
    vit, m3d, swin, net = (small(n) for n in ("brainiac-vitb", "m3d-clip", "brainsegfounder", "neuro-simclr-resnet18"))
    sizes = {"hidden_size": 12, "mlp_dim": 24, "num_layers": 2, "num_heads": 2}
    own = ViT(1, (32, 16, 48), (16,) * 3, **sizes).eval()
    own.load_state_dict(vit.state_dict())
    x = scan(vit.card, 1, 1)
    torch.testing.assert_close(vit(x).tokens[0], own(zscore_nonzero(x[0]))[0])
    own = ViT(1, (8, 32, 48), (4, 16, 16), proj_type="perceptron", classification=True, **sizes).eval()
    head = own.classification_head
    own.load_state_dict(m3d.state_dict() | {f"classification_head.{k}": v for k, v in head.state_dict().items()})
    del own.classification_head
    x = scan(m3d.card, 1, 1)
    torch.testing.assert_close(m3d(x).tokens[0], own(unit(x[0]))[0])
    own = SwinTransformer(2, 6, (7,) * 3, (2,) * 3, (1,) * 4, (3, 6, 12, 24)).eval()
    own.load_state_dict({k.removeprefix("swinViT."): v for k, v in swin.state_dict().items()})
    x = scan(swin.card, 1, 1)
    torch.testing.assert_close(swin(x).tokens[0], own(x[0])[3].flatten(2).mT)
    own = ResNet("basic", [2] * 4, [4, 8, 16, 32], n_input_channels=1, feed_forward=False).eval()
    own.load_state_dict(net.state_dict())
    x = scan(net.card, 1, 1)
    torch.testing.assert_close(net(x).tokens[0].mean(1), own(zscore_nonzero(x[0])))


@pytest.mark.parametrize(("name", "bottleneck"), [("medicalnet-resnet34", False), ("medicalnet-resnet50", True)])
def test_upstreams_dilated_stages_written_out(name: str, bottleneck: bool) -> None:
    encoder = small(name)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    state, x = encoder.state_dict(), zscore_nonzero(scan(encoder.card, 1))

    def conv(y: Tensor, key: str, bn: str, stride: int = 1, dilation: int = 1) -> Tensor:
        w = state[f"{key}.weight"]
        y = F.conv3d(y, w, stride=stride, dilation=dilation, padding=dilation * (w.shape[-1] // 2))
        stats = (state[f"{bn}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *stats)

    y = F.max_pool3d(conv(x, "conv1", "bn1", stride=2).relu(), 3, 2, 1)
    for layer, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
        for block in range((3, 4, 6, 3)[layer - 1]):
            at = f"layer{layer}.{block}"
            s = stride if block == 0 else 1
            if bottleneck:
                z = conv(y, f"{at}.conv1", f"{at}.bn1").relu()
                z = conv(z, f"{at}.conv2", f"{at}.bn2", s, dilation).relu()
                z = conv(z, f"{at}.conv3", f"{at}.bn3")
                short = conv(y, f"{at}.downsample.0", f"{at}.downsample.1", s) if block == 0 else y
            else:
                z = conv(y, f"{at}.conv1", f"{at}.bn1", s, dilation).relu()
                z = conv(z, f"{at}.conv2", f"{at}.bn2", 1, dilation)
                short = y[..., ::s, ::s, ::s]
                short = F.pad(short, (0,) * 7 + (z.shape[1] - short.shape[1],))  # shortcut A: zeros for new channels
            y = (z + short).relu()
    torch.testing.assert_close(encoder(scan(encoder.card, 1)[:, None]).tokens[0, 0], y[0].flatten(1).T)


def test_variants_and_stages_have_grids_of_their_own_and_one_file() -> None:
    upstream, monai = small("medicalnet-resnet10"), small("medicalnet-resnet10", variant="monai")
    x = scan(upstream.card, 1, 1)  # 24 x 32 x 16
    assert upstream(x).tokens.shape[2] == 3 * 4 * 2 and monai(x).tokens.shape[2] == 2 * 2 * 1
    monai.load_weights(upstream.state_dict())
    wide = {"x": 32, "y": 32, "z": 32}  # 1/8 either way at stage 3: same grid, yet other features
    both = [small("medicalnet-resnet10", sizes=wide, variant=v, stage=3) for v in ("upstream", "monai")]
    both[1].load_weights(both[0].state_dict())
    x = scan(both[0].card, 1, 1)
    one, other = (encoder(x).tokens for encoder in both)
    assert one.shape == other.shape and not torch.allclose(one, other, atol=1e-3)
    for stage, step in ((1, 4), (2, 8)):
        encoder = small("medicalnet-resnet50", stage=stage)
        assert encoder(scan(encoder.card, 1, 1)).tokens.shape[2] == 24 * 32 * 16 // step**3
    with pytest.raises(ModelError, match="variant is 'upstream' or 'monai'"):
        encoder_card("medicalnet-resnet10", variant="torchvision")


def test_batch_norm_keeps_its_statistics() -> None:
    encoder = small("medicalnet-resnet10")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    nn.Sequential(encoder).train()(scan(encoder.card, 1, 1))
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_swin_stages_are_chosen_on_the_card() -> None:
    assert encoder_card("brainsegfounder", stage=4).output.width == 768
    encoder = small("swinunetr-encoder", stage=2)
    assert encoder(scan(encoder.card, 1, 1)).tokens.shape == (1, 1, 4 * 6 * 2, 48)
    with pytest.raises(ModelError, match="stage is 0"):
        encoder_card("brainsegfounder", stage=5)


PREFIXES = {
    "brainiac-vitb": ("backbone.", "model.backbone."),
    "m3d-clip": ("vision_encoder.",),
    "medicalnet-resnet18": ("module.", ""),
    "neuro-simclr-resnet18": ("encoder.", "module.encoder."),
}
REST = {
    "m3d-clip": ("language_encoder.embeddings.word_embeddings.weight", "mm_vision_proj.bias", "logit_scale"),
    "neuro-simclr-resnet18": ("fc.weight", "projector.0.weight"),
}


@pytest.mark.parametrize(("name", "prefix"), [(name, prefix) for name, many in PREFIXES.items() for prefix in many])
def test_published_prefixes_are_stripped_and_the_other_parts_passed_over(name: str, prefix: str) -> None:
    source, target = small(name), small(name, seed=1)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    target.load_weights(state | {key: torch.zeros(1) for key in REST.get(name, ())})
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())
    with pytest.raises(ModelError, match=r"1 unexpected \(head.weight\)"):
        target.load_weights(state | {"head.weight": torch.zeros(1)})


@pytest.mark.parametrize("wrap", ["swinViT.{}", "module.swinViT.{}", "module.{}", "{}"])
def test_swin_files_of_all_kinds(wrap: str) -> None:
    source, target = small("brainsegfounder"), small("brainsegfounder", seed=1)
    bare = {key.removeprefix("swinViT."): value for key, value in source.state_dict().items()}
    state = {wrap.format(key.replace("mlp.linear", "mlp.fc")): value for key, value in bare.items()}
    target.load_weights(state | {"decoder5.conv.weight": torch.zeros(1), "rotation_head.bias": torch.zeros(1)})
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


def test_only_unused_cross_attention_may_be_missing_or_left_over() -> None:
    encoder = small("brainiac-vitb")
    state = dict(encoder.state_dict())
    for number in range(2):
        for kind in ("weight", "bias"):
            state.pop(f"blocks.{number}.norm_cross_attn.{kind}")
            state[f"blocks.{number}.cross_attn.to_q.{kind}"] = torch.zeros(1)  # some releases of MONAI save these
    encoder.load_weights(state)
    for key in [key for key in state if "cross_attn" not in key]:
        with pytest.raises(ModelError, match="1 missing"):
            encoder.load_weights({k: v for k, v in state.items() if k != key})


@pytest.mark.parametrize(
    ("file", "encoder"),
    [
        ("medicalnet-resnet18", "medicalnet-resnet34"),
        ("medicalnet-resnet34", "medicalnet-resnet18"),
        ("medicalnet-resnet18", "neuro-simclr-resnet18"),  # shortcut A has no weights, B has
        ("brainiac-vitb", "m3d-clip"),
        ("brainsegfounder", "swinunetr-encoder"),  # two channels, not one
    ],
)
def test_a_file_of_another_architecture_is_refused_whole(file: str, encoder: str) -> None:
    target = small(encoder, seed=1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ModelError, match="do not fit"):
        target.load_weights(small(file).state_dict())
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_intensities_are_scaled_as_declared() -> None:
    x = torch.zeros(1, 1, 2, 2, 2)
    x[0, 0, 0] = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    z = zscore_nonzero(x)[0, 0]
    np.testing.assert_allclose(z[0].numpy(), (np.array([[1, 2], [3, 6]]) - 3) / np.std([1, 2, 3, 6]), rtol=1e-6)
    assert not z[1].any()
    torch.testing.assert_close(zscore_nonzero(zscore_nonzero(x + 10)), zscore_nonzero(x + 10))
    assert unit(x).amax() == 1 and unit(unit(x)).equal(unit(x))
    for constant in (torch.zeros(1, 1, 2, 2, 2), torch.full((1, 1, 2, 2, 2), 7.0)):
        assert not zscore_nonzero(constant).any() and not unit(constant).any()
    with pytest.raises(ModelError, match="unknown scaling"):
        scale_intensity(x, "histogram")


@pytest.mark.parametrize("name", ["brainiac-vitb", "medicalnet-resnet10", "brainsegfounder"])
def test_bad_volumes_are_refused_and_empty_ones_are_finite(name: str) -> None:
    encoder = small(name)
    x = scan(encoder.card, 1, 1)
    assert encoder(torch.zeros_like(x)).tokens.isfinite().all()
    x[0, 0, 0, 3, 3, 3] = torch.nan
    with pytest.raises(ScanError, match="not finite"):
        encoder(x)
    with pytest.raises(UsageError, match=f"does not fit the encoder '{name}'"):
        encoder(x.transpose(3, 4))


def test_vit3d_takes_any_size_that_divides() -> None:
    card = encoder_card("vit3d", x=24, y=16, z=32, patch=8, width=24, depth=1, heads=3)
    encoder = Vit3dEncoder(card).freeze()
    assert encoder(torch.randn(1, 1, 1, 24, 16, 32)).tokens.shape == (1, 1, 24, 24)
    assert sum(p.numel() for p in encoder.parameters()) == card.cost.parameters
    for wrong in ({"x": 90}, {"heads": 5}):
        with pytest.raises(ModelError, match="must divide"):
            encoder_card("vit3d", **wrong)


@pytest.fixture(scope="module")
def heads() -> tuple[Scan, Scan]:
    """The template head at 4 mm, stored from right to left, without and with a dark ball on the left."""
    template = load_template()
    voxels, affine = block_mean(template.t1 * 100, template.affine, (4, 4, 4))
    voxels, affine = voxels[::-1].copy(), affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] -= affine[:3, 0] * (len(voxels) - 1)
    world = np.moveaxis(np.indices(voxels.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    ball = np.linalg.norm(world - MARK_MM, axis=-1) < 16
    return Scan(voxels, affine), Scan(np.where(ball, voxels * 0.3, voxels), affine)


MARK_MM = np.array([-48.0, -18.0, 22.0])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit3d", "medicalnet-resnet10", "swinunetr-encoder"])
def test_a_mark_on_the_left_of_a_head_changes_the_token_whose_position_is_nearest(heads: Any, family: str) -> None:
    sizes: dict[str, Any] = {"x": 48, "y": 56, "z": 48, "spacing_mm": 4.0}
    more: dict[str, Any] = {"vit3d": {"patch": 8, "width": 24, "depth": 1, "heads": 2}}
    more |= {"medicalnet-resnet10": {"stage": 3}, "swinunetr-encoder": {"embed": 6, "stage": 2}}
    card = encoder_card(family, **sizes, **more[family])
    torch.manual_seed(0)
    encoder = load_dotted(family, card.implementation)(card).freeze()
    in_place = card.scan.model_copy(update={"steps": card.scan.steps[1:]})  # the head lies where it should
    plain, marked = (encoder(torch.from_numpy(prepare_volume(head, in_place).tensor)[None, None]) for head in heads)
    assert plain.positions.shape == (plain.tokens.shape[2], 3) == (card.output.token_count(sizes_of(card)), 3)
    moved = (marked.tokens - plain.tokens)[0, 0].norm(dim=-1)
    place = plain.positions[int(moved.argmax())].numpy()
    assert np.abs(place - MARK_MM).max() <= 32.0 / 2 + 4, place


def test_the_wrong_order_of_tokens_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is worth something: with two axes swapped it fails."""
    right = ResNet3dEncoder.features
    monkeypatch.setattr(ResNet3dEncoder, "features", lambda self, x: right(self, x).transpose(2, 3))
    with pytest.raises(AssertionError):
        test_a_changed_slab_changes_the_layer_of_tokens_of_its_place_most("medicalnet-resnet10")


def test_tiny_sizes_and_cards_agree() -> None:
    for name, (axes, config) in TINY.items():
        assert set(axes) <= {axis.name for axis in encoder_card(name).scan.axes} and config["width"]
    assert vit3d_card().output.grid is not None
