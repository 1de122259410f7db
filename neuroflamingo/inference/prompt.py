"""`ReportPrompt`: the text that a model continues: examples, then the prompt of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo_preprocessing.errors import UsageError


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
        """
        prompt = IMAGE if prompt is None else prompt
        if prompt.count(IMAGE) != len(scans) or not scans:
            raise UsageError(
                f"the prompt has {prompt.count(IMAGE)} {IMAGE} for {len(scans)} scans",
                expected=f"one {IMAGE} per scan, in the same order",
                seen=prompt[:200],
                hint=f"{IMAGE * max(len(scans), 1)}",
            )
        for _, report in examples:
            if IMAGE in report or END_OF_CHUNK in report or not report.strip():
                raise UsageError(
                    "an example's report cannot be used",
                    expected=f"plain text without {IMAGE} and {END_OF_CHUNK}",
                    seen=report[:100] or "an empty text",
                    hint="give only the text of the report; the tokens are added",
                )
        return cls(prompt, tuple((scan, report.strip()) for scan, report in examples))
