"""Prepared scans that are kept: taken again only if everything that made them is the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroflamingo.evaluation import kept_scans
from neuroflamingo.evaluation.kept_scans import KeptScans, prepared
from neuroflamingo.evaluation.painted_cases import PaintedScan, encode_scans
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.families.tiny_t1w.cards import CARD
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.preparation import prepare_many
from neuroflamingo_preprocessing.scan import Scan

SPEC = CARD.scan


@dataclass(frozen=True)
class Broken:
    """A scan that cannot be prepared."""

    seed: int

    def __call__(self) -> Scan:
        return Scan(np.zeros((40, 40, 40), np.float32), np.diag([5.0, 5, 5, 1]), "T1w")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Sources that were prepared rather than read."""
    made: list[Any] = []

    def counting(sources: Any, spec: Any, processes: int = 1) -> Any:
        made.extend(sources)
        return prepare_many(sources, spec, processes)

    monkeypatch.setattr(kept_scans, "prepare_many", counting)
    return made


def test_a_second_evaluation_takes_what_the_first_one_kept(tmp_path: Path, counted: list[Any]) -> None:
    scans: list[Any] = [PaintedScan(4_000_001, "icbm2009a"), Broken(1), PaintedScan(4_000_002, "icbm2009a")]
    encoder = build_encoder(CARD.name)
    first = encode_scans(scans[:2], encoder, processes=1, keep=tmp_path)
    assert counted == scans[:2] and len(list(tmp_path.iterdir())) == 2
    both = encode_scans(scans, encoder, processes=1, keep=tmp_path)
    assert counted == scans and both.failed == first.failed == {1: first.failed[1]} and "no brain" in both.failed[1]
    for one, other in ((both.plain[:1], first.plain), (both.mirrored[:1], first.mirrored)):
        assert np.allclose(one, other, atol=1e-4)  # batches of other sizes are rounded otherwise
    path = KeptScans(tmp_path, SPEC).path(scans[0])
    path.write_bytes(path.read_bytes()[:1000])  # half a file is made again
    again = encode_scans(scans, encoder, processes=1, keep=tmp_path)
    assert counted == [*scans, scans[0]] and np.array_equal(again.plain, both.plain)
    assert len(list(prepared([Broken(7)], SPEC, 1, None))) == 1 and counted[-1] == Broken(7)


def test_what_made_a_scan_decides_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, copy, other = (tmp_path / name for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"))
    for path, content in ((head, b"one"), (copy, b"one"), (other, b"other")):
        path.write_bytes(content)
    kept = KeptScans(tmp_path / "kept", SPEC)
    at = kept.path(PaintedScan(1, str(head)))
    assert at == kept.path(PaintedScan(1, str(copy)))  # the content of a file counts, not its name
    others = [PaintedScan(1, str(other)), PaintedScan(2, str(head)), PaintedScan(1, str(head), str(other))]
    assert at not in {kept.path(one) for one in others}
    assert at != KeptScans(tmp_path / "kept", SPEC.model_copy(update={"steps": ()})).path(PaintedScan(1, str(head)))
    monkeypatch.setattr(kept_scans, "code_digest", lambda: "other code")
    assert at != KeptScans(tmp_path / "kept", SPEC).path(PaintedScan(1, str(head)))


def test_the_error_of_a_kept_scan_is_kept(tmp_path: Path) -> None:
    kept = KeptScans(tmp_path, SPEC)
    assert kept.read(Broken(1)) is None
    kept.write(Broken(1), ScanError("no brain \u2014 at all"))
    found = kept.read(Broken(1))
    assert isinstance(found, ScanError) and found.what == "no brain \u2014 at all"
