"""SECURITY.md: every promise names tests that exist, and those that no other file holds are here."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neuroflamingo import load
from neuroflamingo_encoders import build_encoder
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from tests.tiny import WIDTH, tiny_model

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    ROOT / "neuroflamingo",
    ROOT / "encoders/neuroflamingo_encoders",
    ROOT / "preprocessing/neuroflamingo_preprocessing",
)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "SECURITY.md").read_text().partition("| --- | --- |\n")[2].partition("\n\n")[0].splitlines()
]
PLANT = "import pathlib; pathlib.Path({sentinel!r}).write_text('ran')\n"


def modules() -> dict[str, ast.Module]:
    paths = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


@pytest.mark.parametrize("promise", ROWS, ids=lambda row: row[0][:50])
def test_every_promise_names_tests_that_exist(promise: list[str]) -> None:
    sentence, tests = promise
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert sentence.endswith(".") and named and len(named) == tests.count("`") // 2
    for file, name in named:
        functions = {
            node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)
        }
        assert name in functions and name.startswith("test_"), (file, name)


def test_the_promises_were_found() -> None:
    assert len(ROWS) >= 18 and all(len(row) == 2 for row in ROWS)


def test_a_folder_full_of_code_runs_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules under every name that a library might look for, none of which is imported."""
    folder, sentinel = tmp_path / "model", tmp_path / "ran"
    model, processor = tiny_model(encoder=build_encoder("precomputed", width=WIDTH))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    names = (
        "__init__ modeling configuration_llama modeling_neuroflamingo tokenization_llama setup conftest sitecustomize"
    )
    names += " generate custom_generate processing model tokenizer neuroflamingo encoder evil"
    for name in names.split():
        (folder / f"{name}.py").write_text(PLANT.format(sentinel=str(sentinel)))
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    monkeypatch.chdir(folder)
    loaded, its_processor = load(folder, device="cpu")
    import torch

    loaded.generate(**its_processor("<image> w1", scans=[[torch.zeros(7, WIDTH)]]), max_new_tokens=2)
    for file in ("config.json", "tokenizer_config.json", "generation_config.json"):
        plain = json.loads((folder / file).read_text())
        for key in ("auto_map", "custom_generate", "trust_remote_code", "custom_pipelines"):
            (folder / file).write_text(json.dumps(plain | {key: {"AutoModel": "evil.Evil"}}))
            with pytest.raises(NeuroFlamingoError):
                load(folder, device="cpu")
        (folder / file).write_text(json.dumps(plain))
    assert not sentinel.exists()


def test_no_module_hands_on_trust_remote_code() -> None:
    """Neither as a keyword of a call, nor as a key of a dictionary that becomes one."""
    for name, tree in modules().items():
        keywords = [node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)]
        keys = [
            key.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Dict)
            for key in node.keys
            if isinstance(key, ast.Constant)
        ]
        assert "trust_remote_code" not in keywords + keys, name


def test_one_module_opens_pickles() -> None:
    opener = "encoders/neuroflamingo_encoders/weights/unpickle.py"
    for name, tree in modules().items():
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        loads = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr == "load"
            and isinstance(node.value, ast.Name)
            and node.value.id in ("torch", "pickle", "joblib", "dill", "cloudpickle")
        ]
        allowed = [
            keyword.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            for keyword in node.keywords
            if keyword.arg == "allow_pickle" and isinstance(keyword.value, ast.Constant)
        ]
        assert not any(allowed), name
        if name != opener:
            assert not loads and not imported & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}, name


NETWORK = {
    "http",
    "urllib.request",
    "requests",
    "httpx",
    "aiohttp",
    "ftplib",
    "smtplib",
    "huggingface_hub",
    "distributed",
}
REACH = {  # module to what names it
    "encoders/neuroflamingo_encoders/weights/http_download.py": "models fetch",
    "encoders/neuroflamingo_encoders/weights/hub.py": "models fetch",
    "neuroflamingo/recipe/sources.py": "--allow-download",
    "preprocessing/neuroflamingo_preprocessing/stores/dask_cluster.py": "--scheduler",
}


def test_what_can_reach_a_network() -> None:
    found = set()
    for name, tree in modules().items():
        for node in ast.walk(tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(one == known or one.startswith(f"{known}.") for one in imported for known in NETWORK):
                found.add(name)
    assert found == set(REACH)
    page = (ROOT / "SECURITY.md").read_text()
    assert all(words in page for words in REACH.values())


def test_an_installed_plug_in_that_nobody_asks_for_does_not_run(tmp_path: Path) -> None:
    """A real distribution with an entry point, in a process of its own; asked for by its name, it does run."""
    sentinel, site = tmp_path / "ran", tmp_path / "site"
    (site / "evil_plug_in-1.0.dist-info").mkdir(parents=True)
    (site / "evil_plug_in-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: evil-plug-in\nVersion: 1.0\n"
    )
    (site / "evil_plug_in-1.0.dist-info" / "entry_points.txt").write_text(
        "[neuroflamingo.encoders]\nevil-encoder = evil_plug_in:CARD\n"
    )
    (site / "evil_plug_in.py").write_text(PLANT.format(sentinel=str(sentinel)) + "raise ImportError('evil')\n")
    words = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from neuroflamingo.cli import main\n"
        "assert 'evil-encoder' in __import__('neuroflamingo_encoders').list_encoders()\n"
        "assert main(['encoders', 'card', 'precomputed']) == 0 and main(['inspect', 'tiny-t1w']) == 0\n"
        "import neuroflamingo; neuroflamingo.load('tiny-t1w', device='cpu')\n"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert not sentinel.exists()
    asks = words + "assert main(['encoders', 'card', 'evil-encoder']) != 0\n"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and sentinel.exists(), done.stderr
