"""What is kept of the samples, and the guard against subjects in two splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo_preprocessing.bids.entities import plain_label
from neuroflamingo_preprocessing.errors import ScanError

if TYPE_CHECKING:
    from neuroflamingo.data.manifest import Sample


@dataclass(frozen=True)
class Dropped:
    """Ids of samples that were not kept, by why.

    Attributes:
        short: no answer has enough words.
        repeated: the same scans with the same text as a sample before it.
    """

    short: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.short) + len(self.repeated)

    def as_dict(self) -> dict[str, int]:
        """How many by reason, without reasons that did not occur."""
        counts = {"short answers": len(self.short), "duplicates": len(self.repeated)}
        return {reason: count for reason, count in counts.items() if count}


def keep(
    samples: Sequence[Sample], min_answer_words: int = 0, drop_duplicates: bool = True
) -> tuple[list[Sample], Dropped]:
    """The samples worth training on, in order, and what was dropped.

    Args:
        samples: of any kinds.
        min_answer_words: a sample goes if none of its answers has so many words (of a talk the longest counts, of a
            document what follows its first scan).
        drop_duplicates: of samples with the same scans and the same text, up to white space, the first is kept. The
            same report of other scans is no duplicate: many heads are normal.
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
    """Words of the longest answer, tokens for scans and ends of chunks not counted."""
    plain = (answer.replace(IMAGE, " ").replace(END_OF_CHUNK, " ") for answer in sample.answers)
    return max(len(answer.split()) for answer in plain)


def _content(sample: Sample) -> tuple[Any, ...]:
    texts = (sample.text or "", *(turn.text for turn in sample.turns))
    return sample.kind, sample.scans, tuple(" ".join(text.split()) for text in texts)


@dataclass(frozen=True)
class Leaks:
    """What two splits share.

    Attributes:
        subjects: named in both, sorted.
        shared: ids of samples of the second split with a scan that the first has too, but no subject in `subjects`.
        nameless: samples of either split that have scans and no subject: only their scans were compared.
    """

    subjects: tuple[str, ...]
    shared: tuple[str, ...]
    nameless: int


def find_leaks(train: Sequence[Sample], validation: Sequence[Sample]) -> Leaks:
    """What two splits share; `sub-01` and `01` are the same subject."""
    ours = {_subject(sample): sample.subject for sample in train if sample.subject}
    common = {_subject(sample) for sample in validation if sample.subject} & ours.keys()
    scans = {name for sample in train for name in sample.scans}
    shared = [s.id for s in validation if _subject(s) not in common and not scans.isdisjoint(s.scans)]
    nameless = sum(1 for sample in (*train, *validation) if sample.scans and not sample.subject)
    return Leaks(tuple(sorted(ours[name] or "" for name in common)), tuple(shared), nameless)


def check_leaks(train: Sequence[Sample], validation: Sequence[Sample]) -> Leaks:
    """Refuse splits that share subjects or scans: figures of validation would be of heads that were learnt by heart.

    Returns:
        What was found: nothing but the number of samples without a subject.

    Raises:
        ScanError: names the subjects, and the samples that share a scan (exit 65).
    """
    leaks = find_leaks(train, validation)
    if leaks.subjects or leaks.shared:
        faults = [f"subjects in both: {_first(leaks.subjects)}"] if leaks.subjects else []
        faults += [f"samples of validation whose scans are trained on: {_first(leaks.shared)}"] if leaks.shared else []
        raise ScanError(
            f"training and validation data share {len(leaks.subjects) or 'no'} subjects"
            + (f" and scans of {len(leaks.shared)} more samples" if leaks.shared else ""),
            expected="each subject in one split only",
            seen="; ".join(faults),
            hint="take all samples of these subjects out of one of the two",
        )
    return leaks


def _subject(sample: Sample) -> str:
    return plain_label("sub", sample.subject or "")


def _first(names: Sequence[str], most: int = 50) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
