"""Card of BrainMT."""

from __future__ import annotations

from neuroflamingo_encoders.card import Cost, EncoderCard, OutputSpec, Weights
from neuroflamingo_encoders.families.card_parts import FSL_ORIGIN, MNI_2MM
from neuroflamingo_preprocessing.spec import Axis, RepetitionTime, ScanSpec, Step

BRAINMT = EncoderCard(
    name="brainmt",
    version="1",
    summary="fMRI run 91 x 109 x 91 x 200 in MNI at 2 mm, convolutions, Mamba over time, attention; train it yourself",
    implementation="neuroflamingo_encoders.families.brainmt.network:BrainMtEncoder",
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
        origin_mm=FSL_ORIGIN,
        template="MNI152 6th generation",
        repetition_time=RepetitionTime(seconds=0.72, tolerance=0.1, policy="as_is"),
        steps=(Step(name="zscore_foreground", scope="run"), Step.named("to_grid")),
    ),
    demands=(MNI_2MM,),
    output=OutputSpec(width=512, tokens=50401, order=("y", "x", "z", "time"), cls="first", normalised=False),
    weights=Weights(source="none", licence="none released", commercial=False, redistribution=False, derivatives=False),
    cost=Cost(parameters=39_104_961, gflop=56_000.0),
)
