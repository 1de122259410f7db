"""A store of prepared heads beside nibabel with scipy in every epoch, and beside MONAI's PersistentDataset."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from comparing import OURS
from preparing_data import folder, sizes

Work = Callable[[], Any]
GRID, MASKED = "vit3d", "tiny-t1w-cnn"  # 96 x 112 x 96 at 2 mm, the whole head; 56 x 64 x 56 at 3 mm, the brain


@dataclass(frozen=True)
class Near:
    """Results of two interpolations, which agree but for the outermost voxels."""

    values: list[np.ndarray]


def heads() -> list[Path]:
    return sorted((folder() / "heads").iterdir())[: sizes().cached]


def scratch() -> Path:
    """A folder of its own inside the benchmark's."""
    return Path(tempfile.mkdtemp(dir=folder()))


def spec_of(name: str, *left_out: str) -> Any:
    """What an encoder takes, without alignment, which neither nibabel nor MONAI does: the heads lie in the template."""
    from neuroflamingo_encoders import encoder_card

    spec = encoder_card(name).scan
    steps = tuple(s for s in spec.steps if s.name not in ("affine_alignment", "match_to_template", *left_out))
    return spec.model_copy(update={"steps": steps})


def build_store(spec: Any, path: Path) -> Any:
    from neuroflamingo_preprocessing import ScanStore, prepare, read_scan

    store = ScanStore.create(path, encoder="bench", card_digest="0" * 64, spec_digest=spec.digest)
    for head in heads():
        scan = read_scan(head)
        prepared = prepare(scan, spec)
        metadata = {"name": head.name, "geometry": [step.as_dict() for step in prepared.geometry]}
        store.put(str(scan.provenance.sha256), [prepared.tensor], [axis.name for axis in spec.axes], metadata)
    return store


def result(volumes: list[np.ndarray], crop: tuple[int, int, int] | None) -> Any:
    """What is compared: values where both sides give the same part, else shapes."""
    return Near(volumes) if crop is None else [volume.shape for volume in volumes]


def our_epoch(crop: tuple[int, int, int] | None) -> Work:
    from neuroflamingo_preprocessing import ScanDataset

    store = build_store(spec_of(GRID), scratch() / "store")
    data, number = ScanDataset(store, crop=crop), {key: index for index, key in enumerate(store)}
    order = [number[head_key(head)] for head in heads()]
    return lambda: result([data[index]["scan"].numpy() for index in order], crop)


def nibabel_epoch(crop: tuple[int, int, int] | None) -> Work:
    """The same as `prepare` does, by nibabel and scipy, for every scan in every epoch."""
    from scipy.ndimage import affine_transform, gaussian_filter

    spec = spec_of(GRID)
    sigma = width_in_voxels(spec)

    def prepared(path: Path) -> np.ndarray:
        image = nibabel.as_closest_canonical(nibabel.load(path))  # type: ignore[attr-defined]
        smooth = gaussian_filter(image.get_fdata(dtype=np.float32), sigma, truncate=3.0)
        to_voxel = np.linalg.inv(image.affine) @ spec.grid_affine
        offset: Any = to_voxel[:3, 3]
        volume = affine_transform(smooth, to_voxel[:3, :3], offset, output_shape=spec.grid_shape, order=1)[None]
        first = np.random.default_rng(0).integers(np.array(spec.grid_shape) - np.array(crop or spec.grid_shape) + 1)
        part = tuple(slice(a, a + n) for a, n in zip(first, crop or spec.grid_shape, strict=True))
        return np.ascontiguousarray(volume[(slice(None), *part)])

    return lambda: result([prepared(path) for path in heads()], crop)


def width_in_voxels(spec: Any) -> float:
    """Of the card's Gaussian, for voxels of 1 mm."""
    return spec.step("gaussian_antialias")["fwhm_mm"] / 2.355


# --- beside MONAI's PersistentDataset ----------------------------------------------------------------------------


def our_build(smooth: bool) -> Work:
    spec = spec_of(MASKED, *(() if smooth else ("gaussian_antialias",)))

    def work() -> Near:
        path = scratch()
        store = build_store(spec, path / "store")
        found = Near([store[head_key(head)].read((0,)) for head in heads()])
        shutil.rmtree(path)
        return found

    return work


def head_key(path: Path) -> str:
    """Its key in the store: the file's hash."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def monai_dataset(smooth: bool, cache: Path) -> Any:
    """The same steps by MONAI's own transforms."""
    from monai.data.dataset import PersistentDataset
    from monai.transforms.intensity.array import GaussianSmooth, MaskIntensity
    from monai.transforms.io.array import LoadImage
    from monai.transforms.spatial.array import Orientation, SpatialResample
    from monai.transforms.transform import Transform
    from monai.transforms.utility.array import EnsureChannelFirst

    from neuroflamingo_preprocessing.structural.template import load_template

    spec = spec_of(MASKED)

    class OntoGrid(Transform):
        """MONAI takes the grid with each call."""

        def __init__(self) -> None:
            self.resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True)

        def __call__(self, image: Any) -> Any:
            return self.resample(image, torch.as_tensor(spec.grid_affine), spec.grid_shape)

    filters = [GaussianSmooth(width_in_voxels(spec), approx="sampled")] if smooth else []
    steps = [LoadImage(image_only=True), EnsureChannelFirst(), Orientation("RAS", labels=None), *filters, OntoGrid()]
    steps += [MaskIntensity(load_template().grid_mask[None])]
    return PersistentDataset([str(head) for head in heads()], steps, cache_dir=cache)


def monai_build(smooth: bool) -> Work:
    def work() -> Near:
        path = scratch()
        data = monai_dataset(smooth, path)
        found = Near([np.asarray(data[index]) for index in range(len(data))])
        shutil.rmtree(path)
        return found

    return work


def our_cached() -> Any:
    from neuroflamingo_preprocessing import ScanDataset

    return ScanDataset(build_store(spec_of(MASKED), scratch() / "store"))


def epochs_of(make: Callable[[], Any]) -> Work:
    data = make()

    def work() -> tuple[int, ...]:
        for _ in range(20 * sizes().epochs):
            for index in range(len(data)):
                element = data[index]
        return tuple(element["scan"].shape if isinstance(element, dict) else element.shape)

    return work


def monai_cached() -> Any:
    data = monai_dataset(True, scratch())
    for index in range(len(data)):
        data[index]
    return data


def bytes_on_disk(which: str) -> int:
    """All files of a cache."""
    place = our_cached().store.path if which == OURS else monai_cached().cache_dir
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
