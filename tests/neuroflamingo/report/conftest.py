"""A hand-made report with real pictures: one infarct, one grade, no model."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side, Signal
from neuroflamingo.provenance import (
    DeviceRecord,
    GenerationRecord,
    GeometryEntry,
    InputRecord,
    ModelRecord,
    Provenance,
    QualityFlag,
)
from neuroflamingo.report.evidence import locate
from neuroflamingo.report.methods import methods_of
from neuroflamingo.report.model import Report
from neuroflamingo.report.pictures import canvas_of, picture_of_alignment, picture_of_attention, picture_of_slices
from neuroflamingo.report.records import Parse, Sections, Statement
from neuroflamingo_preprocessing.software import software

GRID = np.diag([3.0, 3.0, 3.0, 1.0])
GRID[:3, 3] = (-82.5, -112.5, -76.5)
SHAPE = (56, 64, 56)
FINDINGS_TEXT = (
    "There is a chronic infarct of the left parietal lobe measuring 24 mm. Mild white matter lesions. No mass."
)
IMPRESSION_TEXT = "1. Left parietal infarct. 2. White matter lesions, mild."
TEXT = f"TECHNIQUE: T1-weighted MRI.\nFINDINGS: {FINDINGS_TEXT}\nIMPRESSION: {IMPRESSION_TEXT}"
INFARCT = Finding(kind=FindingClass.INFARCT, side=Side.LEFT, region=Region.PARIETAL, size_mm=24.0, signal=Signal.LOW)
LESIONS = Finding(kind=FindingClass.WHITE_MATTER_LESIONS, side=Side.BILATERAL, region=Region.WHITE_MATTER, grade=1)
PEAK = np.array([-40.0, -46.0, 44.0])


@pytest.fixture(scope="session")
def grid() -> np.ndarray:
    """Affine of the model's grid."""
    return GRID


@pytest.fixture(scope="session")
def peak() -> np.ndarray:
    """Where the attention of the hand-made report lies, world mm."""
    return PEAK


@pytest.fixture(scope="session")
def world_points() -> np.ndarray:
    """World position of every voxel of the model's grid, `[x y z 3]`."""
    grid = np.moveaxis(np.indices(SHAPE), 0, -1)
    return grid @ GRID[:3, :3].T + GRID[:3, 3]


@pytest.fixture(scope="session")
def head(world_points: np.ndarray) -> np.ndarray:
    """An ellipsoid brain with a bright ball on the patient's left, `[x y z]`."""
    brain = (((world_points - (0, -18, 6)) / (68, 84, 66)) ** 2).sum(-1) < 1
    stripes = 1.0 + 0.3 * np.sin(world_points / 6.0).sum(-1)
    values = np.where(brain, stripes, 0.0)
    values[np.linalg.norm(world_points - PEAK, axis=-1) < 12] = 4.0
    return values.astype(np.float32)


@pytest.fixture(scope="session")
def token_positions() -> np.ndarray:
    axes = [np.arange(count) * 24.0 + start for count, start in zip((7, 8, 7), (-72.0, -102.0, -66.0), strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


@pytest.fixture(scope="session")
def token_weights(token_positions: np.ndarray) -> np.ndarray:
    weights = 1 + 40 * np.exp(-((token_positions - PEAK) ** 2).sum(1) / (2 * 18.0**2))
    return weights / weights.sum()


def make_provenance(name: str = "sub-01_T1w.nii.gz") -> Provenance:
    identity = tuple(map(tuple, np.eye(4).tolist()))
    return Provenance(
        run_uuid="00000000-0000-4000-8000-000000000000",
        started="2026-01-02T03:04:05+00:00",
        finished="2026-01-02T03:04:25+00:00",
        command=("neuroflamingo", "report", name),
        software=software(),
        inputs=(
            InputRecord(
                name=name,
                role="scan",
                size_bytes=12_345_678,
                sha256="ab" * 32,
                spacing_mm=(1.0, 1.0, 1.0),
                header={"format": "NIfTI-1", "shape": "176 x 240 x 256", "stored type": "int16", "orientation": "LPS"},
            ),
        ),
        geometry=(
            GeometryEntry(
                scan=0, name="reorientation", reason="stored LPS, turned to RAS", before=identity, after=identity
            ),
            GeometryEntry(
                scan=0,
                name="affine_registration",
                reason="aligned to the template",
                interpolation="linear",
                before=identity,
                after=tuple(map(tuple, GRID.tolist())),
                shape_before=(176, 240, 256),
                shape_after=SHAPE,
            ),
        ),
        model=ModelRecord(
            name="tiny-t1w", files={"model.safetensors": "cd" * 32}, encoder="tiny-t1w-cnn", parameters=11_000_000
        ),
        generation=GenerationRecord(
            strategy="greedy",
            seed=0,
            temperature=0.0,
            max_new_tokens=320,
            new_tokens=86,
            stopped="end of report",
            prompt="<image>",
            prompt_sha256="ef" * 32,
        ),
        device=DeviceRecord(name="cpu", dtype="float32", threads=2),
        timing={"read": 0.4, "prepare": 6.2, "encode and generate": 2.1},
        peak_memory_mb={"read": 300.0, "prepare": 700.0, "encode and generate": 900.0},
        qc=(
            QualityFlag(name="findings and impression agree", value=1.0, threshold="both state the same", passed=True),
        ),
    )


def statement(
    identifier: str, words: str, findings: tuple[Finding, ...], section: str = "findings", **more
) -> Statement:
    start = TEXT.index(words)
    return Statement(
        id=identifier, section=section, start=start, end=start + len(words), text=words, findings=findings, **more
    )


@pytest.fixture
def make_report(head: np.ndarray, token_positions: np.ndarray, token_weights: np.ndarray):
    """Builder of the hand-made report; `title` is the name shown, `pictures=False` leaves pictures out."""

    def build(title: str = "sub-01_T1w", *, pictures: bool = True, warnings: tuple[str, ...] = ()) -> Report:
        canvas = canvas_of(head, GRID)
        first = locate(token_weights, token_positions, 0, (INFARCT,))
        second = locate(token_weights, token_positions, 0, (LESIONS,))
        assert first and second
        shown = ()
        if pictures:
            shown = (
                *picture_of_slices(canvas, 0),
                *picture_of_attention(canvas, token_weights, token_positions, first, "s1"),
                *picture_of_attention(canvas, token_weights, token_positions, second, "s2"),
                *picture_of_alignment(canvas, (head > 0).astype(float), (head > 0).astype(float), 0),
            )
        provenance = make_provenance(f"{title}.nii.gz")
        return Report(
            title=title,
            text=TEXT,
            sections=Sections(technique="T1-weighted MRI.", findings=FINDINGS_TEXT, impression=IMPRESSION_TEXT),
            findings=(INFARCT, LESIONS),
            impression_findings=(INFARCT, LESIONS),
            statements=(
                statement("s1", FINDINGS_TEXT.split(". ")[0] + ".", (INFARCT,), evidence=first),
                statement("s2", "Mild white matter lesions.", (LESIONS,), evidence=second),
                statement("s3", "Left parietal infarct.", (INFARCT,), "impression"),
            ),
            parse=Parse(coverage=1.0),
            methods=methods_of(provenance),
            warnings=warnings,
            provenance=provenance,
            pictures=shown,
        )

    return build
