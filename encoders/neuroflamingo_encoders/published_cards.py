"""Cards of published fMRI encoders whose networks are written here; no torch, so that listing is instant."""

from __future__ import annotations

from typing import Any, Literal, get_args

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec, Weights
from neuroflamingo_preprocessing.spec import Axis, Parcellation, RepetitionTime, ScanSpec, Step

_FSL_ORIGIN = (90.0, -126.0, -72.0)
"""World place of voxel (0, 0, 0) of MNI152 at 2 mm as FSL stores it, 91 x 109 x 91 voxels from right to left."""

_MNI_2MM = Demand(what="motion correction, denoising and registration to MNI at 2 mm", level="required")


def _decoder_keys(layers: int) -> tuple[str, ...]:
    """Names of BrainLM's decoder, which stands in the published files and is not needed for tokens."""
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    parts += ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
    both = [f"decoder_layers.{i}.{part}" for i in range(layers) for part in parts]
    both += ["decoder_embed", "decoder_norm", "decoder_pred", "decoder_pred1", "decoder_pred2"]
    both += ["decoder_xyz_projection"]
    names = [f"decoder.{name}.{kind}" for name in both for kind in ("weight", "bias")]
    names += [f"decoder.decoder_layers.{i}.attention.self.conv.weight" for i in range(layers)]
    return (*names, "decoder.mask_token", "decoder.pos_embedding.pe")


def _parcels(count: int, frames: int, parcellation: str, seconds: float, *steps: Step) -> ScanSpec:
    return ScanSpec(
        modality="parcels",
        axes=(Axis(name="parcel", size=count), Axis(name="time", size=frames)),
        repetition_time=RepetitionTime(seconds=seconds, tolerance=0.1, policy="resample"),
        parcellation=Parcellation(identifier=parcellation, row_order="ascending label"),
        steps=steps,
    )


Normalisation = Literal["robust_fixed", "robust_as_published", "zscore_parcel"]


def _brainlm(
    name: str,
    summary: str,
    implementation: str,
    output: OutputSpec,
    weights: Weights,
    cost: Cost,
    *,
    normalisation: Normalisation,
    gain: float,
) -> EncoderCard:
    if normalisation not in get_args(Normalisation) or not gain > 0:
        raise ValueError(f"normalisation is one of {', '.join(get_args(Normalisation))}, gain above 0")
    return EncoderCard(
        name=name,
        version="1",
        summary=summary,
        implementation=implementation,
        repository="https://github.com/vandijklab/BrainLM",
        commit="b591d88d0efffc0f059c73dfca1f293554795af1",
        citation="Ortega Caro et al. BrainLM: a foundation model for brain activity recordings. ICLR 2024.",
        scan=_parcels(
            424,
            200,
            "A424",
            0.735,
            Step.named("parcel_mean"),
            Step(name=normalisation, constants=(("gain", gain),), scope="run"),
        ),
        demands=(_MNI_2MM, Demand(what="coordinates of A424_Coordinates.dat, by set_coordinates", level="required")),
        output=output,
        weights=weights,
        cost=cost,
    )


def _brainlm_weights(file: str, prefixes: tuple[str, ...] = (), **rules: Any) -> Weights:
    return Weights(
        source="https://huggingface.co/vandijklab/brainlm",
        file=file,
        strip_prefixes=prefixes,
        licence="CC-BY-NC-ND-4.0",
        commercial=False,
        redistribution=True,
        derivatives=False,
        **rules,
    )


def brainlm_13m_card(normalisation: Normalisation = "robust_fixed", gain: float = 7.0) -> EncoderCard:
    """The published old_13M layout.

    Which scaling its training used is not recorded. An independent sweep over reconstructions
    (payman21/brainlm-interpretability) settled on robust-scaled input times 7, which is the default here.

    Raises:
        ValueError: another normalisation, or a gain that is not above 0.
    """
    return _brainlm(
        "brainlm-13m",
        "fMRI parcel series (A424, 200 frames) with coordinates, full attention; the published old_13M layout",
        "neuroflamingo_encoders.brainlm:BrainLmEncoder",
        OutputSpec(width=512, tokens=4241, order=("parcel", "time"), cls="first"),
        _brainlm_weights(
            "old_13M", allow_missing=("vit.embeddings.pos_embedding.pe", "xyz"), allow_unexpected=_decoder_keys(2)
        ),
        Cost(parameters=8_426_512, gflop=219.7),
        normalisation=normalisation,
        gain=gain,
    )


def brainlm_111m_card(normalisation: Normalisation = "robust_fixed", gain: float = 1.0) -> EncoderCard:
    """The ViT-B on pictures of parcel series; `normalisation` and `gain` as for `brainlm_13m_card`."""
    output = OutputSpec(width=768, tokens=352, order=("parcel", "time"), cls="first")
    cost = Cost(parameters=86_208_000, gflop=144.5)
    return _brainlm_picture("111M", "432 x 432 picture, ViT-B", output, cost, normalisation=normalisation, gain=gain)


