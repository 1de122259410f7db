"""The models of this machine: those in the package by name, and folders of the user's own. Nothing heavy here."""

from __future__ import annotations

from pathlib import Path

from neuroflamingo_preprocessing.errors import ModelError, did_you_mean

MODELS = Path(__file__).resolve().parents[1] / "pretrained"


def list_models() -> tuple[str, ...]:
    """Names of the models in the package, sorted."""
    return tuple(sorted(config.parent.name for config in MODELS.glob("*/config.json")))


def find_model(name_or_path: str | Path) -> Path:
    """The folder of an embedded model or of the user's own.

    Raises:
        ModelError: neither (exit 66); the message lists the nearest names.
    """
    names = list_models()
    if str(name_or_path) in names:
        return MODELS / str(name_or_path)
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    raise ModelError(
        f"there is no model named '{name_or_path}'",
        expected=f"one of: {', '.join(names) or '(none is embedded)'}, or a folder that save_pretrained wrote",
        seen=str(name_or_path),
        hint=did_you_mean(str(name_or_path), names, cutoff=0.4) or "check the spelling or the path",
        exit_code=66,
    )
