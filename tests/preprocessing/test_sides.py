"""Left is left and every place keeps its place: all ways to store a head, all kinds of header, obliques, units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from neuroflamingo.findings.regions import side_of
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.geometry import apply, orientation_codes
from neuroflamingo_preprocessing.read import read_scan
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step
from neuroflamingo_preprocessing.structural.prepare_volume import Prepared, prepare_volume

MARK_MM = np.array([-38.0, -22.0, 22.0])  # in the left hemisphere, behind the middle, above it
BALL_MM = 10.0
SPACING = np.array([3.6, 3.2, 4.0])
SHAPE = (40, 46, 36)
HEADERS = ("sform only", "qform only", "both equal", "places differ", "sides differ", "neither")
NIFTI: tuple[Any, Any] = (nib.Nifti1Image, nib.Nifti2Image)  # type: ignore[attr-defined]


def head_at(affine: np.ndarray, shape: tuple[int, ...]) -> Scan:
    """A grey box with a bright ball around the mark, whatever the lattice."""
    index = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)
    inside = np.linalg.norm(apply(affine, index) - MARK_MM, axis=1) < BALL_MM
    return Scan(np.where(inside, np.float32(1000), np.float32(100)).reshape(shape), affine)


def centred(turn: np.ndarray, spacing: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The affine of a volume whose middle is the world's origin."""
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


TURNED = centred(Rotation.from_rotvec([0.10, -0.14, 0.08]).as_matrix(), SPACING, SHAPE)
MIRROR = np.diag([-1.0, 1, 1, 1])
ELSEWHERE = np.eye(4)
ELSEWHERE[:3, :3] = Rotation.from_rotvec([0.0, 0.0, 0.3]).as_matrix()
ELSEWHERE[:3, 3] = (0, 0, 15)


def grid() -> ScanSpec:
    """4 mm, RAS, in the scan's own world: nothing but the header says where things lie."""
    sizes = {"channel": 1, "x": 34, "y": 36, "z": 34}
    axes: Any = tuple(Axis(name=name, size=size) for name, size in sizes.items())  # type: ignore[arg-type]
    return ScanSpec(
        modality="volume3d",
        axes=axes,
        channels=("T1w",),
        orientation="RAS",
        spacing_mm=(4.0, 4.0, 4.0),
        origin_mm=(-66.0, -70.0, -66.0),
        steps=(Step.named("linear_resampling"),),
    )


