"""`write_encoder_project`: write the project of a new encoder, which installs and passes the checks as it is."""

from __future__ import annotations

import keyword
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from string import Template

from neuroflamingo_encoders.registry import list_encoders
from neuroflamingo_preprocessing.drafts import draft_folder
from neuroflamingo_preprocessing.errors import OutputError, UsageError, not_created
from neuroflamingo_preprocessing.files import check_writable, fsync_tree, write_text_atomic

TEMPLATES = Path(__file__).resolve().parent / "templates" / "encoder"
FILES = {
    "pyproject.toml.template": "pyproject.toml",
    "README.md.template": "README.md",
    "encoder.py.template": "{module}.py",
    "test_encoder.py.template": "test_{module}.py",
}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 50


def write_encoder_project(name: str, folder: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a project with one encoder, atomically.

    Args:
        name: name of the encoder and its package; the module has underscores instead of hyphens.
        folder: folder of the project; None: `name` in the working directory.
        overwrite: replace the project's files in an existing folder; other files there stay.

    Returns:
        The folder.

    Raises:
        UsageError: a name that cannot be a package, or is taken.
        OutputError: the folder exists, or cannot be written (exit 73).
    """
    module, target = check_name(name), Path(folder if folder is not None else name)
    title = "".join(part.title() for part in name.split("-"))
    words = {"name": name, "module": module, "encoder": f"{title.removesuffix('Encoder')}Encoder"}
    files = {
        file.format(module=module): Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(words)
        for template, file in FILES.items()
    }
    if target.is_dir() and any(target.iterdir()):
        return _replace(target, files, overwrite)
    return _create(target, files)


def check_name(name: str) -> str:
    """Check the name of an encoder, and give the name of its module.

    Raises:
        UsageError: the name cannot be used.
    """
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise UsageError(
            f"'{name}' cannot be the name of an encoder",
            expected=f"lower-case letters and digits, words joined by -, a letter first, at most {LONGEST} characters",
            seen=name,
            hint=f"try {_repaired(name)}",
        )
    module = name.replace("-", "_")
    taken = _who_has(name, module)
    if taken:
        raise UsageError(
            f"the name '{name}' is taken", expected="an unused name", seen=taken, hint=f"try {name}-encoder"
        )
    return module


def _repaired(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", name.lower())
    text = "-".join(words)[:LONGEST].strip("-")
    return text if NAME.fullmatch(text) else "my-encoder"


def _who_has(name: str, module: str) -> str:
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        return f"'{module}' is a Python keyword"
    if module in sys.stdlib_module_names:
        return f"'{module}' is a module of the standard library"
    if name in list_encoders():
        return "an installed encoder"
    return f"an installed module '{module}'" if find_spec(module) is not None else ""


def _replace(target: Path, files: dict[str, str], overwrite: bool) -> Path:
    if not overwrite:
        raise OutputError(
            f"the folder {target} exists",
            expected="no folder of this name, or an empty one",
            seen=f"{sum(1 for _ in target.iterdir())} files in it",
            hint="pass --overwrite, or another -o",
        )
    for file in files:
        check_writable(target / file, overwrite=True)
    for file, text in files.items():
        write_text_atomic(target / file, text, overwrite=True)
    return target


def _create(target: Path, files: dict[str, str]) -> Path:
    """Write the project beside the target, then rename it, so that no partial project has the final name."""
    try:
        if target.exists() and not target.is_dir():
            raise OutputError(f"{target} cannot be a folder", expected="no file of this name", hint="choose another -o")
        with draft_folder(target.absolute()) as beside:
            for file, text in files.items():
                write_text_atomic(beside / file, text)
            fsync_tree(beside)
            if target.is_dir():
                target.rmdir()  # empty, as checked before
            os.rename(beside, target)
    except OSError as error:
        raise not_created(target, error) from error
    return target
