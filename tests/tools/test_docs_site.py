"""The docs as a site: links hold there, and every name that a package offers has its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import docs_site
import neuroflamingo
import neuroflamingo.model
import neuroflamingo_encoders
import neuroflamingo_preprocessing

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    package.__name__: package
    for package in (neuroflamingo, neuroflamingo.model, neuroflamingo_encoders, neuroflamingo_preprocessing)
}


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [page for part in inner for page in pages_of(part)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation() -> None:
    nav = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    here = {path.name for path in (ROOT / "docs").glob("*.md")}
    made = {*docs_site.OUTSIDE.values(), *(f"api/{module}.md" for module, _ in docs_site.FACES.values())}
    assert len(here) > 20 and sorted(nav) == sorted(here | made)


@pytest.mark.parametrize(
    ("source", "name", "link", "there"),
    [
        ("docs/fmri.md", "fmri.md", "[a](../preprocessing/README.md#runs)", "[a](preprocessing_package.md#runs)"),
        ("encoders/README.md", "encoders_package.md", "[a](../docs/models.md)", "[a](models.md)"),
        ("CHANGELOG.md", "changes.md", "[a](docs/architecture.md)", "[a](architecture.md)"),
        ("docs/train.md", "train.md", "[the file](../configs/tiny-t1w.yaml)", "the file"),
        ("docs/train.md", "train.md", "[a](https://arxiv.org/abs/2204.14198)", "[a](https://arxiv.org/abs/2204.14198)"),
        ("docs/train.md", "train.md", "[a](#all-keys)", "[a](#all-keys)"),
        ("docs/painting.md", "painting.md", "![a](images/painting.png)", "![a](images/painting.png)"),
        ("docs/train.md", "train.md", "[a](../no/such/file.md)", "[a](../no/such/file.md)"),
    ],
)
def test_links_are_turned(source: str, name: str, link: str, there: str) -> None:
    assert docs_site.turn_links(link, source, name) == there


@pytest.mark.parametrize(("folder", "face"), docs_site.FACES.items())
def test_every_offered_name_has_its_place(folder: str, face: tuple[str, str]) -> None:
    page = docs_site.face_page(ROOT / folder, *face)
    offered = PACKAGES[face[0]].__all__
    assert offered
    assert sorted(line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")) == sorted(offered)


def test_nothing_is_asked_of_other_machines() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript", "repo_url"} & config.keys()
    assert config["validation"]["links"]["anchors"] == "warn"  # an error, since the site is built with --strict
