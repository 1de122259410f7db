"""Card of Brain-JEPA."""

from __future__ import annotations

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec, Weights
from neuroflamingo_encoders.families.card_parts import MNI_2MM, parcel_spec
from neuroflamingo_preprocessing.spec import Step

BRAIN_JEPA = EncoderCard(
    name="brain-jepa-vitb",
    version="1",
    summary="fMRI parcel series (Schaefer 400 and Tian 50, 160 frames), ViT-B placed by functional gradients",
    implementation="neuroflamingo_encoders.families.brain_jepa.network:BrainJepaEncoder",
    repository="https://github.com/Eric-LRL/Brain-JEPA",
    commit="b1dfa93eb331d1e70476446b06fc8a1ac3c92345",
    paper="https://arxiv.org/abs/2409.19407",
    citation="Dong et al. Brain-JEPA: brain dynamics foundation model with gradient positioning. NeurIPS 2024.",
    scan=parcel_spec(
        450, 160, "Schaefer400+TianS3", 2.2, Step.named("parcel_mean"), Step(name="zscore_run", scope="run")
    ),
    demands=(MNI_2MM, Demand(what="gradient_mapping_450.csv, by set_gradient", level="required")),
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
