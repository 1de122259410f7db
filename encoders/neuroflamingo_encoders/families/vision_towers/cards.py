"""Cards of 2D towers (CLIP, SigLIP, any open_clip model) for slices of a volume, or one image; no torch.

The encoder turns a volume into images as the card's `network` says: `slices` evenly spaced planes along `axis`,
intensities between `low` and `high` scaled to 0..1, padded to a square, resized to the tower's side, normalised by the
tower's constants. Rows run down the later axis (anterior or superior on top), columns up the earlier one: the
patient's left is on the left of the image. Nothing is mirrored.
"""

from __future__ import annotations

from typing import Any, Literal

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec, Weights
from neuroflamingo_encoders.families.vit3d.cards import SIDES, free_weights, restricted_weights, template_grid
from neuroflamingo_preprocessing.spec import Axis, ScanSpec

_OPENAI = (0.48145466, 0.4578275, 0.40821073, 0.26862954, 0.26130258, 0.27577711)
_HALVES = (0.5,) * 6
_COLOURS = ("mean_red", "mean_green", "mean_blue", "std_red", "std_green", "std_blue")
_TOWER = {"width": 16, "depth": 1, "heads": 2, "mlp": 32}
TINY: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    name: ({"x": 12, "y": 20, "z": 16}, _TOWER)
    for name in ("clip-vit-l14", "clip-tower", "siglip-so400m", "siglip-tower")
}
"""As `vit3d.cards.TINY`. The size of an open_clip model is fixed by its name."""


def _input(
    side: int,
    slices: int = 8,
    axis: Literal["x", "y", "z"] = "z",
    window: Literal["percentile", "value"] = "percentile",
    low: float = 0.5,
    high: float = 99.5,
    x: int = SIDES[0],
    y: int = SIDES[1],
    z: int = SIDES[2],
    spacing_mm: float = 2.0,
    channel: str = "T1w",
) -> dict[str, Any]:
    """Make the parts of a card that say how a scan becomes images: `scan`, `demands`, and entries of `network`.

    Args:
        side: of the tower's images, in pixels.
        slices: planes of a volume; 0: the input is one colour image of the tower's size instead, values 0..1.
        axis: the axis along which planes are taken.
        window: whether `low` and `high` are percentiles of the voxels that are not 0, or values (such as HU).
        x, y, z, spacing_mm, channel: of the volume, a grid in MNI space.

    Raises:
        ValueError: invalid axis, window or number of slices.
    """
    if slices == 0:
        axes = (Axis(name="channel", size=3), Axis(name="y", size=side), Axis(name="x", size=side))
        scan = ScanSpec(modality="image2d", axes=axes, channels=("red", "green", "blue"))
        wanted = Demand(what=f"resizing to {side} x {side} pixels, values 0..1, first row on top", level="required")
        return {"scan": scan, "demands": (wanted,), "network": {"slices": 0}, "order": ("y", "x")}
    if (
        axis not in ("x", "y", "z")
        or window not in ("percentile", "value")
        or not 0 < slices <= {"x": x, "y": y, "z": z}[axis]
    ):
        raise ValueError("axis is x, y or z; window 'percentile' or 'value'; slices must not exceed the axis")
    if low >= high:
        raise ValueError("low must be below high")
    across, down = (name for name in ("x", "y", "z") if name != axis)
    done = Demand(
        what=f"{slices} slices along {axis}, windowed, padded to a square and resized to {side} x {side}",
        level="done_here",
        note=f"rows down {down}, columns up {across}",
    )
    return {
        "scan": template_grid(spacing_mm, (x, y, z), (channel,)),
        "demands": (done,),
        "network": {"slices": slices, "axis": axis, "window": window, "low": low, "high": high},
        "order": (axis, down, across),
    }


