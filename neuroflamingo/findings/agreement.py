"""Agreement of a report with itself, and with the report on the mirrored head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from neuroflamingo.findings.phrases import GRADES
from neuroflamingo.findings.vocabulary import MIRRORED, Finding, FindingClass, mirror

if TYPE_CHECKING:
    from neuroflamingo.findings.parsing import ParsedReport

SAME_SIZE_MM = 0.5


@dataclass(frozen=True)
class Disagreement:
    """One point on which a report disagrees with itself.

    Attributes:
        words: for a reader.
        findings, impression: the findings concerned, by their place in `ParsedReport.findings` and `.impression`.
    """

    words: str
    findings: tuple[int, ...] = ()
    impression: tuple[int, ...] = ()


def disagreements(parsed: ParsedReport) -> tuple[Disagreement, ...]:
    """Compare FINDINGS with IMPRESSION in class, number, side, region, size, grade and signal.

    What one of the two leaves unsaid is no disagreement, but a whole finding is.
    """
    found: list[Disagreement] = []
    two = parsed.has_impression and any(sentence.section == "findings" for sentence in parsed.sentences)
    for kind in FindingClass:
        stated = tuple(at for at, finding in enumerate(parsed.findings) if finding.kind is kind)
        repeated = tuple(at for at, finding in enumerate(parsed.impression) if finding.kind is kind) if two else ()
        if stated and kind in parsed.denied:
            found.append(Disagreement(f"{kind} both stated and denied", stated))
        if two and stated and not repeated:
            found.append(Disagreement(f"{kind} in FINDINGS but not in IMPRESSION", stated))
        elif repeated and not stated:
            found.append(Disagreement(f"{kind} in IMPRESSION but not in FINDINGS", (), repeated))
        elif two and stated:
            found += _of_class(parsed, kind, stated, repeated)
        if repeated and kind in parsed.impression_denied:
            found.append(Disagreement(f"{kind} both stated and denied in IMPRESSION", (), repeated))
    return tuple(found)


def _of_class(
    parsed: ParsedReport, kind: FindingClass, stated: tuple[int, ...], repeated: tuple[int, ...]
) -> list[Disagreement]:
    """Disagreements about the findings of a class that both sections state."""
    found: list[Disagreement] = []
    if len(stated) != len(repeated):
        found.append(
            Disagreement(f"{kind}: {len(stated)} in FINDINGS, {len(repeated)} in IMPRESSION", stated, repeated)
        )

    def differing(a: int, b: int) -> tuple[str, str] | None:
        return _differing(parsed.findings[stated[a]], parsed.impression[repeated[b]])

    for a, b in _pairs(len(stated), len(repeated), (lambda a, b: differing(a, b) is None, lambda a, b: True)):
        if words := differing(a, b):
            says = f"{kind}: FINDINGS says {words[0]}, IMPRESSION {words[1]}"
            found.append(Disagreement(says, (stated[a],), (repeated[b],)))
    return found


def _pairs(count: int, others: int, tests: Sequence[Callable[[int, int], bool]]) -> list[tuple[int, int]]:
    """One-to-one pairs by the first test, then of what is left by the next."""
    pairs: list[tuple[int, int]] = []
    for test in tests:
        for a in range(count):
            taken, used = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
            free = [b for b in range(others) if a not in taken and b not in used and test(a, b)]
            pairs += [(a, free[0])] if free else []
    return sorted(pairs)


def _differing(one: Finding, other: Finding) -> tuple[str, str] | None:
    """Words of the attributes that both state otherwise; None if there are none."""
    first: list[str] = []
    second: list[str] = []
    for name in ("side", "region", "size_mm", "grade", "signal"):
        a, b = getattr(one, name), getattr(other, name)
        same = abs(a - b) <= SAME_SIZE_MM if name == "size_mm" and a and b else a == b
        if a is not None and b is not None and not same:
            first.append(_word(name, a))
            second.append(_word(name, b))
    return (", ".join(first), ", ".join(second)) if first else None


def _word(name: str, value: object) -> str:
    if name == "size_mm":
        return f"{value:g} mm"
    return GRADES[int(str(value))][0] if name == "grade" else f"{value} signal" if name == "signal" else str(value)


class MirrorVerdict(StrEnum):
    """What becomes of a finding on one side when the head is mirrored."""

    SWAPS = "swaps"  # it is stated on the other side, as it must be
    STAYS = "stays"  # its class is stated, but not on the other side: the side is uncertain
    ABSENT = "absent"  # its class is not stated again


def mirror_verdicts(findings: Sequence[Finding], mirrored: Sequence[Finding]) -> tuple[MirrorVerdict | None, ...]:
    """What the report on the mirrored head says of each finding; None for those without a left or right.

    Args:
        findings: of the report on the head.
        mirrored: of the report on the mirrored head, as it states them.
    """
    back = mirror(mirrored)
    sided = [at for at, finding in enumerate(findings) if finding.side is not None and finding.side in MIRRORED]

    def of(a: int, b: int) -> tuple[Finding, Finding]:
        return findings[sided[a]], back[b]

    def same_class(a: int, b: int) -> bool:
        one, other = of(a, b)
        return one.kind is other.kind

    def same_side(a: int, b: int) -> bool:
        one, other = of(a, b)
        return same_class(a, b) and one.side is other.side

    def same_place(a: int, b: int) -> bool:
        one, other = of(a, b)
        return same_side(a, b) and one.region is other.region

    verdicts: list[MirrorVerdict | None] = [None] * len(findings)
    for at in sided:
        verdicts[at] = MirrorVerdict.ABSENT
    for a, b in _pairs(len(sided), len(back), (same_place, same_side, same_class)):
        verdicts[sided[a]] = MirrorVerdict.SWAPS if same_side(a, b) else MirrorVerdict.STAYS
    return tuple(verdicts)
