"""Sources of a recipe's models and data: a local folder, or a hub if downloads are allowed.

Files in the hub's cache are used without network access. Only data are downloaded: weights as safetensors, never
pickles, and never code.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from neuroflamingo_preprocessing.cache_home import VARIABLE, home_folder
from neuroflamingo_preprocessing.errors import ConfigError, ModelError, NotFoundError

DATASETS = "hf://datasets/"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.txt")
NO_DATA = ("*.py", "*.pyc", "*.so", "*.sh", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def local_folder(
    source: str,
    revision: str | None = None,
    allow_download: bool = False,
    *,
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """Find the local folder of a model or dataset, downloading it if allowed.

    Args:
        source: a folder, `OWNER/NAME` of a model on a hub, or `hf://datasets/OWNER/NAME[@REVISION]`.
        revision: commit, tag or branch on the hub; None: the newest.
        allow_download: whether missing files may be downloaded.
        kind: kind of `OWNER/NAME`.

    Raises:
        NotFoundError: neither a folder nor a valid name on a hub (exit 66).
        ModelError: missing and not allowed to be downloaded, or not provided by the hub (exit 69).
    """
    if source.startswith(DATASETS):
        source, _, asked = source.removeprefix(DATASETS).partition("@")
        revision, kind = asked or revision, "dataset"
    elif Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if not _HUB_NAME.fullmatch(source):
        raise NotFoundError(
            f"there is no folder {source}",
            expected="a folder, or a hub's OWNER/NAME" if kind == "model" else f"a folder, or {DATASETS}OWNER/NAME",
            hint="check the path; it is relative to the working directory",
        )
    if not allow_download:
        return _snapshot(source, revision, kind, offline=True)
    _check_network(source)
    return _snapshot(source, revision, kind, offline=False)


def _check_network(source: str) -> None:
    switched_off = next((v for v in OFFLINE if os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE")), None)
    if switched_off:
        raise ModelError(
            f"{source} is not fetched: the network is switched off",
            expected="a folder on this machine, or a network",
            seen=f"{switched_off} is set",
            hint=f"unset {switched_off}, or give the folder where it lies",
        )


def planned_folder(
    source: str,
    revision: str | None = None,
    allow_download: bool = False,
    *,
    kind: Literal["model", "dataset"] = "model",
) -> Path | None:
    """What `local_folder` would give, without any download; None: it would be downloaded.

    Raises:
        NotFoundError, ModelError: as `local_folder` would before it connects.
    """
    try:
        return local_folder(source, revision, kind=kind)
    except ModelError:
        if not allow_download:
            raise
    _check_network(source)
    return None


def refuse_pickles(folder: Path) -> None:
    """Refuse a language model folder without safetensors.

    Raises:
        ModelError: it has only weights of another kind, or none (exit 65).
    """
    if next(folder.glob("*.safetensors"), None) is None:
        others = sorted(file.name for ending in ("*.bin", "*.pt", "*.pth") for file in folder.glob(ending))
        raise ModelError(
            f"{folder} holds no weights that can be read",
            expected="safetensors (pickles are never loaded)",
            seen=", ".join(others[:3]) or "no weights",
            hint="use a revision with safetensors, or convert them: neuroflamingo models convert",
            exit_code=65,
        )


def _snapshot(name: str, revision: str | None, kind: str, *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            cache_dir=home_folder() / "hub" if os.environ.get(VARIABLE) else None,
            allow_patterns=list(MODEL_FILES) if kind == "model" else None,
            ignore_patterns=list(NO_DATA),
            local_files_only=offline,
        )
    except HFValidationError as error:
        raise ConfigError(f"{name} is not a valid repository name", seen=str(error)) from error
    except LocalEntryNotFoundError as error:
        if not offline:
            raise _refused(name, error) from error
        raise ModelError(
            f"{name} is not on this machine",
            expected="a folder, or an earlier download in the cache",
            seen="neither; downloads must be allowed",
            hint="--allow-download, or give the folder where it lies",
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise _refused(name, error) from error
    return Path(folder)


def _refused(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name} cannot be fetched",
        expected="a connection, and a repository that is open to you",
        seen=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        hint="check the name and the revision; for gated ones accept the terms and set HF_TOKEN",
    )
