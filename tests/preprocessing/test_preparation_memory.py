"""Peak memory of preparing one scan, in a process of its own, above what its imports and the template hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MB = 2**20
PEAK = """
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
import numpy, zarr, scipy.ndimage, SimpleITK
from neuroflamingo_preprocessing.preparation import Preparation
from neuroflamingo_preprocessing.stores.build import prepare_into_store
from neuroflamingo_encoders import encoder_card
from neuroflamingo_preprocessing import prepare, read_scan
card = encoder_card("vit3d")
before = getrusage(RUSAGE_SELF).ru_maxrss
done = prepare_into_store(sys.argv[1], sys.argv[2], card, Preparation())
assert done.done == 1, done.failures
print(getrusage(RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_one_scan_at_a_millimetre(tmp_path: Path) -> None:
    """At most three times the float32 voxels and 300 MB; a head of 256 x 256 x 256 voxels."""
    from neuroflamingo_preprocessing.structural.resampling import resample
    from neuroflamingo_preprocessing.structural.template import load_template

    template, shape = load_template(), (256, 256, 256)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-128.0, -146.0, -110.0)
    head = 1000 * resample(template.t1, template.affine, shape, affine, 1.0, 0.0)
    image = nib.Nifti1Image(head.astype(np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.to_filename(tmp_path / "head.nii.gz")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "head.nii.gz"), str(tmp_path / "store")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    peak, result = int(answer.stdout) * 1024, 4 * int(np.prod(shape))
    print(f"{peak / MB:.0f} MB above the imports; float32 voxels {result / MB:.0f} MB")
    assert peak <= 3 * result + 300 * MB


def test_the_template() -> None:
    """Four maps of 35 MB stay; two smoothed ones are made at a time."""
    code = """
from resource import RUSAGE_SELF, getrusage
import nibabel, numpy, scipy.ndimage
from neuroflamingo_preprocessing.structural.template import load_template
before = getrusage(RUSAGE_SELF).ru_maxrss
load_template()
print(getrusage(RUSAGE_SELF).ru_maxrss - before)
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) * 1024 <= 250 * MB
