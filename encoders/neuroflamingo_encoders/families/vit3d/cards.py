"""Cards of 3D vision transformers of MONAI, and the grid in MNI space that volume encoders share; no torch.

`network` has the constants that tensor shapes do not reveal: patch, depth, and the encoder's own intensity scaling.
"""

from __future__ import annotations

from typing import Any

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec, TokenGrid, Weights
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step

SIDES = (96, 112, 96)
"""Voxels of the project's 2 mm grid, which covers a whole head: 192 x 224 x 192 mm."""
CENTRE_MM = (0.0, -18.0, 6.0)
"""Centre of that grid in MNI152 space, the same as that of the template's 3 mm grid."""
MNI = "MNI152 ICBM2009a symmetric"
TINY: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "brainiac-vitb": ({"x": 32, "y": 16, "z": 48}, {"width": 12, "depth": 2, "heads": 2, "mlp": 24}),
    "m3d-clip": ({"z": 8, "y": 32, "x": 48}, {"width": 12, "depth": 2, "heads": 2, "mlp": 24}),
    "vit3d": ({"x": 32, "y": 16, "z": 48}, {"width": 12, "depth": 2, "heads": 2, "mlp": 24}),
}
"""For checks: name to sizes of the card's axes, and the module's `config` (its `width` is the tokens' width)."""

ZSCORE = Demand(what="z-score over the voxels that are not 0", level="done_here")
UNIT = Demand(what="scaling of each scan to 0..1", level="done_here")


def free_weights(licence: str = "Apache-2.0", source: str = "none", **more: Any) -> Weights:
    """Declare weights whose licence permits everything; `more` is passed to `Weights`."""
    return Weights(source=source, licence=licence, commercial=True, redistribution=True, derivatives=True, **more)


def restricted_weights(licence: str, source: str, redistribution: bool = False, **more: Any) -> Weights:
    """Declare weights without commercial use or derivatives; also for unknown terms, which permit nothing."""
    return Weights(
        source=source, licence=licence, commercial=False, redistribution=redistribution, derivatives=False, **more
    )


def volume(channels: tuple[str, ...], sizes: dict[str, int], *steps: Step, **more: Any) -> ScanSpec:
    """Make the spec of a volume with axes of these sizes; `more` is passed to `ScanSpec`."""
    axes = (Axis(name="channel", size=len(channels)), *(Axis(name=n, size=s) for n, s in sizes.items()))  # type: ignore[arg-type]
    return ScanSpec(modality="volume3d", axes=axes, channels=channels, steps=steps, **more)


def template_grid(spacing_mm: float, sides: tuple[int, int, int], channels: tuple[str, ...] = ("T1w",)) -> ScanSpec:
    """Make the spec of a volume on a grid in MNI space around the centre of the head."""
    origin = [c - (n - 1) / 2 * spacing_mm for c, n in zip(CENTRE_MM, sides, strict=True)]
    return volume(
        channels,
        dict(zip("xyz", sides, strict=True)),
        Step.named("affine_alignment", degrees_of_freedom=12),
        Step.named("gaussian_antialias", fwhm_mm=spacing_mm),
        Step.named("linear_resampling"),
        orientation="RAS",
        spacing_mm=(spacing_mm,) * 3,
        origin_mm=(origin[0], origin[1], origin[2]),
        template=MNI,
    )


