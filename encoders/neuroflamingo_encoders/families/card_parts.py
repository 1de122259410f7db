"""Parts of cards shared by several families of fMRI encoders; no torch, so that listing is instant."""

from __future__ import annotations

from neuroflamingo_encoders.card import Demand
from neuroflamingo_preprocessing.spec import Axis, Parcellation, RepetitionTime, ScanSpec, Step

FSL_ORIGIN = (90.0, -126.0, -72.0)
"""World coordinates of voxel (0, 0, 0) of MNI152 at 2 mm as FSL stores it, 91 x 109 x 91 voxels from right to left."""

MNI_2MM = Demand(what="motion correction, denoising and registration to MNI at 2 mm", level="required")


def parcel_spec(count: int, frames: int, parcellation: str, seconds: float, *steps: Step) -> ScanSpec:
    """Make the spec of a parcel series: `count` parcels in ascending label order, resampled to `seconds`."""
    return ScanSpec(
        modality="parcels",
        axes=(Axis(name="parcel", size=count), Axis(name="time", size=frames)),
        repetition_time=RepetitionTime(seconds=seconds, tolerance=0.1, policy="resample"),
        parcellation=Parcellation(identifier=parcellation, row_order="ascending label"),
        steps=steps,
    )
