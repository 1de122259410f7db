"""The page of scores: worst first, any order without scripts, nothing of a report runs or is fetched."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from neuroflamingo.evaluation.report_texts import NamedText
from neuroflamingo.evaluation.score_page import ORDERS, score_page, worst
from neuroflamingo.evaluation.text_scores import TextScores, score_texts
from tests.neuroflamingo.evaluation.test_edited_reports import NORMAL
from tests.neuroflamingo.report.test_report_page import PAYLOADS, Page

LEFT = "FINDINGS: Mass in the left frontal lobe, 20 mm."
REFERENCES = {name: NamedText(name, LEFT) for name in ("right", "opposite", "missing", "more")}
TEXTS = {
    "right": NamedText("right", LEFT),
    "opposite": NamedText("opposite", LEFT.replace("left", "right")),
    "missing": NamedText("missing", NORMAL),
    "more": NamedText("more", f"{LEFT} Infarct in the right thalamus. Umph."),
}


def page_of(references: dict[str, NamedText], texts: dict[str, NamedText], **options: object) -> str:
    scores = scores_of(references, texts)
    return score_page(scores, references, texts, title="p.jsonl", **options)  # type: ignore[arg-type]


def scores_of(references: dict[str, NamedText], texts: dict[str, NamedText]) -> TextScores:
    return score_texts(references, texts.values(), resamples=100)


def places(page: str, order: str) -> list[str]:
    """Ids of the cases in the order of a button."""
    names = re.findall(r'<summary class="case"><b>(.*?)</b>', page)
    ranks = {int(at): int(place) for at, place in re.findall(rf"#c(\d+) {{[^}}]*--{order}: (\d+);", page)}
    return [names[at] for at in sorted(ranks, key=ranks.__getitem__)]


def test_worst_first_and_any_other_order() -> None:
    page = page_of(REFERENCES, TEXTS)
    assert [pair.id for pair in worst(scores_of(REFERENCES, TEXTS))] == ["missing", "more", "opposite", "right"]
    assert places(page, "detail_f1") == ["missing", "more", "opposite", "right"]
    assert places(page, "wrong_side")[0] == "opposite" and places(page, "invented")[0] == "more"
    assert places(page, "omitted")[0] == "missing" and places(page, "id") == sorted(TEXTS)
    for name in ORDERS:
        assert f'id="by-{name}"' in page and f"main:has(#by-{name}:checked) .one {{ order: var(--{name}); }}" in page


def test_errors_are_marked_and_what_was_not_read_is_not() -> None:
    page = page_of(REFERENCES, TEXTS)
    assert '<span class="wrong">right frontal lobe mass 20 mm</span>' in page
    assert '<span class="wrong">right thalamus chronic infarct</span>' in page
    assert '<span class="said">Infarct in the right thalamus.</span> Umph.' in page


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_of_a_report_runs(payload: str) -> None:
    references = {payload: NamedText(payload, f"{LEFT} {payload}", person=payload)}
    text = page_of(references, {payload: NamedText(payload, f"{payload} {LEFT}")})
    page = Page(text)
    assert not page.all("script") and not page.all("img") and not page.all("link") and not page.all("form")
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("style", "src", "action") for name in attributes)
        assert not attributes.get("href") or str(attributes["href"]).startswith("#")
    assert not set(text) & set("\x00\x1b\u202e")
    policy = next(str(meta["content"]) for meta in page.all("meta") if meta.get("http-equiv"))
    css = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert css and payload not in css[1] and "default-src 'none'" in policy and "script-src" not in policy
    assert f"style-src 'sha256-{base64.b64encode(hashlib.sha256(css[1].encode()).digest()).decode()}'" in policy


def test_many_and_long_texts_make_no_endless_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroflamingo.evaluation.score_page.MAX_PAGE", 100_000)
    references = {str(at): NamedText(str(at), LEFT + " No mass." * 800) for at in range(10)}
    page = score_page(
        score_texts(references, references.values(), words=False, resamples=100), references, references, title="p"
    )
    assert len(page) < 400_000 and "7 of 10 cases, the worst by detail F1" in page and "more characters" in page


def test_two_systems_side_by_side() -> None:
    page = page_of(REFERENCES, TEXTS, other=scores_of(REFERENCES, REFERENCES))
    assert ">difference</th>" in page and '<td class="num">-0.' in page
