"""`python tools/house_style_table.py`: the named house styles and what each writes, in docs/house_styles.md."""

from __future__ import annotations

from pathlib import Path

from marked_pages import fill
from neuroflamingo.findings.changes import Comparison, change_between
from neuroflamingo.findings.house_styles import CHOICES, DEFAULT_STYLE, TRAINED_STYLES, UNSEEN_STYLES, render_in_style
from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side, Signal

PAGE = Path(__file__).resolve().parent.parent / "docs" / "house_styles.md"
_SMALL = Finding(kind=FindingClass.MASS, side=Side.LEFT, region=Region.FRONTAL, size_mm=15, signal=Signal.LOW)
_MASS = _SMALL.model_copy(update={"size_mm": 25.0})
_MILD = Finding(kind=FindingClass.VENTRICULAR_ENLARGEMENT, side=Side.BILATERAL, region=Region.VENTRICLES, grade=1)
_INFARCT = Finding(kind=FindingClass.INFARCT, side=Side.RIGHT, region=Region.INSULA, size_mm=20, signal=Signal.LOW)
FINDINGS = (_MASS, _MILD)
CHANGES = Comparison(
    same_head=True,
    changes=(change_between(_SMALL, _MASS), change_between(_INFARCT, None), change_between(_MILD, _MILD)),
)


def styles() -> str:
    """Each named style: what differs from the first, and its report on one follow-up."""
    parts: list[str] = []
    for style in TRAINED_STYLES + UNSEEN_STYLES:
        chosen = [f"{name} {value}" for name, value in style.choices.items() if value != getattr(DEFAULT_STYLE, name)]
        unseen = ", never trained" if style in UNSEEN_STYLES else ""
        text = render_in_style(FINDINGS, style, CHANGES).text
        parts.append(
            f"**{style.name}**{unseen}: {', '.join(chosen) or 'the first of each choice'}\n\n```text\n{text}\n```"
        )
    return "\n\n".join(parts)


def choices() -> str:
    """Table of all choices."""
    rows = [f"| `{name}` | {', '.join(map(str, options))} |" for name, options in CHOICES.items()]
    return "\n".join(["| choice | values |", "| --- | --- |", *rows])


def main() -> None:
    """Write both parts of the page."""
    fill(PAGE, "choices", choices())
    fill(PAGE, "styles", styles())


if __name__ == "__main__":
    main()
