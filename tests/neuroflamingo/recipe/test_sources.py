"""Where models and data lie: a folder, the hub's cache, or a hub that is only asked when that is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroflamingo.recipe.sources import local_folder
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, in which the hub's cache lies."""
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub"


def put(cache: Path, kind: str, name: str, commit: str = "c" * 40, revision: str = "main") -> Path:
    """A repository as an earlier download left it."""
    base = cache / f"{kind}--{name.replace('/', '--')}"
    folder = base / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (base / "refs").mkdir()
    (base / "refs" / revision).write_text(commit)
    return folder


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path)) == tmp_path


def test_what_an_earlier_download_left_is_used_without_a_network(cache: Path) -> None:
    folder = put(cache, "models", "owner/model")
    assert local_folder("owner/model") == folder
    data = put(cache, "datasets", "owner/scans", commit="d" * 40, revision="v2")
    assert local_folder("hf://datasets/owner/scans@v2") == data


@pytest.mark.parametrize("source", ["owner/model", "hf://datasets/owner/scans", "hf://datasets/owner/scans@v1"])
def test_nothing_is_fetched_unasked(cache: Path, source: str) -> None:
    with pytest.raises(ModelError, match="not on this machine") as caught:
        local_folder(source)
    assert caught.value.exit_code == 69 and "--allow-download" in str(caught.value.hint)
    assert not cache.exists() or not any(cache.rglob("*.json"))


def test_a_network_that_is_switched_off_stays_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="switched off") as caught:
        local_folder("owner/model", allow_download=True)
    assert caught.value.exit_code == 69


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere", "hf://datasets/one", "a/b/c"])
def test_neither_a_folder_nor_a_hubs_name(source: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        local_folder(source, allow_download=True)
    assert caught.value.exit_code == 66


def test_only_data_are_asked_for(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call to the hub, which tests cannot reach: safetensors and texts for models, no pickles, no code."""
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.update(how) or str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert local_folder("owner/model", "abc", allow_download=True) == tmp_path
    assert asked["revision"] == "abc" and asked["local_files_only"] is False and asked["cache_dir"] == cache
    assert "*.safetensors" in asked["allow_patterns"] and "*.bin" not in asked["allow_patterns"]
    assert {"*.py", "*.bin", "*.pt", "*.pkl"} <= set(asked["ignore_patterns"])
    local_folder("hf://datasets/owner/scans@v2", allow_download=True)
    assert asked["repo_type"] == "dataset" and asked["revision"] == "v2" and "*.py" in asked["ignore_patterns"]
