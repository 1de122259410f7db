"""Names and header texts that say another image than a T1-weighted one; names of T1-weighted ones say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroflamingo_preprocessing.formats.described import AGENT, described_by_name, described_by_text
from neuroflamingo_preprocessing.read import read_scan
from tests.preprocessing.formats.dicom.dicom_heads import MPRAGE, SMALL, write_series

OTHERS = {
    "t2.nii.gz": "T2w",
    "flair.nii.gz": "FLAIR",
    "BraTS-GLI-00000-000-t2w.nii.gz": "T2w",
    "BraTS-GLI-00000-000-t2f.nii.gz": "FLAIR",
    "BraTS-GLI-00000-000-t1c.nii.gz": AGENT,
    "BraTS20_Training_001_t1ce.nii.gz": AGENT,
    "patient_T1w_ce.nii": AGENT,
    "T1_post_contrast.mgz": AGENT,
    "head_T1_Gd.nrrd": AGENT,
    "sub-01_ce-gadolinium_T1w.nii.gz": AGENT,
    "sub-01_ses-2_ce-Gd_acq-mprage_T1w.nii.gz": AGENT,
    "adc.nii.gz": "dwi",
    "swi.nii.gz": "T2starw",
    "head_ct.nii.gz": "CT",
    "sub-01_T1map.nii.gz": "T1map",
    "sub-01_PDw.nii.gz": "PDw",
    "sub-01_T2starw.nii.gz": "T2starw",
    "sub-01_t2STARw.nii": "T2starw",
    "sub-01_inv-1_MP2RAGE.nii.gz": "MP2RAGE inversion image",
    "mp2rage_inv2.nii.gz": "MP2RAGE inversion image",
    "wm_seg.nii.gz": "mask or segmentation",
    "sub-01_desc-brain_mask.nii.gz": "mask or segmentation",
    "sub-01_T1w_brain_mask.nii.gz": "mask or segmentation",
    "tof_mra.mha": "angiography",
    "sub-01_asl.nii.gz": "perfusion",
    "sub-01_task-rest_sbref.nii.gz": "bold",
}
T1 = [
    *("sub-01_T1w.nii.gz", "t1.nii", "T1.mgz", "head.nii.gz", "brain.nii", "sub-01_UNIT1.nii.gz", "mp2rage_uni.nii"),
    *("MNI152_T1_1mm.nii.gz", "BraTS-GLI-00000-000-t1n.nii.gz", "ct_study_12_T1w.nii.gz", "T1w_reg_to_T2.nii.gz"),
    *("sub-ce01_T1w.nii.gz", "sub-01_ce-none_T1w.nii", "sub-01_acq-post_T1w.nii.gz", "decubitus_HFDL_T1w.nii.gz"),
    *("sub-01_space-T2w_desc-preproc_T1w.nii.gz", "Müller_MPRAGE.nii.gz", "orig.mgz", "anat.zarr", "fat.nii"),
]


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_other_images(name: str) -> None:
    assert described_by_name(name) == (OTHERS[name],)


@pytest.mark.parametrize("name", T1)
def test_names_of_t1_weighted_images(name: str) -> None:
    assert described_by_name(name) == ()


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("t1_mprage_sag_gado", (AGENT,)),
        ("AX T1 POST", (AGENT,)),
        ("SAG 3D BRAVO +C", (AGENT,)),
        ("MPRAGE post contrast", (AGENT,)),
        ("t2w_tse_tra", ("T2w",)),
        ("FLAIR", ("FLAIR",)),
        ("t1_mprage_sag_p2_iso", ()),
        ("TE=2.9;Time=121314.000;phase=1;dwell=0.52", ()),
        ("FSL5.0", ()),
        ("FreeSurfer Jan 18 2017", ()),
        ("spm - 3D normalized", ()),
        ("", ()),
    ],
)
def test_texts_of_headers(text: str, kinds: tuple[str, ...]) -> None:
    assert described_by_text(text) == kinds


def test_the_description_of_a_dicom_series(tmp_path: Path) -> None:
    write_series(tmp_path / "agent", SMALL, {**MPRAGE, "SeriesDescription": "Doe t1_mprage_sag_KM +C"})
    warnings = read_scan(tmp_path / "agent").provenance.warnings
    assert warnings == ("DICOM series 1 was made with a contrast agent",)
    write_series(tmp_path / "silent", SMALL, {"SeriesDescription": "t2w_tse"})
    warnings = read_scan(tmp_path / "silent").provenance.warnings
    assert "the description of DICOM series 1 says T2w, not T1w" in warnings