def brainlm_650m_card(normalisation: Normalisation = "robust_fixed", gain: float = 1.0) -> EncoderCard:
    """The ViT-H on pictures of parcel series; `normalisation` and `gain` as for `brainlm_13m_card`."""
    output = OutputSpec(width=1280, tokens=466, order=("parcel", "time"), cls="first")
    cost = Cost(parameters=631_667_200, gflop=1363.5)
    return _brainlm_picture("650M", "434 x 434 picture, ViT-H", output, cost, normalisation=normalisation, gain=gain)


def _brainlm_picture(size: str, picture: str, output: OutputSpec, cost: Cost, **scaling: Any) -> EncoderCard:
    return _brainlm(
        f"brainlm-vitmae-{size.lower()}",
        f"fMRI parcel series (A424, 200 frames) as a {picture}",
        "neuroflamingo_encoders.brainlm_vitmae:BrainLmVitMaeEncoder",
        output,
        _brainlm_weights(f"vitmae_{size}", allow_missing=("order",)),
        cost,
        **scaling,
    )


def _run_4d(policy: RepetitionTime, first: tuple[int, int, int], *steps: Step) -> ScanSpec:
    """96 x 96 x 96 voxels of FSL's grid, from voxel `first` of it on: negative where it is padded."""
    axes = ("x", "y", "z")
    right, back, low = (o + way * 2.0 * n for o, way, n in zip(_FSL_ORIGIN, (-1, 1, 1), first, strict=True))
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
    implementation="neuroflamingo_encoders.swin4d:SwiftEncoder",
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
    demands=(_MNI_2MM,),
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
    implementation="neuroflamingo_encoders.swin4d:NeuroStormEncoder",
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
    demands=(_MNI_2MM,),
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

BRAINMT = EncoderCard(
    name="brainmt",
    version="1",
    summary="fMRI run 91 x 109 x 91 x 200 in MNI at 2 mm, convolutions, Mamba over time, attention; train it yourself",
    implementation="neuroflamingo_encoders.brainmt:BrainMtEncoder",
    repository="https://github.com/arunkumar-kannan/BrainMT-fMRI",
    commit="977e4864cd9e63b9b34cf696e0ef80c74472d86b",
    citation="Kannan et al. BrainMT: a hybrid Mamba-transformer for long-range dependencies in fMRI. 2025.",
    scan=ScanSpec(
        modality="volume4d",
        axes=(
            Axis(name="time", size=200),
            Axis(name="channel", size=1),
            Axis(name="y", size=109),
            Axis(name="x", size=91),
            Axis(name="z", size=91),
        ),
        orientation="LAS",
        spacing_mm=(2.0, 2.0, 2.0),
        origin_mm=_FSL_ORIGIN,
        template="MNI152 6th generation",
        repetition_time=RepetitionTime(seconds=0.72, tolerance=0.1, policy="as_is"),
        steps=(Step(name="zscore_foreground", scope="run"), Step.named("to_grid")),
    ),
    demands=(_MNI_2MM,),
    output=OutputSpec(width=512, tokens=50401, order=("y", "x", "z", "time"), cls="first", normalised=False),
    weights=Weights(source="none", licence="none released", commercial=False, redistribution=False, derivatives=False),
    cost=Cost(parameters=39_104_961, gflop=56_000.0),
)

BRAIN_JEPA = EncoderCard(
    name="brain-jepa-vitb",
    version="1",
    summary="fMRI parcel series (Schaefer 400 and Tian 50, 160 frames), ViT-B placed by functional gradients",
    implementation="neuroflamingo_encoders.brain_jepa:BrainJepaEncoder",
    repository="https://github.com/Eric-LRL/Brain-JEPA",
    commit="b1dfa93eb331d1e70476446b06fc8a1ac3c92345",
    paper="https://arxiv.org/abs/2409.19407",
    citation="Dong et al. Brain-JEPA: brain dynamics foundation model with gradient positioning. NeurIPS 2024.",
    scan=_parcels(450, 160, "Schaefer400+TianS3", 2.2, Step.named("parcel_mean"), Step(name="zscore_run", scope="run")),
    demands=(_MNI_2MM, Demand(what="gradient_mapping_450.csv, by set_gradient", level="required")),
    output=OutputSpec(width=768, tokens=4500, order=("parcel", "time")),
    weights=Weights(
        source="https://github.com/Eric-LRL/Brain-JEPA",
        file="jepa-ep300.pth.tar",
        strip_prefixes=("module.",),
        allow_missing=("gradient",),
        licence="none stated: bring your own file",
        commercial=False,
        redistribution=False,
        derivatives=False,
    ),
    cost=Cost(parameters=86_808_960, gflop=1500.0),
)
