"""What manifests hold and what is wrong with them, all at once, before a training begins."""

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
    """What was found.

    Attributes:
        splits: samples that can be used, by split.
        faults: what is wrong with other lines, of all files.
        dropped: training samples that the filters would drop.
        leaks: what training and validation share; None where there is one split only.
    """

    splits: dict[str, list[Sample]]
    faults: list[Fault]
    dropped: Dropped
    leaks: Leaks | None

    @property
    def usable(self) -> bool:
        """Whether a training would take them."""
        return not (self.faults or (self.leaks and (self.leaks.subjects or self.leaks.shared)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
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
        """In words."""
        told = [f"{name}: {in_words(counts(samples))}" for name, samples in self.splits.items()]
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
    """Read manifests as a training does, and say everything that it would refuse or drop.

    Args:
        train, validation: manifests; ids must differ between the files of one split.
        check_scans: look whether the files of scans are there.
        min_answer_words, drop_duplicates: see `keep`; of training samples.

    Raises:
        NotFoundError: a manifest is not there (exit 66).
    """
    samples, faults = look_through(train, check_scans=check_scans)
    _, dropped = keep(samples, min_answer_words, drop_duplicates)
    if not validation:
        return DataCheck({"training": samples}, faults, dropped, None)
    others, more = look_through(validation, check_scans=check_scans)
    splits = {"training": samples, "validation": others}
    return DataCheck(splits, faults + more, dropped, find_leaks(samples, others))


def counts(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples, kinds, subjects, scans, and samples whose findings are known."""
    return {
        "samples": len(samples),
        "kinds": dict(Counter(sample.kind for sample in samples)),
        "subjects": len({sample.subject for sample in samples if sample.subject}),
        "scans": len({name for sample in samples for name in sample.scans}),
        "with_findings": sum(1 for sample in samples if sample.findings is not None),
    }


def in_words(found: dict[str, Any]) -> str:
    """What `counts` gives."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
    return (
        f"{found['samples']} samples"
        + (f" ({kinds})" if kinds else "")
        + f", {found['scans']} scans of {found['subjects']} subjects, {found['with_findings']} with findings"
    )
