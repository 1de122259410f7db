"""What changed between two scans of one head: the closed vocabulary of comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, model_validator

from neuroflamingo.findings.vocabulary import Finding, mirror, report_order

SAME_MM = 3.0
"""A focal finding whose diameter differs by less counts as unchanged (painting changes it by 6 mm or more, or not)."""


class ChangeKind(StrEnum):
    """What became of a finding between the baseline and the follow-up."""

    NEW = "new"
    GONE = "gone"
    LARGER = "larger"
    SMALLER = "smaller"
    UNCHANGED = "unchanged"


_REVERSED = {
    ChangeKind.NEW: ChangeKind.GONE,
    ChangeKind.GONE: ChangeKind.NEW,
    ChangeKind.LARGER: ChangeKind.SMALLER,
    ChangeKind.SMALLER: ChangeKind.LARGER,
    ChangeKind.UNCHANGED: ChangeKind.UNCHANGED,
}


class Change(BaseModel):
    """One finding in two scans of one head.

    Focal findings are larger or smaller by their diameter, white matter lesions and ventricular enlargement by their
    grade: from none to a grade is new, from a grade to none is gone. Lobar atrophy is new or unchanged.

    Attributes:
        kind: what became of it.
        before: the finding on the baseline; None if it is new.
        after: the finding on the follow-up; None if it is gone.

    Example:
        >>> from neuroflamingo.findings.changes import Change
        >>> from neuroflamingo.findings.vocabulary import Finding
        >>> small = Finding(kind="mass", side="left", region="frontal lobe", size_mm=15)
        >>> change = Change(kind="larger", before=small, after=small.model_copy(update={"size_mm": 25.0}))
        >>> change.size_change_mm, change.reversed().kind.value
        (10.0, 'smaller')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ChangeKind
    before: Finding | None = None
    after: Finding | None = None

    @model_validator(mode="after")
    def _scans_fit_kind(self) -> Change:
        absent = (self.before is None, self.after is None)
        due = (self.kind is ChangeKind.NEW, self.kind is ChangeKind.GONE)
        if absent != due:
            raise ValueError(
                f"{self.kind}: a new finding has no 'before', one that is gone no 'after', others have both"
            )
        if self.before and self.after and self.before.kind is not self.after.kind:
            raise ValueError(f"'before' is {self.before.kind}, 'after' {self.after.kind}: a change is of one class")
        return self

    @property
    def finding(self) -> Finding:
        """The finding on the follow-up, or on the baseline if it is gone."""
        found = self.after or self.before
        assert found is not None  # the validator has seen to it
        return found

    @property
    def size_change_mm(self) -> float | None:
        """Diameter on the follow-up less that on the baseline; None unless both are stated."""
        if self.before is None or self.after is None or self.before.size_mm is None or self.after.size_mm is None:
            return None
        return self.after.size_mm - self.before.size_mm

    def reversed(self) -> Change:
        """The change if the follow-up were the baseline."""
        return Change(kind=_REVERSED[self.kind], before=self.after, after=self.before)


class Comparison(BaseModel):
    """A follow-up compared with its baseline.

    Attributes:
        same_head: whether the two scans show one person. If not, nothing is compared.
        changes: every finding of the two scans, each once; none if neither has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    same_head: bool
    changes: tuple[Change, ...] = ()

    @model_validator(mode="after")
    def _different_heads_have_no_changes(self) -> Comparison:
        if self.changes and not self.same_head:
            raise ValueError("two different heads have no changes")
        return self


def change_between(before: Finding | None, after: Finding | None) -> Change:
    """Name the change of one finding from what the two scans show of it.

    Args:
        before: the finding on the baseline, or None.
        after: the same finding on the follow-up, or None.

    Raises:
        ValueError: both are None, or their classes differ.
    """
    if before is None or after is None:
        return Change(kind=ChangeKind.NEW if before is None else ChangeKind.GONE, before=before, after=after)
    kind = ChangeKind.UNCHANGED
    if before.size_mm is not None and after.size_mm is not None:
        if abs(after.size_mm - before.size_mm) >= SAME_MM:
            kind = ChangeKind.LARGER if after.size_mm > before.size_mm else ChangeKind.SMALLER
    elif before.grade is not None and after.grade is not None and before.grade != after.grade:
        kind = ChangeKind.LARGER if after.grade > before.grade else ChangeKind.SMALLER
    return Change(kind=kind, before=before, after=after)


def mirror_changes(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Changes of the mirrored head, with left and right swapped."""
    mirrored: list[Change] = []
    for change in changes:
        before, after = (mirror([f])[0] if f else None for f in (change.before, change.after))
        mirrored.append(Change(kind=change.kind, before=before, after=after))
    return tuple(mirrored)


def reverse_changes(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Changes if the two scans were swapped."""
    return tuple(change.reversed() for change in changes)


def change_order(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Sort changes as reports state them: like their findings, and alike ones by what became of them."""
    left = sorted(changes, key=lambda change: list(ChangeKind).index(change.kind))
    ordered: list[Change] = []
    for finding in report_order([change.finding for change in left]):
        at = next(at for at, change in enumerate(left) if change.finding == finding)
        ordered.append(left.pop(at))
    return tuple(ordered)
