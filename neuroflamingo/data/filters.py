"""Sample filters, and the guard against subjects in both splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo_preprocessing.bids.entities import folded_label
from neuroflamingo_preprocessing.errors import ScanError

if TYPE_CHECKING:
    from neuroflamingo.data.manifest import Sample


@dataclass(frozen=True)
class Dropped:
    """Ids of dropped samples, by reason.

    Attributes:
        short: no answer has enough words.
        repeated: the same scans and text as an earlier sample.
    """

    short: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.short) + len(self.repeated)

    def as_dict(self) -> dict[str, int]:
        """Counts by reason; reasons that did not occur are omitted."""
        counts = {"short answers": len(self.short), "duplicates": len(self.repeated)}
        return {reason: count for reason, count in counts.items() if count}


def keep(
    samples: Sequence[Sample], min_answer_words: int = 0, drop_duplicates: bool = True
) -> tuple[list[Sample], Dropped]:
    """Filter training samples; returns the kept samples in order, and the dropped ones.

    Args:
        samples: samples of any kind.
        min_answer_words: drop a sample if all its answers have fewer words (for a document, the text after its first
            scan counts).
        drop_duplicates: of samples with the same scans and the same text, up to white space, keep only the first. The
            same report for other scans is not a duplicate: many heads are normal.
    """
    kept: list[Sample] = []
    short, repeated, seen = [], [], set()
    for sample in samples:
        if answer_words(sample) < min_answer_words:
            short.append(sample.id)
        elif drop_duplicates and _content(sample) in seen:
            repeated.append(sample.id)
        else:
            seen.add(_content(sample))
            kept.append(sample)
    return kept, Dropped(tuple(short), tuple(repeated))


def answer_words(sample: Sample) -> int:
    """Number of words of the longest answer, without special tokens."""
    plain = (answer.replace(IMAGE, " ").replace(END_OF_CHUNK, " ") for answer in sample.answers)
    return max(len(answer.split()) for answer in plain)


def _content(sample: Sample) -> tuple[Any, ...]:
    texts = (sample.text or "", *(turn.text for turn in sample.turns))
    return sample.kind, sample.scans, tuple(" ".join(text.split()) for text in texts)


@dataclass(frozen=True)
class Leaks:
    """Overlap of two splits.

    Attributes:
        subjects: subjects in both splits, sorted.
        shared: ids of samples of the second split that share a scan with the first, but no subject in `subjects`.
        nameless: number of samples in both splits that have scans but no subject, so that only files were compared.
    """

    subjects: tuple[str, ...]
    shared: tuple[str, ...]
    nameless: int


def find_leaks(train: Sequence[Sample], validation: Sequence[Sample]) -> Leaks:
    """Find the overlap of two splits; `sub-01` and `01` are the same subject."""
    ours = {_subject(sample): sample.subject for sample in train if sample.subject}
    common = {_subject(sample) for sample in validation if sample.subject} & ours.keys()
    scans = {name for sample in train for name in sample.scans}
    shared = [s.id for s in validation if _subject(s) not in common and not scans.isdisjoint(s.scans)]
    nameless = sum(1 for sample in (*train, *validation) if sample.scans and not sample.subject)
    return Leaks(tuple(sorted(ours[name] or "" for name in common)), tuple(shared), nameless)


def check_leaks(train: Sequence[Sample], validation: Sequence[Sample]) -> Leaks:
    """Refuse splits that share subjects or scans, since validation would then measure memorisation.

    Returns:
        The result without overlap, with the number of samples that have no subject.

    Raises:
        ScanError: names the shared subjects, and the samples that share a scan (exit 65).
    """
    leaks = find_leaks(train, validation)
    if leaks.subjects or leaks.shared:
        faults = [f"subjects in both splits: {_first(leaks.subjects)}"] if leaks.subjects else []
        faults += (
            [f"validation samples with scans from the training data: {_first(leaks.shared)}"] if leaks.shared else []
        )
        raise ScanError(
            f"training and validation data share {len(leaks.subjects) or 'no'} subjects"
            + (f" and scans of {len(leaks.shared)} more samples" if leaks.shared else ""),
            expected="each subject in one split only",
            seen="; ".join(faults),
            hint="remove all samples of these subjects from one of the splits",
        )
    return leaks


def _subject(sample: Sample) -> str:
    return folded_label("sub", sample.subject or "")


def _first(names: Sequence[str], most: int = 50) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