def lattice(scan: ScanSpec, step: int, first: float, centred: bool = False) -> TokenGrid:
    """Make the grid of tokens every `step` voxels from voxel `first`: all that fit, or begin (`centred`), in it."""
    sides = scan.grid_shape
    spacing, origin = scan.spacing_mm, scan.origin_mm
    assert spacing is not None and origin is not None
    shape = [-(-n // step) if centred else n // step for n in sides]
    place = [o + first * s for o, s in zip(origin, spacing, strict=True)]
    return TokenGrid(
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=(step * spacing[0], step * spacing[1], step * spacing[2]),
        origin_mm=(place[0], place[1], place[2]),
    )


_CROSS = ("blocks.*.norm_cross_attn.*", "blocks.*.cross_attn.*")
"""Unused tensors of some releases of MONAI's ViT, which a file may contain or not."""
_VITB = {"depth": 12, "heads": 12, "mlp": 3072}

BRAINIAC = EncoderCard(
    name="brainiac-vitb",
    version="1",
    summary="structural MRI volume 96 x 96 x 96, skull stripped, ViT-B (the 2026 release)",
    implementation="neuroflamingo_encoders.families.vit3d.network:Vit3dEncoder",
    repository="https://github.com/AIM-KannLab/BrainIAC",
    citation="Tak et al. A foundation model for generalized brain MRI analysis (BrainIAC). Nature Neuroscience 2026.",
    scan=volume(("T1w, T2w, FLAIR or T1 with contrast",), dict.fromkeys("xyz", 96), Step.named("resize", side=96)),
    demands=(
        Demand(what="N4 bias correction", level="required"),
        Demand(what="rigid registration to an age-matched 1 mm atlas", level="required"),
        Demand(what="skull stripping, 0 outside", level="required", note="upstream uses HD-BET"),
        ZSCORE,
    ),
    network=_VITB | {"patch_x": 16, "patch_y": 16, "patch_z": 16, "projection": "conv", "intensity": "zscore_nonzero"},  # pyright: ignore[reportArgumentType]
    output=OutputSpec(width=768, tokens="(x // 16) * (y // 16) * (z // 16)", order=("x", "y", "z")),
    weights=restricted_weights(
        "Mass General Brigham academic, non-commercial",
        "https://github.com/AIM-KannLab/BrainIAC",
        strip_prefixes=("model.", "backbone."),
        allow_missing=_CROSS,
        allow_unexpected=_CROSS,
    ),
    cost=Cost(parameters=88_359_168, gflop=39.8),
)

M3D_CLIP = EncoderCard(
    name="m3d-clip",
    version="1",
    summary="CT or MR volume of 32 slices of 256 x 256, ViT-B trained against reports (mostly CT)",
    implementation="neuroflamingo_encoders.families.vit3d.network:Vit3dEncoder",
    repository="https://github.com/BAAI-DCAI/M3D",
    paper="https://arxiv.org/abs/2404.00578",
    citation="Bai et al. M3D: advancing 3D medical image analysis with multi-modal large language models. 2024.",
    scan=volume(("CT or MR",), {"z": 32, "y": 256, "x": 256}, Step.named("resize", z=32, y=256, x=256)),
    demands=(Demand(what="slices stacked as upstream stacks its pictures", level="recommended"), UNIT),
    network=_VITB | {"patch_z": 4, "patch_y": 16, "patch_x": 16, "projection": "perceptron", "intensity": "unit"},  # pyright: ignore[reportArgumentType]
    output=OutputSpec(width=768, tokens="(z // 4) * (y // 16) * (x // 16) + 1", order=("z", "y", "x"), cls="first"),
    weights=restricted_weights(
        "unknown: see the model's page (code MIT)",
        "https://huggingface.co/GoodBaiBai88/M3D-CLIP",
        strip_prefixes=("vision_encoder.",),
        allow_missing=_CROSS,
        allow_unexpected=(*_CROSS, "language_encoder.*", "mm_vision_proj.*", "mm_language_proj.*", "logit_scale"),
    ),
    cost=Cost(parameters=87_407_616, gflop=506.1),
)


def vit3d_card(
    x: int = SIDES[0],
    y: int = SIDES[1],
    z: int = SIDES[2],
    spacing_mm: float = 2.0,
    patch: int = 16,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    mlp: int | None = None,
    channel: str = "T1w",
) -> EncoderCard:
    """Make the card of a plain 3D vision transformer of any size on a grid in MNI space, to be trained from scratch.

    Args:
        x, y, z, spacing_mm: number of voxels and their size in millimetres; the grid is centred on the head.
        patch: side of the cubes, in voxels; it must divide all three sizes.
        width, depth, heads, mlp: of the network; `mlp` is four times the width by default.
        channel: contrast of the scans.

    Raises:
        ValueError: sizes not divisible by the patch, or a width not divisible by the heads.
    """
    if x % patch or y % patch or z % patch or width % heads:
        raise ValueError(f"the patch must divide {x}, {y} and {z}, and the heads must divide the width")
    scan = template_grid(spacing_mm, (x, y, z), (channel,))
    mlp = mlp or 4 * width
    tokens = (x // patch) * (y // patch) * (z // patch)
    block = 4 * width * width + width + 2 * width * mlp + mlp + width + 6 * width
    return EncoderCard(
        name="vit3d",
        version="1",
        summary="a plain 3D vision transformer of any size on a grid in MNI space; train it yourself",
        implementation="neuroflamingo_encoders.families.vit3d.network:Vit3dEncoder",
        scan=scan,
        demands=(ZSCORE,),
        network={"depth": depth, "heads": heads, "mlp": mlp, "projection": "conv", "intensity": "zscore_nonzero"}  # pyright: ignore[reportArgumentType]
        | {f"patch_{axis}": patch for axis in "xyz"},
        output=OutputSpec(
            width=width,
            tokens=f"(x // {patch}) * (y // {patch}) * (z // {patch})",
            order=("x", "y", "z"),
            grid=lattice(scan, patch, (patch - 1) / 2),
        ),
        weights=free_weights(allow_missing=_CROSS, allow_unexpected=_CROSS),
        cost=Cost(parameters=(patch**3 + 1 + tokens) * width + depth * block + 2 * width),
    )
