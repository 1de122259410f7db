"""Card of `tiny-t1w-cnn`: the encoder of the embedded model."""

from __future__ import annotations

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec, TokenGrid, Weights
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step

SCAN = ScanSpec(
    modality="volume3d",
    axes=(Axis(name="channel", size=1), Axis(name="x", size=56), Axis(name="y", size=64), Axis(name="z", size=56)),
    channels=("T1w",),
    orientation="RAS",
    spacing_mm=(3.0, 3.0, 3.0),
    origin_mm=(-82.5, -112.5, -76.5),
    template="MNI152 ICBM2009a symmetric",
    steps=(
        Step.named("affine_alignment", degrees_of_freedom=12),
        Step.named("gaussian_antialias", fwhm_mm=3.0),
        Step.named("linear_resampling"),
        Step.named("match_to_template", polynomial_order=3, reweightings=2),
        Step.named("template_mask"),
    ),
    fill=0.0,
)

CARD = EncoderCard(
    name="tiny-t1w-cnn",
    version="4",
    summary="3D convolutions on a 3 mm T1-weighted head in MNI space; the embedded model's encoder",
    implementation="neuroflamingo_encoders.families.tiny_t1w.network:TinyT1wEncoder",
    scan=SCAN,
    demands=(
        Demand(what="T1-weighted contrast of a whole head", level="required"),
        Demand(what="skull stripping", level="done_here", note="by the template's brain mask, after alignment"),
        Demand(what="bias field correction", level="done_here", note="by the polynomial of match_to_template"),
    ),
    # 202 of the 392 cells of 24 mm (those that hold brain; the module's positions say which), then ten summary tokens.
    output=OutputSpec(
        width=192,
        tokens=212,
        order=("x", "y", "z", "summary"),
        grid=TokenGrid(shape=(7, 8, 7), spacing_mm=(24.0, 24.0, 24.0), origin_mm=(-72.0, -102.0, -66.0)),
    ),
    weights=Weights(source="embedded", licence="Apache-2.0", commercial=True, redistribution=True, derivatives=True),
    cost=Cost(parameters=4_261_832),
)
