"""The page: nothing runs, nothing is fetched, everything is escaped, and it can be read by everybody."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest

from neuroflamingo.report.model import Report, json_schema
from neuroflamingo.report.records import BANNER
from neuroflamingo.report.render import PAGE_LIMIT, visible

HOSTILE = "<script>alert(1)</script>"
PAYLOADS = (
    HOSTILE,
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "</style><script>alert(1)</script>",
    "'; javascript:alert(1)//",
    "\u202egnp.exe\x00\x1b[31m",
)
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_page_is_one_small_file_without_scripts_or_outside_requests(make_report) -> None:
    text = make_report().to_html()
    page = Page(text)
    assert len(text.encode()) < PAGE_LIMIT
    assert not page.all("script") and not page.all("iframe") and not page.all("link") and not page.all("form")
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("style", "srcset", "action"), (tag, name)
            if name in ("src", "href"):
                assert value and value.startswith(("data:image/webp;base64,", "#")), value
    css = re.search(r"<style>(.*)</style>", text, re.DOTALL)
    assert css and "url(" not in css[1] and "@import" not in css[1]


def test_the_policy_allows_nothing_but_its_own_style_and_pictures(make_report) -> None:
    text = make_report().to_html()
    policy = next(meta["content"] for meta in Page(text).all("meta") if meta.get("http-equiv"))
    assert policy and "default-src 'none'" in policy and "unsafe" not in policy and "script-src" not in policy
    css = re.search(r"<style>(.*)</style>", text, re.DOTALL)
    assert css
    digest = base64.b64encode(hashlib.sha256(css[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_names_and_texts_are_shown_not_run(make_report, payload: str) -> None:
    report = make_report(payload, warnings=(payload,))
    model = report.provenance.model.model_copy(update={"name": payload, "files": {payload: "ab" * 32}})
    command = ("neuroflamingo", "report", payload)
    provenance = report.provenance.model_copy(update={"model": model, "command": command})
    report = report.model_copy(update={"provenance": provenance})
    page = Page(report.to_html())
    assert not page.all("script") and all(not name.startswith("on") for _, found in page.elements for name in found)
    assert " ".join(visible(payload).split()) in page.text


def test_hostile_generated_text_is_escaped(make_report) -> None:
    report = make_report()
    text = f"FINDINGS: {HOSTILE} No mass."
    sections = report.sections.model_copy(update={"findings": f"{HOSTILE} No mass.", "technique": "", "impression": ""})
    report = report.model_copy(update={"text": text, "sections": sections, "statements": ()})
    page = Page(report.to_html())
    assert not page.all("script")
    assert HOSTILE in page.text


def test_direction_and_control_characters_are_made_visible() -> None:
    assert visible("a\u202eb\x00c\nd") == "a\ufffdb\ufffdc\ufffdd"
    assert visible("Å 3 × 2 µm") == "Å 3 × 2 µm"


def test_banner_is_first_and_last(make_report) -> None:
    report = make_report()
    assert "not for diagnosis" in BANNER and "not reviewed" in BANNER
    assert Page(report.to_html()).text.count(BANNER) == 2
    assert report.to_text().startswith(BANNER)
    assert json.loads(report.to_json())["banner"] == BANNER


def test_each_finding_sentence_leads_to_its_own_pictures_and_back(make_report) -> None:
    page = Page(make_report().to_html())
    identifiers = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(identifiers) == len(set(identifiers))
    links = [attributes["href"] for attributes in page.all("a")]
    assert all(link and link[1:] in identifiers for link in links)
    said = [attributes["href"] for attributes in page.all("a") if attributes.get("class") == "said"]
    assert said == ["#look-s1", "#look-s2", "#look-s1"], "the impression leads to the pictures of the same finding"
    assert len(page.all("article")) == 2


def test_nothing_of_the_text_is_lost_on_the_page(make_report) -> None:
    report = make_report()
    shown = re.sub(r"\s+|\d", "", Page(report.to_html()).text)
    for body in (report.sections.technique, report.sections.findings, report.sections.impression):
        assert re.sub(r"\s+|\d", "", body) in shown


def test_pictures_tables_and_headings_can_be_heard(make_report) -> None:
    page = Page(make_report().to_html())
    images = page.all("img")
    assert len(images) == 18 + 2 * 3 + 3
    assert all(image["alt"] and image["width"] and image["height"] for image in images)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    identifiers = {attributes.get("id") for _, attributes in page.elements}
    labels = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert labels and set(labels) <= identifiers


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_the_contrast_of_wcag_aa() -> None:
    css = (files("neuroflamingo.report") / "templates" / "report.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(schemes) == 3, "light, dark, print"
    pairs = [(ink, paper) for ink in ("ink", "muted", "accent", "ok", "verify") for paper in ("paper", "panel")]
    pairs += [("warn-ink", "warn-paper"), ("ink", "mark"), ("accent", "mark"), ("panel", "accent")]
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        for ink, paper in pairs:
            low, high = sorted((_luminance(colours[ink]), _luminance(colours[paper])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper, scheme[:40])


def test_json_holds_to_the_published_schema_and_reads_back(make_report) -> None:
    report = make_report()
    published = json.loads((files("neuroflamingo.report") / "report.schema.json").read_text())
    assert published == json_schema(), "write report.schema.json again: python tools/report_schema.py"
    jsonschema.Draft202012Validator.check_schema(published)
    data = json.loads(report.to_json())
    jsonschema.validate(data, published)
    assert "pictures" not in data
    assert Report.model_validate(data) == report.model_copy(update={"pictures": ()})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | {"unknown": 1}, published)


def test_text_json_and_page_carry_the_same(make_report) -> None:
    report = make_report(warnings=("the field of view is small",))
    page = Page(report.to_html()).text
    for form in (report.to_text(), report.to_json(), page):
        for content in (
            "24",
            "parietal lobe",
            "the field of view is small",
            "ab" * 32,
            "resampl" * 0 + "reorientation",
        ):
            assert content in form
        assert report.methods.citations[0].text in form
        assert report.provenance.run_uuid in form


def test_a_report_without_pictures_still_makes_a_page(make_report) -> None:
    page = Page(make_report(pictures=False).to_html())
    assert not page.all("img")
    assert "parietal lobe" in page.text


def test_too_many_pictures_are_left_out_and_said_so(make_report, monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report()
    limit = int(sum(len(picture.data) for picture in report.pictures) * 1.25)
    monkeypatch.setattr("neuroflamingo.report.render.PAGE_LIMIT", limit)
    page = Page(report.to_html())
    assert 18 <= len(page.all("img")) < len(report.pictures)
    assert "pictures were left out" in page.text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser")
def test_a_browser_runs_nothing(make_report, tmp_path: Path) -> None:
    attack = "document.title='owned'"
    page = tmp_path / "page.html"
    page.write_text(make_report(f"<script>{attack}</script><img src=x onerror={attack}>").to_html())
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    title = re.search(r"<title>(.*?)</title>", run.stdout, re.DOTALL)
    assert title and "owned" not in title[1].replace(attack, "") and "NeuroFlamingo report" in title[1]
