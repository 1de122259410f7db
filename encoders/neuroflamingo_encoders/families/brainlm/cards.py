"""Cards of BrainLM: the published 13M architecture, and the masked autoencoders on parcel series as images."""

from __future__ import annotations

from typing import Any, Literal, get_args

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec, Weights
from neuroflamingo_encoders.families.card_parts import MNI_2MM, parcel_spec
from neuroflamingo_preprocessing.spec import Step


def _decoder_keys(layers: int) -> tuple[str, ...]:
    """Names of the decoder's tensors, which are in the published files and not needed for tokens."""
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    parts += ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
    both = [f"decoder_layers.{i}.{part}" for i in range(layers) for part in parts]
    both += ["decoder_embed", "decoder_norm", "decoder_pred", "decoder_pred1", "decoder_pred2"]
    both += ["decoder_xyz_projection"]
    names = [f"decoder.{name}.{kind}" for name in both for kind in ("weight", "bias")]
    names += [f"decoder.decoder_layers.{i}.attention.self.conv.weight" for i in range(layers)]
    return (*names, "decoder.mask_token", "decoder.pos_embedding.pe")


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
        scan=parcel_spec(
            424,
            200,
            "A424",
            0.735,
            Step.named("parcel_mean"),
            Step(name=normalisation, constants=(("gain", gain),), scope="run"),
        ),
        demands=(MNI_2MM, Demand(what="coordinates of A424_Coordinates.dat, by set_coordinates", level="required")),
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
    """Card of the published `old_13M` model.

    The scaling used in its training is not documented. An independent sweep over reconstructions
    (payman21/brainlm-interpretability) settled on robust-scaled input times 7, which is the default here.

    Raises:
        ValueError: unknown normalisation, or a gain that is not positive.
    """
    return _brainlm(
        "brainlm-13m",
        "fMRI parcel series (A424, 200 frames) with coordinates, full attention; the published old_13M layout",
        "neuroflamingo_encoders.families.brainlm.network:BrainLmEncoder",
        OutputSpec(width=512, tokens=4241, order=("parcel", "time"), cls="first"),
        _brainlm_weights(
            "old_13M", allow_missing=("vit.embeddings.pos_embedding.pe", "xyz"), allow_unexpected=_decoder_keys(2)
        ),
        Cost(parameters=8_426_512, gflop=219.7),
        normalisation=normalisation,
        gain=gain,
    )


def brainlm_111m_card(normalisation: Normalisation = "robust_fixed", gain: float = 1.0) -> EncoderCard:
    """Card of the ViT-B on parcel series as images; `normalisation` and `gain` as for `brainlm_13m_card`."""
    output = OutputSpec(width=768, tokens=352, order=("parcel", "time"), cls="first")
    cost = Cost(parameters=86_208_000, gflop=144.5)
    return _brainlm_picture("111M", "432 x 432 picture, ViT-B", output, cost, normalisation=normalisation, gain=gain)


def brainlm_650m_card(normalisation: Normalisation = "robust_fixed", gain: float = 1.0) -> EncoderCard:
    """Card of the ViT-H on parcel series as images; `normalisation` and `gain` as for `brainlm_13m_card`."""
    output = OutputSpec(width=1280, tokens=466, order=("parcel", "time"), cls="first")
    cost = Cost(parameters=631_667_200, gflop=1363.5)
    return _brainlm_picture("650M", "434 x 434 picture, ViT-H", output, cost, normalisation=normalisation, gain=gain)


def _brainlm_picture(size: str, picture: str, output: OutputSpec, cost: Cost, **scaling: Any) -> EncoderCard:
    return _brainlm(
        f"brainlm-vitmae-{size.lower()}",
        f"fMRI parcel series (A424, 200 frames) as a {picture}",
        "neuroflamingo_encoders.families.brainlm.vitmae:BrainLmVitMaeEncoder",
        output,
        _brainlm_weights(f"vitmae_{size}", allow_missing=("order",)),
        cost,
        **scaling,
    )
