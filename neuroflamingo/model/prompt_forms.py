"""`TrainedPrompts`: prompt forms that a model was trained for, and the check of a prompt against them (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo.settings import Section
from neuroflamingo_preprocessing.errors import ModelError

PromptForm = Literal["one scan", "few-shot", "follow-up"]


class TrainedPrompts(Section):
    """Prompt forms that a model was trained for."""

    max_examples: NonNegativeInt = 0
    """Most examples (a scan with its report) before the scan of the report."""
    max_scans: PositiveInt = 1
    """Most scans that one report is about."""
    forms: tuple[PromptForm, ...] = ("one scan",)
    """`one scan`; `few-shot`: examples, then one scan; `follow-up`: a baseline, then later scans of that head."""

    @model_validator(mode="after")
    def _forms_and_numbers(self) -> TrainedPrompts:
        if ("few-shot" in self.forms) != (self.max_examples > 0):
            raise ValueError("max_examples is above 0 where forms name few-shot, and only there")
        if ("follow-up" in self.forms) != (self.max_scans > 1):
            raise ValueError("max_scans is above 1 where forms name follow-up, and only there")
        return self

    def __str__(self) -> str:
        scans = "2" if self.max_scans == 2 else f"2 to {self.max_scans}"
        examples = "1 example" if self.max_examples == 1 else f"1 to {self.max_examples} examples"
        words = {
            "one scan": "1 scan and no example",
            "few-shot": f"1 scan after {examples}",
            "follow-up": f"{scans} scans of one head and no example",
        }
        return "; or ".join(words[form] for form in self.forms)

    def allow(self, asked: PromptShape) -> bool:
        """Whether the model was trained for prompts of this shape."""
        fits = asked.examples <= self.max_examples and asked.scans <= self.max_scans
        return asked.form is None or (asked.form in self.forms and fits)


@dataclass(frozen=True)
class PromptShape:
    """Numbers of a prompt's scans: of its examples, which end with `<|endofchunk|>`, and of the report after them."""

    examples: int
    scans: int

    @classmethod
    def of(cls, prompt: str) -> PromptShape:
        """Count the scans of a prompt; the end of a whole training text ends no example."""
        shown, _, asked = prompt.strip().removesuffix(END_OF_CHUNK).rpartition(END_OF_CHUNK)
        return cls(shown.count(IMAGE), asked.count(IMAGE))

    @property
    def form(self) -> PromptForm | Literal["few-shot follow-up"] | None:
        """Form of the prompt; None without a scan to report on."""
        if not self.scans:
            return None
        if self.examples:
            return "few-shot" if self.scans == 1 else "few-shot follow-up"
        return "one scan" if self.scans == 1 else "follow-up"

    def __str__(self) -> str:
        scans = f"{self.scans} scan{'s' * (self.scans != 1)}"
        if not self.examples:
            return f"{scans} and no example"
        return f"{scans} after {self.examples} example{'s' * (self.examples != 1)}"


def check_prompt(prompt: str, trained: TrainedPrompts | None, *, force: bool = False) -> str | None:
    """Hold a prompt against what a model was trained for.

    Args:
        prompt: the whole text, examples included.
        trained: the model's record; None: it is not known, and nothing is refused.
        force: go on with a prompt of another form.

    Returns:
        What was forced, for the top of a report; None if nothing was.

    Raises:
        ModelError: the model was not trained for such a prompt (exit 65).
    """
    asked = PromptShape.of(prompt)
    if trained is None or trained.allow(asked):
        return None
    if force:
        return f"Forced: the prompt shows the model {asked}, and it was trained for {trained} only."
    raise ModelError(
        "the model was not trained for a prompt like this: what it writes about it would be wrong in silence",
        expected=str(trained),
        seen=str(asked),
        hint="one report for each scan, without examples; a model that was trained for it (--model); or --force",
        exit_code=65,
    )
