"""Cards of SwiFT and NeuroSTORM: 4D windows over fMRI runs."""

from __future__ import annotations

from neuroflamingo_encoders.card import Cost, EncoderCard, OutputSpec, Weights
from neuroflamingo_encoders.families.card_parts import FSL_ORIGIN, MNI_2MM
from neuroflamingo_preprocessing.spec import Axis, RepetitionTime, ScanSpec, Step


def _run_4d(policy: RepetitionTime, first: tuple[int, int, int], *steps: Step) -> ScanSpec:
    """Make the spec of 96 x 96 x 96 voxels of FSL's grid, starting at its voxel `first`; negative: padding."""
    axes = ("x", "y", "z")
    right, back, low = (o + way * 2.0 * n for o, way, n in zip(FSL_ORIGIN, (-1, 1, 1), first, strict=True))
    return ScanSpec(
        modality="volume4d",
        axes=(Axis(name="channel", size=1), *(Axis(name=a, size=96) for a in axes), Axis(name="time", size=20)),
        orientation="LAS",
        spacing_mm=(2.0, 2.0, 2.0),
        origin_mm=(right, back, low),
        template="MNI152 6th generation",
        repetition_time=policy,
        steps=steps,
    )


SWIFT = EncoderCard(
    name="swift",
    version="1",
    summary="fMRI run 96 x 96 x 96 x 20 in MNI at 2 mm, 4D shifted windows",
    implementation="neuroflamingo_encoders.families.swin4d.network:SwiftEncoder",
    repository="https://github.com/Transconnectome/SwiFT",
    commit="0b07cb156d77a7de33078c8f6fe3ddffa7b5ae9c",
    paper="https://arxiv.org/abs/2307.05916",
    citation="Kim et al. SwiFT: Swin 4D fMRI transformer. NeurIPS 2023.",
    scan=_run_4d(
        RepetitionTime(seconds=0.8, tolerance=0.1, policy="as_is"),
        (-3, 7, -3),
        Step(name="zscore_foreground", scope="run"),
        Step.named("to_grid"),
    ),
    demands=(MNI_2MM,),
    output=OutputSpec(width=288, tokens=160, order=("x", "y", "z", "time"), normalised=False),
    weights=Weights(
        source="https://github.com/Transconnectome/SwiFT",
        strip_prefixes=("model.",),
        licence="unstated (code Apache-2.0)",
        commercial=False,
        redistribution=False,
        derivatives=False,
    ),
    cost=Cost(parameters=4_315_212, gflop=22.8),
)


NEUROSTORM = EncoderCard(
    name="neurostorm",
    version="1",
    summary="fMRI run 96 x 96 x 96 x 20 in MNI at 2 mm, selective scans in 4D windows",
    implementation="neuroflamingo_encoders.families.swin4d.network:NeuroStormEncoder",
    repository="https://github.com/CUHK-AIM-Group/NeuroSTORM",
    commit="a8dc38f665b104fc7559404def44695c332b47b4",
    citation="Wang et al. Towards a general-purpose foundation model for fMRI analysis. 2025.",
    scan=_run_4d(
        RepetitionTime(seconds=0.8, tolerance=0.01, policy="resample"),
        (-2, 6, -2),
        Step.named("to_grid"),
        Step.named("clip_negative"),
        Step(name="zscore_foreground", scope="run"),
        Step(name="symmetric_int8", scope="run"),
    ),
    demands=(MNI_2MM,),
    output=OutputSpec(width=288, tokens=160, order=("x", "y", "z", "time"), normalised=False),
    weights=Weights(
        source="https://huggingface.co/zxcvb20001/NeuroSTORM",
        strip_prefixes=("model.",),
        licence="MIT (hub), Apache-2.0 (licence file)",
        commercial=True,
        redistribution=True,
        derivatives=True,
    ),
    cost=Cost(parameters=5_173_020),
)
