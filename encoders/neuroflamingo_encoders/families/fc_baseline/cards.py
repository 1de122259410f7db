"""Card of `fc-baseline`: functional connectivity, the baseline that an fMRI encoder has to beat."""

from __future__ import annotations

from neuroflamingo_encoders.card import Cost, EncoderCard, OutputSpec, Weights
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step


def fc_baseline_card(parcels: int = 424) -> EncoderCard:
    """Make the card for a parcellation with this number of parcels; series of 3 frames or more."""
    return EncoderCard(
        name="fc-baseline",
        version="1",
        summary="functional connectivity: each parcel's correlations with all parcels are its token",
        implementation="neuroflamingo_encoders.families.fc_baseline.network:FcBaselineEncoder",
        scan=ScanSpec(
            modality="parcels",
            axes=(Axis(name="parcel", size=parcels), Axis(name="time", minimum=3)),
            filtering="any",
            steps=(Step.named("parcel_mean"),),
        ),
        output=OutputSpec(width=parcels, tokens=parcels, order=("parcel",), normalised=False),
        weights=Weights(source="none", licence="Apache-2.0", commercial=True, redistribution=True, derivatives=True),
        cost=Cost(parameters=0),
    )
