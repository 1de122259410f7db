"""Twenty-one kinds of damage done to painted heads by rule: each is refused or warned of; sound heads are neither."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroflamingo.painting import paint_case
from neuroflamingo.painting.scanner_space import Sampling
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.geometry import to_canonical
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.read import read_scan
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.structural.artefacts import judge_artefacts, measure_artefacts
from tests.preprocessing.structural.damages import blurred, moved, striped

REAL = Path(os.environ.get("NEUROFLAMINGO_REAL_SCANS", Path(__file__).resolve().parents[4] / "shared" / "real"))
STRAIGHT = Sampling((1.5, 1.5, 1.5), (0, 1, 2), (False, False, False), np.eye(3), (1, 1, 1))
Damage = Callable[[Scan], Scan]


def sound(seed: int = 11) -> Scan:
    scan = paint_case(seed).scan(STRAIGHT)
    voxels, affine = to_canonical(scan.voxels, scan.affine)
    return replace(scan, voxels=np.ascontiguousarray(voxels), affine=affine)


def of_voxels(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda scan: replace(scan, voxels=np.ascontiguousarray(change(scan.voxels), dtype=np.float32))


def scaled(*factors: float) -> Damage:
    return lambda scan: replace(scan, affine=scan.affine @ np.diag([*factors, 1.0]))


def lower_third(voxels: np.ndarray) -> np.ndarray:
    out = voxels.copy()
    out[:, :, : voxels.shape[2] // 3] = 0
    return out


def hole(voxels: np.ndarray) -> np.ndarray:
    out, middle = voxels.copy(), [n // 2 for n in voxels.shape]
    out[tuple(slice(m - 24, m + 24) for m in middle)] = 0
    return out


def thick(scan: Scan) -> Scan:
    count = scan.voxels.shape[2] // 5
    voxels = scan.voxels[:, :, : 5 * count].reshape(*scan.voxels.shape[:2], count, 5).mean(-1)
    affine = scan.affine @ np.diag([1, 1, 5.0, 1])
    affine[:3, 3] += scan.affine[:3, 2] * 2
    return replace(scan, voxels=voxels.astype(np.float32), affine=affine)


NOISE = np.random.default_rng(0)
DAMAGES: dict[str, tuple[Damage, str]] = {
    "motion along rows": (of_voxels(lambda v: moved(v, 0)), "ghosts"),
    "motion along columns": (of_voxels(lambda v: moved(v, 1)), "ghosts"),
    "motion along slices": (of_voxels(lambda v: moved(v, 2)), "ghosts"),
    "blur": (of_voxels(lambda v: blurred(v, 2.0)), "blurred"),
    "blur along rows": (of_voxels(lambda v: blurred(v, 4.0, 0)), "blurred"),
    "blur along slices": (of_voxels(lambda v: blurred(v, 4.0, 2)), "blurred"),
    "strong stripes": (of_voxels(lambda v: striped(v, 0.3)), "stripes"),
    "faint stripes": (of_voxels(lambda v: striped(v, 0.05)), "stripes"),
    "axes swapped": (of_voxels(lambda v: v.transpose(1, 0, 2)), ""),
    "turned by 180 degrees": (of_voxels(lambda v: v[::-1, ::-1]), ""),
    "upside down": (of_voxels(lambda v: v[:, ::-1, ::-1]), ""),
    "noise alone": (of_voxels(lambda v: NOISE.normal(500, 100, v.shape)), ""),
    "half a head": (of_voxels(lambda v: v[: v.shape[0] // 2]), ""),
    "a small field of view": (of_voxels(lambda v: v[:, :, v.shape[2] // 3 :]), ""),
    "voxels half as large": (scaled(0.5, 0.5, 0.5), ""),
    "voxels twice as long": (scaled(1.0, 1.0, 2.0), ""),
    "lower third empty": (of_voxels(lower_third), ""),
    "a hole": (of_voxels(hole), ""),
    "clipped": (of_voxels(lambda v: np.minimum(v, np.percentile(v, 99.5) / 4)), ""),
    "much noise": (of_voxels(lambda v: v + NOISE.normal(0, 0.35 * np.percentile(v, 99), v.shape)), ""),
    "thick slices": (thick, "7.5 mm apart"),
}


def said(scan: Scan) -> str:
    """The refusal, or the warnings."""
    try:
        return "; ".join(prepare(scan, encoder_card("tiny-t1w-cnn").scan).warnings)
    except NeuroFlamingoError as refusal:
        return f"refused: {refusal}"


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_or_told(name: str) -> None:
    damage, words = DAMAGES[name]
    found = said(damage(sound()))
    assert found and words in found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2000, 2012))
def test_sound_painted_heads_of_all_styles(seed: int) -> None:
    scan = paint_case(seed).scan()
    warnings: list[str] = []
    judge_artefacts(measure_artefacts(scan.voxels, scan.affine), warnings)
    assert warnings == []


@pytest.mark.slow
def test_sound_real_heads() -> None:
    heads = sorted((REAL / "heads").glob("*.nii.gz"))
    if not heads:
        pytest.skip(f"no real heads in {REAL}: set NEUROFLAMINGO_REAL_SCANS")
    faults: dict[str, Any] = {}
    for head in heads[:: 1 + len(heads) // 30]:
        scan, warnings = read_scan(head), list[str]()
        judge_artefacts(measure_artefacts(scan.voxels, scan.affine), warnings)
        faults |= {head.name: warnings} if warnings else {}
    assert faults == {}
