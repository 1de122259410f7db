"""Cards of 3D ResNets through MONAI; no torch and no monai here.

Note the difference declared on MedicalNet's card: upstream dilates the last two stages, MONAI uses strides, and the
same weight file fits both.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec
from neuroflamingo_encoders.families.vit3d.cards import SIDES, ZSCORE, free_weights, lattice, template_grid, volume

TINY: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "medicalnet-resnet10": ({"x": 24, "y": 32, "z": 16}, {"width": 32}),
    "medicalnet-resnet18": ({"x": 24, "y": 32, "z": 16}, {"width": 32}),
    "medicalnet-resnet34": ({"x": 24, "y": 32, "z": 16}, {"width": 32}),
    "medicalnet-resnet50": ({"x": 24, "y": 32, "z": 16}, {"width": 128}),
    "neuro-simclr-resnet18": ({"z": 32, "y": 48, "x": 32}, {"width": 32}),
}
"""As `vit3d.cards.TINY`."""

# name -> blocks per stage, bottleneck, shortcut, bias in the shortcut, parameters
_RESNETS = {
    10: ("1 1 1 1", False, "B", False, 14_355_520),
    18: ("2 2 2 2", False, "A", True, 32_986_176),
    34: ("3 4 6 3", False, "A", True, 63_295_808),
    50: ("3 4 6 3", True, "B", False, 46_155_072),
}
_DILATED = {"conv1_stride": 2, "dilation_3": 2, "dilation_4": 4}
_STRIDED = {"conv1_stride": 1, "dilation_3": 1, "dilation_4": 1}
"""Constants without dilation: stages 2, 3 and 4 have stride 2 unless their dilation is above 1."""


def _resnet(blocks: str, bottleneck: bool, shortcut: str, bias: bool) -> dict[str, Any]:
    return {
        "blocks": blocks,
        "bottleneck": bottleneck,
        "shortcut": shortcut,
        "bias_downsample": bias,
        "intensity": "zscore_nonzero",
    }


def medicalnet_card(
    layers: int,
    /,
    variant: Literal["upstream", "monai"] = "upstream",
    stage: int = 4,
    x: int = SIDES[0],
    y: int = SIDES[1],
    z: int = SIDES[2],
    spacing_mm: float = 2.0,
    channel: str = "T1w",
) -> EncoderCard:
    """Make the card of a MedicalNet 3D ResNet, on a grid in MNI space (upstream: any volume).

    Args:
        layers: 10, 18, 34 or 50.
        variant: `upstream` (first convolution of stride 2, stages 3 and 4 dilated by 2 and 4 at stride 1: a token
            every 8 voxels) or `monai` (MONAI's strides: every 16). Same weight file, same shapes, different features.
        stage: the stage whose output becomes the tokens, 1 to 4.
        x, y, z, spacing_mm, channel: of the scans.

    Raises:
        ValueError: unknown variant or stage.
    """
    if variant not in ("upstream", "monai") or stage not in (1, 2, 3, 4):
        raise ValueError("variant is 'upstream' or 'monai', stage is 1 to 4")
    blocks, bottleneck, shortcut, bias, parameters = _RESNETS[layers]
    step = (4, 8, 8, 8)[stage - 1] if variant == "upstream" else 2**stage
    scan = template_grid(spacing_mm, (x, y, z), (channel,))
    strides = _DILATED if variant == "upstream" else _STRIDED
    return EncoderCard(
        name=f"medicalnet-resnet{layers}",
        version="1",
        summary=f"3D volume, ResNet-{layers} trained on 23 medical data sets, features as tokens",
        implementation="neuroflamingo_encoders.families.resnet3d.network:ResNet3dEncoder",
        repository="https://github.com/Tencent/MedicalNet",
        paper="https://arxiv.org/abs/1904.00625",
        citation="Chen et al. Med3D: transfer learning for 3D medical image analysis. 2019.",
        scan=scan,
        demands=(ZSCORE,),
        network=_resnet(blocks, bottleneck, shortcut, bias) | strides | {"stage": stage},  # pyright: ignore[reportArgumentType]
        output=OutputSpec(
            width=2 ** (5 + stage) * (4 if bottleneck else 1),
            tokens=" * ".join(f"(({axis} + {step - 1}) // {step})" for axis in "xyz"),
            order=("x", "y", "z"),
            grid=lattice(scan, step, 0.0, centred=True),
            normalised=False,
        ),
        weights=free_weights(
            "MIT",
            f"https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet{layers}",
            file=f"resnet_{layers}_23dataset.pth",
            strip_prefixes=("module.",),
        ),
        cost=Cost(parameters=parameters),
    )


MEDICALNET_10 = partial(medicalnet_card, 10)
MEDICALNET_18 = partial(medicalnet_card, 18)
MEDICALNET_34 = partial(medicalnet_card, 34)
MEDICALNET_50 = partial(medicalnet_card, 50)

_SIMCLR_SCAN = volume(
    ("T1w",),
    {"z": 150, "y": 192, "x": 192},
    orientation="RAS",
    spacing_mm=(1.0, 1.0, 1.0),
    origin_mm=(-95.0, -113.0, -68.0),
    template="MNI152 ICBM2009c",
)

NEURO_SIMCLR = EncoderCard(
    name="neuro-simclr-resnet18",
    version="1",
    summary="T1-weighted volume 150 x 192 x 192 in MNI at 1 mm, skull stripped, ResNet-18",
    implementation="neuroflamingo_encoders.families.resnet3d.network:ResNet3dEncoder",
    repository="https://github.com/emilykaczmarek/3D-Neuro-SimCLR",
    citation="Kaczmarek et al. Building a general SimCLR self-supervised foundation model across neurological diseases "
    "to advance 3D brain MRI diagnoses. 2025.",
    scan=_SIMCLR_SCAN,
    demands=(
        Demand(what="TurboPrep: rigid registration to MNI 2009c at 1 mm, intensity normalisation", level="required"),
        Demand(what="0 outside the brain mask", level="required"),
        Demand(what="axes z y x, cropped to z 10..159, y 19..210, x 1..192", level="required"),
        ZSCORE,
    ),
    network=_resnet("2 2 2 2", False, "B", True) | _STRIDED | {"stage": 4},  # pyright: ignore[reportArgumentType]
    output=OutputSpec(
        width=512,
        tokens="((z + 15) // 16) * ((y + 15) // 16) * ((x + 15) // 16)",
        order=("z", "y", "x"),
        normalised=False,
    ),
    weights=free_weights(
        "MIT",
        "https://github.com/emilykaczmarek/3D-Neuro-SimCLR (release v1.0.0)",
        strip_prefixes=("module.", "encoder."),
        allow_unexpected=("fc.*", "projector.*"),
    ),
    cost=Cost(parameters=33_160_896),
)