def _card(
    name: str,
    summary: str,
    implementation: str,
    sizes: dict[str, Any],
    colours: tuple[float, ...],
    slicing: dict[str, Any],
    *,
    weights: Weights,
    parameters: int,
    normalised: bool,
    **identity: Any,
) -> EncoderCard:
    side, patch, width = sizes["side"], sizes["patch"], sizes.pop("width")
    taken = _input(side, **slicing)
    return EncoderCard(
        name=name,
        version="1",
        summary=summary,
        implementation=f"neuroflamingo_encoders.families.vision_towers.{implementation}",
        scan=taken["scan"],
        demands=taken["demands"],
        network=sizes | taken["network"] | dict(zip(_COLOURS, colours, strict=True)),
        output=OutputSpec(
            width=width,
            tokens=max(1, taken["network"]["slices"]) * (side // patch) ** 2,
            order=taken["order"],
            normalised=normalised,
        ),
        weights=weights,
        cost=Cost(parameters=parameters),
        **identity,
    )


def _layers(width: int, depth: int, mlp: int) -> int:
    return depth * (4 * width * width + 2 * width * mlp + 9 * width + mlp)


_CLIP_REST = ("text_model.*", "text_projection.*", "visual_projection.*", "logit_scale", "*.position_ids")
_SIGLIP_REST = ("text_model.*", "vision_model.head.*", "logit_scale", "logit_bias", "*.position_ids")


def clip_tower_card(
    side: int = 224,
    patch: int = 32,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp: int = 3072,
    quick_gelu: bool = True,
    **slicing: Any,
) -> EncoderCard:
    """Make the card of a CLIP vision tower of any size (ViT-B/32 by default); bring your own weights.

    Args:
        side, patch, width, depth, heads, mlp: of the tower.
        quick_gelu: OpenAI's weights need it, most others do not. Weight files do not say.
        slicing: slices, axis, window, low, high, x, y, z, spacing_mm, channel: see `_input`.
    """
    return _clip(
        "clip-tower",
        "a CLIP vision tower of any size on slices or pictures; bring your own weights",
        {
            "side": side,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp": mlp,
            "activation": "quick_gelu" if quick_gelu else "gelu",
        },
        slicing,
        restricted_weights("unknown: that of your file", "none", allow_unexpected=_CLIP_REST),
    )


def clip_vit_l14_card(**slicing: Any) -> EncoderCard:
    """Make the card of OpenAI's CLIP ViT-L/14 at 224 pixels (OpenFlamingo's); `slicing` as for `clip_tower_card`."""
    return _clip(
        "clip-vit-l14",
        "slices of a volume, or pictures of 224 x 224, CLIP ViT-L/14 (quick GELU): OpenFlamingo's tower",
        {"side": 224, "patch": 14, "width": 1024, "depth": 24, "heads": 16, "mlp": 4096, "activation": "quick_gelu"},
        slicing,
        restricted_weights(
            "unstated (code MIT)", "https://huggingface.co/openai/clip-vit-large-patch14", allow_unexpected=_CLIP_REST
        ),
    )


def _clip(name: str, summary: str, sizes: dict[str, Any], slicing: dict[str, Any], weights: Weights) -> EncoderCard:
    width, patches = sizes["width"], (sizes["side"] // sizes["patch"]) ** 2
    stem = (3 * sizes["patch"] ** 2 + patches + 2 + 4) * width  # no bias; class token with its position; two norms
    return _card(
        name,
        summary,
        "clip:ClipTower",
        sizes,
        _OPENAI,
        slicing,
        weights=weights,
        parameters=stem + _layers(width, sizes["depth"], sizes["mlp"]),
        normalised=False,
        repository="https://github.com/openai/CLIP",
        paper="https://arxiv.org/abs/2103.00020",
        citation="Radford et al. Learning transferable visual models from natural language supervision. ICML 2021.",
    )


def siglip_tower_card(
    side: int = 224,
    patch: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp: int = 3072,
    **slicing: Any,
) -> EncoderCard:
    """Make the card of a SigLIP tower of any size (base at 224 by default); `slicing` as for `clip_tower_card`."""
    return _siglip(
        "siglip-tower",
        "a SigLIP vision tower of any size on slices or pictures; bring your own weights",
        {"side": side, "patch": patch, "width": width, "depth": depth, "heads": heads, "mlp": mlp},
        slicing,
        restricted_weights("unknown: that of your file", "none", allow_unexpected=_SIGLIP_REST),
    )


def siglip_so400m_card(**slicing: Any) -> EncoderCard:
    """Make the card of SigLIP so400m, patch 14, at 384 pixels; `slicing` as for `clip_tower_card`."""
    return _siglip(
        "siglip-so400m",
        "slices of a volume, or pictures of 384 x 384, SigLIP so400m with patches of 14",
        {"side": 384, "patch": 14, "width": 1152, "depth": 27, "heads": 16, "mlp": 4304},
        slicing,
        free_weights(
            "Apache-2.0", "https://huggingface.co/google/siglip-so400m-patch14-384", allow_unexpected=_SIGLIP_REST
        ),
    )


def _siglip(name: str, summary: str, sizes: dict[str, Any], slicing: dict[str, Any], weights: Weights) -> EncoderCard:
    width, patches = sizes["width"], (sizes["side"] // sizes["patch"]) ** 2
    return _card(
        name,
        summary,
        "clip:SiglipTower",
        sizes | {"activation": "gelu_pytorch_tanh"},
        _HALVES,
        slicing,
        weights=weights,
        parameters=(3 * sizes["patch"] ** 2 + 1 + patches + 2) * width + _layers(width, sizes["depth"], sizes["mlp"]),
        normalised=True,
        repository="https://github.com/google-research/big_vision",
        paper="https://arxiv.org/abs/2303.15343",
        citation="Zhai et al. Sigmoid loss for language image pre-training. ICCV 2023.",
    )


def open_clip_card(
    model: str = "ViT-B-32",
    side: int = 224,
    patch: int = 32,
    width: int = 768,
    colours: Literal["openai", "half"] = "openai",
    **slicing: Any,
) -> EncoderCard:
    """Make the card of the tower of any model that open_clip lists; needs `pip install 'neuroflamingo[clip]'`.

    Args:
        model: open_clip's name. For OpenAI's weights it must end in `-quickgelu`.
        side, patch, width: of that model; they are checked when it is built.
        colours: constants that normalise images; `half` (mean and deviation 0.5) for SigLIP. Weight files do not say.
        slicing: as for `clip_tower_card`.

    Raises:
        ValueError: unknown `colours`.
    """
    if colours not in ("openai", "half"):
        raise ValueError("colours is 'openai' or 'half'")
    known = model.removesuffix("-quickgelu") == "ViT-B-32"
    return _card(
        "open-clip",
        "slices of a volume, or pictures, the vision tower of any open_clip model; needs the extra `clip`",
        "open_clip:OpenClipTower",
        {"model": model, "side": side, "patch": patch, "width": width, "quick_gelu": model.endswith("-quickgelu")},
        _OPENAI if colours == "openai" else _HALVES,
        slicing,
        weights=restricted_weights(
            "unknown: that of your file (code MIT)",
            "none",
            strip_prefixes=("module.",),
            allow_unexpected=(
                "visual.ln_post.*",
                "transformer.*",
                "text.*",
                "token_embedding.*",
                "positional_embedding",
                "ln_final.*",
                "text_projection*",
                "logit_scale",
                "logit_bias",
                "attn_mask",
            ),
        ),
        parameters=87_847_680 if known else 0,  # 0: not counted
        normalised=False,
        repository="https://github.com/mlfoundations/open_clip",
        citation="Ilharco et al. OpenCLIP. 2021.",
    )
