"""`python tools/painting_gallery.py OUT.png`: one painted case of each class, for docs/painting.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side
from neuroflamingo.painting.case import paint_case
from neuroflamingo.painting.scanner_space import Sampling
from neuroflamingo_preprocessing.errors import UsageError

SPACING_MM = 1.2
CLEAR, QUIET = 0.7, 0.035
"""Cases are shown with clear findings and little noise; many are fainter (docs/painting.md says how many)."""
SHOWN = (
    ("cortical infarct", Finding(kind=FindingClass.INFARCT, side=Side.LEFT, region=Region.PARIETAL, size_mm=38)),
    ("lacune", Finding(kind=FindingClass.INFARCT, side=Side.RIGHT, region=Region.THALAMUS, size_mm=12)),
    ("mass", Finding(kind=FindingClass.MASS, side=Side.RIGHT, region=Region.FRONTAL, size_mm=40)),
    ("subacute hematoma", Finding(kind=FindingClass.HEMATOMA, side=Side.LEFT, region=Region.TEMPORAL, size_mm=30)),
    (
        "white matter lesions, severe",
        Finding(kind=FindingClass.WHITE_MATTER_LESIONS, region=Region.WHITE_MATTER, grade=3),
    ),
    (
        "ventricular enlargement, severe",
        Finding(kind=FindingClass.VENTRICULAR_ENLARGEMENT, region=Region.VENTRICLES, grade=3),
    ),
    ("atrophy, left frontal", Finding(kind=FindingClass.ATROPHY, side=Side.LEFT, region=Region.FRONTAL)),
    ("no finding", None),
)
HEIGHT_MM = {"lacune": 8, "subacute hematoma": -14, "atrophy, left frontal": 44, "mass": 26, "cortical infarct": 42}
PLAIN = Sampling((SPACING_MM,) * 3, (0, 1, 2), (False,) * 3, np.eye(3), (1, 1, 1))  # type: ignore[arg-type]


def _slice(name: str, finding: Finding | None, seed: int) -> np.ndarray:
    """One axial slice of the native scan, patient's left on the right."""
    wishes = [] if finding is None else [_whole(finding)]
    case = paint_case(seed, findings=wishes)
    while any(lesion.contrast < CLEAR for lesion in case.blueprint.lesions) or case.blueprint.scanner.noise > QUIET:
        seed += 10
        case = paint_case(seed, findings=wishes)
    scan = case.scan(PLAIN)
    centre = np.array([0.0, -15.0, HEIGHT_MM.get(name, 16), 1.0])
    if case.blueprint.lesions:
        centre[:3] = case.blueprint.lesions[0].centre
    height = (np.linalg.inv(scan.affine) @ case.blueprint.to_head @ centre)[2]
    return np.fliplr(np.rot90(scan.voxels[:, :, round(float(height))]))


def _whole(finding: Finding) -> Finding:
    return finding if finding.side else finding.model_copy(update={"side": Side.BILATERAL})


def draw(path: Path) -> Path:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(12, 7.2), facecolor="black")
    for (name, finding), axis, seed in zip(SHOWN, axes.flat, range(500, 508), strict=True):
        picture = _slice(name, finding, seed)
        axis.imshow(picture, cmap="gray", vmin=0, vmax=float(np.quantile(picture, 0.995)))
        axis.set_title(name, color="white", fontsize=11)
        axis.text(0.02, 0.5, "R", color="white", transform=axis.transAxes)
        axis.text(0.95, 0.5, "L", color="white", transform=axis.transAxes)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    return path


def main() -> None:
    """Draw the picture into the file that the command line names."""
    if len(sys.argv) != 2:
        raise UsageError("one argument is needed", expected="the picture to write", seen=" ".join(sys.argv[1:]))
    print(draw(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
