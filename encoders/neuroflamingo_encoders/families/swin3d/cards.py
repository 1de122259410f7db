"""Cards of 3D Swin encoders of MONAI; no torch and no monai here. The card names the stage that gives the tokens."""

from __future__ import annotations

from typing import Any

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec, TokenGrid
from neuroflamingo_encoders.families.vit3d.cards import SIDES, UNIT, lattice, restricted_weights, template_grid, volume
from neuroflamingo_preprocessing.spec import Step

TINY: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "brainsegfounder": ({"x": 32, "y": 48, "z": 16}, {"width": 48, "depth": 1}),
    "swinunetr-encoder": ({"x": 32, "y": 48, "z": 16}, {"width": 48, "depth": 1}),
}
"""As `vit3d.cards.TINY`."""

_SWIN = {"depth": 2, "window": 7, "patch": 2, "heads": 3, "merging": "merging"}
_SWIN_REST = ("encoder*", "decoder*", "out.*", "conv*", "rotation_head.*", "contrastive_head.*", "mask_token*")
"""Other tensors in files of Swin encoders: a decoder, pretraining heads."""


def _check_stage(stage: int) -> None:
    if stage not in range(5):
        raise ValueError("stage is 0 (a token every 2 voxels) to 4 (every 32)")


def _swin_output(stage: int, embed: int, grid: TokenGrid | None = None) -> OutputSpec:
    step = 2 ** (stage + 1)
    return OutputSpec(
        width=embed * 2**stage,
        tokens=" * ".join(f"(({axis} + {step - 1}) // {step})" for axis in "xyz"),
        order=("x", "y", "z"),
        grid=grid,
    )


def brainsegfounder_card(stage: int = 3) -> EncoderCard:
    """Make the card of BrainSegFounder's Swin encoder; stage 3 gives 216 tokens of width 384, stage 4 27 of width 768.

    Raises:
        ValueError: no such stage.
    """
    _check_stage(stage)
    return EncoderCard(
        name="brainsegfounder",
        version="1",
        summary="T1 and T2 volume 96 x 96 x 96, Swin transformer trained on UK Biobank",
        implementation="neuroflamingo_encoders.families.swin3d.network:Swin3dEncoder",
        repository="https://github.com/lab-smile/BrainSegFounder",
        paper="https://arxiv.org/abs/2406.10395",
        citation="Cox et al. BrainSegFounder: towards 3D foundation models for neuroimage segmentation. 2024.",
        scan=volume(("T1w", "T2w"), dict.fromkeys("xyz", 96), Step.named("crop", side=96), orientation="RAS"),
        demands=(
            Demand(what="T1 and T2 registered to each other", level="required"),
            Demand(what="clipping and scaling of each channel to 0..1", level="required"),
        ),
        network=_SWIN | {"stage": stage, "intensity": "none"},  # pyright: ignore[reportArgumentType]
        output=_swin_output(stage, 48),
        weights=restricted_weights(
            "UK Biobank material transfer agreement (code GPL-3.0)",
            "https://huggingface.co/smilelab/BrainSegFounder",
            strip_prefixes=("module.",),
            allow_unexpected=_SWIN_REST,
        ),
        cost=Cost(parameters=8_062_386, gflop=49.9),
    )


def swinunetr_card(
    channel: str = "T1w",
    embed: int = 48,
    stage: int = 3,
    x: int = SIDES[0],
    y: int = SIDES[1],
    z: int = SIDES[2],
    spacing_mm: float = 2.0,
) -> EncoderCard:
    """Make the card of the encoder of your own SwinUNETR, for one channel, on a grid in MNI space.

    Args:
        channel: contrast of the scans.
        embed: SwinUNETR's feature size, a multiple of 3.
        stage: 0 to 4; a token covers 2, 4, 8, 16 or 32 voxels per side.
        x, y, z, spacing_mm: of the scans.

    Raises:
        ValueError: unknown stage, or a size not divisible by three heads.
    """
    _check_stage(stage)
    if embed % 3:
        raise ValueError("embed is a multiple of 3")
    scan = template_grid(spacing_mm, (x, y, z), (channel,))
    step = 2 ** (stage + 1)
    return EncoderCard(
        name="swinunetr-encoder",
        version="1",
        summary="the Swin encoder of any SwinUNETR on a grid in MNI space; bring your own weights",
        implementation="neuroflamingo_encoders.families.swin3d.network:Swin3dEncoder",
        repository="https://github.com/Project-MONAI/MONAI",
        paper="https://arxiv.org/abs/2201.01266",
        citation="Hatamizadeh et al. Swin UNETR: Swin transformers for semantic segmentation of brain tumors. 2022.",
        scan=scan,
        demands=(UNIT,),
        network=_SWIN | {"stage": stage, "intensity": "unit"},  # pyright: ignore[reportArgumentType]
        output=_swin_output(stage, embed, lattice(scan, step, (step - 1) / 2, centred=True)),
        weights=restricted_weights(
            "unknown: that of your file (code Apache-2.0)",
            "none",
            strip_prefixes=("module.",),
            allow_unexpected=_SWIN_REST,
        ),
        cost=Cost(parameters=swin_parameters(embed)),
    )


def swin_parameters(embed: int, channels: int = 1, depth: int = 2, window: int = 7) -> int:
    """Count the parameters of a Swin encoder of four stages."""
    total = (8 * channels + 1) * embed
    for stage in range(4):
        width, heads = embed * 2**stage, 3 * 2**stage
        total += depth * (12 * width * width + 13 * width + (2 * window - 1) ** 3 * heads)
        total += 16 * width * width + 16 * width
    return total
