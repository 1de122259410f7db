"""`ReportPrompt`: the text that a model continues: examples, then the prompt of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo.report.report_words import report_words
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, ScanError, UsageError

MOST_WORDS = 2000
"""Most words of an example's report; those of radiologists have some hundred."""
WELL_UNDERSTOOD = 0.9


@dataclass(frozen=True)
class ReportPrompt:
    """Prompt of a report.

    Attributes:
        asked: the user's text with one `<image>` per scan of the report.
        examples: pairs of a scan and the words of its report, which are shown before it.
    """

    asked: str
    examples: tuple[tuple[Any, str], ...] = ()

    @property
    def text(self) -> str:
        """The whole text, examples first."""
        return "".join(f"{IMAGE}{report}{END_OF_CHUNK}" for _, report in self.examples) + self.asked

    @classmethod
    def of(cls, prompt: str | None, scans: Sequence[Any], examples: Sequence[tuple[Any, str]]) -> ReportPrompt:
        """Check a prompt against the scans of a report; None is `<image>` alone.

        Raises:
            UsageError: the numbers of `<image>` and scans differ, or an example's text is empty or has special tokens.
            ScanError: an example's report is far too long.
        """
        prompt = IMAGE if prompt is None else prompt
        if prompt.count(IMAGE) != len(scans) or not scans:
            raise UsageError(
                f"the prompt has {prompt.count(IMAGE)} {IMAGE} for {len(scans)} scans",
                expected=f"one {IMAGE} per scan, in the same order",
                seen=prompt[:200],
                hint=f"{IMAGE * max(len(scans), 1)}",
            )
        named = enumerate(examples, start=1)
        return cls(prompt, tuple((scan, example_words(text, example_name(at, scan))) for at, (scan, text) in named))

    def check_examples(self, *, force: bool) -> tuple[str, ...]:
        """Hold each example's report against the vocabulary of findings.

        Args:
            force: do not refuse, warn.

        Returns:
            Warnings about those that are understood in part, and, with `force`, about those that are not.

        Raises:
            ScanError: a report of which nothing is understood, or which neither states nor denies a finding (exit 65).
        """
        warnings = []
        for number, (scan, words) in enumerate(self.examples, start=1):
            what = f"the report of {example_name(number, scan)}"
            parsed = parse_report(words)
            if not any(sentence.findings or sentence.denied for sentence in parsed.sentences):
                foreign = bool(parsed.sentences) and parsed.coverage == 0
                error = ScanError(
                    f"{what} is not understood" if foreign else f"{what} is no report: it states and denies no finding",
                    expected="a report in English that states or denies findings, such as 'FINDINGS: No mass.'",
                    seen=words[:200],
                    hint="give another report, or --force to show it as it is",
                )
                if not force:
                    raise error
                warnings.append(error.what)
            elif parsed.coverage < WELL_UNDERSTOOD:
                warnings.append(f"{what}: {parsed.coverage:.0%} of its sentences are understood")
        return tuple(warnings)


def example_name(number: int, scan: Any) -> str:
    """What messages call an example: its number, and the name of its scan's file."""
    return f"example {number}" + (f" ({Path(scan).name})" if isinstance(scan, str | Path) else "")


def example_words(text: str, name: str) -> str:
    """The words of an example's report, taken out of a report of our own if it is one.

    Raises:
        UsageError: it is empty or has special tokens.
        ScanError: it is an HTML page, or has more than `MOST_WORDS` words (exit 65).
    """
    if text.lstrip("\ufeff \t\r\n")[:15].lower().startswith(("<!doctype html", "<html")):
        raise ScanError(
            f"the report of {name} is a page, not a text",
            expected="the text of a report, or the .txt or .json that is written beside our page",
            seen="HTML",
            hint="neuroflamingo report SCAN --format txt writes one",
        )
    words = report_words(text)
    if IMAGE in words or END_OF_CHUNK in words or not words:
        raise UsageError(
            f"the report of {name} cannot be used",
            expected=f"plain text without {IMAGE} and {END_OF_CHUNK}",
            seen=words[:100] or "an empty text",
            hint="give only the text of the report; the tokens are added",
        )
    if (count := len(words.split())) > MOST_WORDS:
        raise ScanError(
            f"the report of {name} is too long",
            expected=f"at most {MOST_WORDS:,} words",
            seen=f"{count:,} words",
            hint="give the report of one scan",
        )
    return words


@contextmanager
def naming_example(number: int, scan: Any) -> Iterator[None]:
    """Say in an error that it is about an example's scan."""
    try:
        yield
    except NeuroFlamingoError as error:
        error.what = f"the scan of {example_name(number, scan)} cannot be used: {error.what}"
        raise