def mark_in(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World position of the middle of the ball, weighted by brightness."""
    weights = np.clip(volume - 300, 0, None)
    index = np.argwhere(weights > 0)
    return apply(affine, np.average(index, axis=0, weights=weights[weights > 0])[None])[0]


def write(path: Path, scan: Scan, sform: Any, qform: Any, codes: tuple[int, int], kind: Any = NIFTI[0]) -> Path:
    image = kind(scan.voxels.astype(np.int16), None)
    image.header.set_zooms(scan.spacing)
    image.header.set_sform(sform, codes[0])
    image.header.set_qform(qform, codes[1])
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


def write_with(path: Path, scan: Scan, header: str) -> Path:
    """A form whose code is 0 says the mirrored place, to show that nobody listens to it."""
    affine, mirrored = scan.affine, MIRROR @ scan.affine
    forms = {
        "sform only": (affine, mirrored, (1, 0)),
        "qform only": (mirrored, affine, (0, 1)),
        "both equal": (affine, affine, (1, 1)),
        "places differ": (affine, ELSEWHERE @ affine, (2, 1)),
        "sides differ": (affine, mirrored, (2, 1)),
        "neither": (affine, affine, (0, 0)),
    }
    return write(path, scan, *forms[header])


def assert_left(prepared: Prepared, within_mm: float) -> None:
    mark = mark_in(prepared.tensor[0], prepared.affine)
    assert np.abs(mark - MARK_MM).max() < within_mm, mark
    assert side_of(mark[0]).value == "left"
    assert mark_in(prepared.tensor[0][::-1], prepared.affine)[0] > 0, "the mark does tell the sides apart"


@pytest.fixture(scope="module")
def original() -> Scan:
    return head_at(TURNED, SHAPE)


@pytest.mark.parametrize("header", HEADERS)
def test_every_way_to_store_a_head_with_every_kind_of_header(
    stored: tuple, header: str, stored_as: Callable[..., Scan], original: Scan, tmp_path: Path
) -> None:
    """48 axis orders and flips by six kinds of header: 288 files. Where both forms hold they must be of one
    handedness; the sform is used, and a warning says so where they lie apart."""
    other = stored_as(original, *stored)
    path = write_with(tmp_path / "head.nii", other, header)
    if header in ("neither", "sides differ"):
        words = "left and right cannot be told" if header == "neither" else "disagree about which side is left"
        with pytest.raises(ScanError, match=words) as caught:
            read_scan(path)
        assert caught.value.exit_code == 65 and caught.value.hint
        return
    scan = read_scan(path)
    order, signs = stored
    np.testing.assert_allclose(scan.affine, other.affine, atol=1e-3)
    np.testing.assert_array_equal(scan.voxels, other.voxels)
    assert scan.provenance.header["orientation"] == "".join(("RAS" if signs[o] > 0 else "LPI")[o] for o in order)
    assert scan.provenance.header["affine from"] == ("qform" if header == "qform only" else "sform")
    warnings = scan.provenance.warnings
    assert any("the sform is used" in words for words in warnings) == (header == "places differ") or "only" in header
    assert not warnings or header != "both equal"
    assert all("unknown" in words for words in warnings) or "only" not in header  # of the form that has no code
    assert_left(prepare_volume(scan, grid()), within_mm=SPACING.min() / 2)


# --- obliques ----------------------------------------------------------------------------------------------------


def oblique(rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...]]:
    """Any rotation, three different voxel sizes, either handedness; some 150 mm along each axis."""
    spacing = rng.permutation([rng.uniform(2.5, 3.2), rng.uniform(3.3, 4), rng.uniform(4.1, 5)])
    shape = tuple(int(n) for n in np.ceil(rng.uniform(140, 165, 3) / spacing))
    turn = Rotation.random(random_state=rng).as_matrix()
    if rng.random() < 0.5:
        turn[:, rng.integers(3)] *= -1
    return centred(turn, spacing, shape), shape


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_obliques(seed: int, tmp_path: Path) -> None:
    affine, shape = oblique(np.random.default_rng(seed))
    name = ("head.nii", "head.nii.gz")[seed % 2]
    codes = ((1, 0), (0, 1), (1, 1))[seed % 3]
    path = write(tmp_path / name, head_at(affine, shape), affine, affine, codes, NIFTI[seed // 2 % 2])
    scan = read_scan(path)
    assert not scan.provenance.warnings
    np.testing.assert_allclose(scan.affine, affine, atol=5e-3)
    prepared = prepare_volume(scan, grid())
    assert orientation_codes(prepared.affine) == "RAS"
    assert_left(prepared, within_mm=min(scan.spacing) / 2)


def test_obliques_are_of_both_hands_and_of_all_directions() -> None:
    affines = [oblique(np.random.default_rng(seed))[0] for seed in range(200)]
    hands = [np.linalg.det(affine[:3, :3]) > 0 for affine in affines]
    assert 60 < sum(hands) < 140
    assert len({orientation_codes(affine) for affine in affines}) >= 44


@pytest.mark.parametrize("seed", range(30))
def test_sheared_and_singular_affines_are_refused(seed: int, tmp_path: Path) -> None:
    """By 3 degrees and more; every third one is flat: two voxel axes in one direction, or one that has no length."""
    rng = np.random.default_rng(seed)
    affine, shape = oblique(rng)
    first, second = rng.permutation(3)[:2]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if seed % 3 == 0:
        affine[:3, second] = 0 if seed % 6 else affine[:3, first] / lengths[first] * lengths[second]
    else:
        lean = np.tan(np.deg2rad(rng.uniform(3.5, 45)))
        column = affine[:3, second] / lengths[second] + lean * affine[:3, first] / lengths[first]
        affine[:3, second] = column / np.linalg.norm(column) * lengths[second]
    scan = Scan(rng.random(shape, dtype=np.float32) * 100, affine)
    image = NIFTI[0](scan.voxels.astype(np.int16), None)
    image.header.set_zooms(lengths)
    image.header.set_sform(affine, 1)
    image.to_filename(tmp_path / "head.nii")
    with pytest.raises(ScanError, match="singular|usable affine" if seed % 3 == 0 else "sheared") as caught:
        read_scan(tmp_path / "head.nii")
    assert caught.value.exit_code == 65 and "head.nii" in caught.value.what


# --- units -------------------------------------------------------------------------------------------------------

UNITS = {"unknown": (0, 1.0), "m": (1, 1e-3), "mm": (2, 1.0), "um": (3, 1e3)}


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1)], ids=["sform", "qform", "both"])
@pytest.mark.parametrize("numbers", ["m", "mm", "um"])
@pytest.mark.parametrize("stated", UNITS)
def test_units(stated: str, numbers: str, codes: tuple[int, int], original: Scan, tmp_path: Path) -> None:
    """Four stated units by three that the numbers really have by three kinds of header: a unit that is stated is
    applied, none means millimetres, and a head of a tenth of a millimetre or of 140 m is refused."""
    scale = np.diag([UNITS[numbers][1]] * 3 + [1.0])
    path = write(tmp_path / "head.nii", Scan(original.voxels, scale @ TURNED), scale @ TURNED, scale @ TURNED, codes)
    raw = bytearray(path.read_bytes())
    raw[123] = UNITS[stated][0] | 8  # seconds, which must not disturb
    path.write_bytes(raw)
    if UNITS[stated][1] != UNITS[numbers][1]:
        with pytest.raises(ScanError, match=r"whole head|too large|usable affine") as caught:
            read_scan(path)
        assert caught.value.exit_code == 65 and caught.value.hint
        return
    scan = read_scan(path)
    np.testing.assert_allclose(scan.affine, TURNED, rtol=1e-5, atol=1e-3)
    said = scan.provenance.header["units"]
    assert said == stated or (stated == "unknown" and "taken as mm" in said)
    assert_left(prepare_volume(scan, grid()), within_mm=SPACING.min() / 2)
