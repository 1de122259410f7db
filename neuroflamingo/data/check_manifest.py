"""Check of manifests before training: their contents and all errors at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroflamingo.data.filters import Dropped, Leaks, find_leaks, keep
from neuroflamingo.data.manifest import Fault, Sample, look_through


@dataclass(frozen=True)
class DataCheck:
    """Result of a manifest check.

    Attributes:
        splits: usable samples by split.
        faults: errors in other lines, of all files.
        dropped: training samples that the filters would drop.
        leaks: overlap of training and validation data; None if there is only one split.
    """

    splits: dict[str, list[Sample]]
    faults: list[Fault]
    dropped: Dropped
    leaks: Leaks | None

    @property
    def usable(self) -> bool:
        """True if training would accept the data."""
        return not (self.faults or (self.leaks and (self.leaks.subjects or self.leaks.shared)))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        leaks = self.leaks and {
            "subjects": self.leaks.subjects,
            "samples_with_shared_scans": self.leaks.shared,
            "samples_without_subject": self.leaks.nameless,
        }
        return {
            "usable": self.usable,
            "splits": {name: counts(samples) for name, samples in self.splits.items()},
            "faults": [{"file": one.file, "line": one.line, "what": one.what} for one in self.faults],
            "dropped": self.dropped.as_dict(),
            "leaks": leaks,
        }

    def lines(self) -> list[str]:
        """Lines of text for the terminal."""
        told = [f"{name}: {format_counts(counts(samples))}" for name, samples in self.splits.items()]
        told += [f"the filters drop {count}: {why}" for why, count in self.dropped.as_dict().items()]
        if self.leaks:
            told += [f"in both splits: subject {name}" for name in self.leaks.subjects]
            told += [f"in both splits: a scan of the sample {name}" for name in self.leaks.shared]
            nameless = self.leaks.nameless
            told += [f"{nameless} samples have scans and no subject: only their files were compared"] * bool(nameless)
        told += [f"fault: {one}" for one in self.faults]
        return [*told, "these data can be used" if self.usable else "these data cannot be used as they are"]


def check_data(
    train: Sequence[str | Path],
    validation: Sequence[str | Path] = (),
    *,
    check_scans: bool = True,
    min_answer_words: int = 0,
    drop_duplicates: bool = True,
) -> DataCheck:
    """Read manifests as training does, and collect everything that it would refuse or drop.

    Args:
        train, validation: manifests; ids must differ between the files of one split.
        check_scans: check that scan files exist.
        min_answer_words, drop_duplicates: filters of training samples, see `keep`.

    Raises:
        NotFoundError: a manifest does not exist (exit 66).
    """
    samples, faults = look_through(train, check_scans=check_scans)
    _, dropped = keep(samples, min_answer_words, drop_duplicates)
    if not validation:
        return DataCheck({"training": samples}, faults, dropped, None)
    others, more = look_through(validation, check_scans=check_scans)
    splits = {"training": samples, "validation": others}
    return DataCheck(splits, faults + more, dropped, find_leaks(samples, others))


def counts(samples: Sequence[Sample]) -> dict[str, Any]:
    """Number of samples, of each kind, of subjects, scans, and samples with known findings."""
    return {
        "samples": len(samples),
        "kinds": dict(Counter(sample.kind for sample in samples)),
        "subjects": len({sample.subject for sample in samples if sample.subject}),
        "scans": len({name for sample in samples for name in sample.scans}),
        "with_findings": sum(1 for sample in samples if sample.findings is not None),
    }


def format_counts(found: dict[str, Any]) -> str:
    """Format the result of `counts`."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
    return (
        f"{found['samples']} samples"
        + (f" ({kinds})" if kinds else "")
        + f", {found['scans']} scans of {found['subjects']} subjects, {found['with_findings']} with findings"
    )
