"""Hooks of mkdocs: pages beside `docs/`, a page for every package that offers names, and links that hold on the site.

On the site all pages lie in one folder; in the checkout some lie beside the code that they are about. So a link such as
`../encoders/README.md` is turned into the page's name on the site, and one to a file that is no page into its text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
    "encoders/README.md": "encoders_package.md",
    "preprocessing/README.md": "preprocessing_package.md",
}
"""Pages of the checkout outside of `docs/`, and their names on the site."""
FACES = {
    "neuroflamingo": ("neuroflamingo", "What `import neuroflamingo` offers; names load on first use."),
    "neuroflamingo/model": ("neuroflamingo.model", "What OpenFlamingo is, for any encoder and language model."),
    "encoders/neuroflamingo_encoders": ("neuroflamingo_encoders", "Encoders: their cards, contract and tokens."),
    "preprocessing/neuroflamingo_preprocessing": ("neuroflamingo_preprocessing", "From scan files to tensors."),
}
OFFERED = re.compile(r"^from (\.[\w.]*) import (\w+) as \2$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in `docs/`."""
    for source, name in OUTSIDE.items():
        text = turn_links((ROOT / source).read_text(encoding="utf-8"), source, name)
        files.append(File.generated(config, name, content=text))
    for folder, (module, words) in FACES.items():
        files.append(File.generated(config, f"api/{module}.md", content=face_page(ROOT / folder, module, words)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page in `docs/`."""
    return markdown if page.file.generated_by else turn_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def turn_links(text: str, source: str, name: str) -> str:
    """The text of a page with its links as they are on the site.

    Args:
        text: Markdown.
        source: the page's path in the checkout.
        name: its path on the site.
    """

    def turned(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in OUTSIDE or path.startswith("docs/"):
            there = OUTSIDE.get(path, path.removeprefix("docs/"))
            return f"[{words}]({os.path.relpath(there, posixpath.dirname(name) or '.')}{anchor})"
        return words if (ROOT / path).is_file() else match[0]

    return LINK.sub(turned, text)


def face_page(folder: Path, module: str, words: str) -> str:
    """The page of all that a package offers, in the order of its `__init__.pyi`."""
    offered = OFFERED.findall((folder / "__init__.pyi").read_text(encoding="utf-8"))
    parts = [f"# {module}", words, "", "```python", f"from {module} import {offered[0][1]}  # and so on", "```", ""]
    for where, what in offered:
        parts += [f"## {what}", "", f"::: {module}{where}.{what}", ""]
    return "\n".join(parts)
