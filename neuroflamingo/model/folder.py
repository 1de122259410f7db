"""Safety check of a model folder before anything is loaded: it holds data only; and the card of its encoder."""

from __future__ import annotations

from pathlib import Path

from neuroflamingo.model.tokens import ENCODER_CARD
from neuroflamingo.settings import refuse_remote_code_in
from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".joblib")


DONE = "training.json"
"""In the folder of a model that a training made: how far the training went."""


def model_name(folder: Path) -> str:
    """What reports call a model: its folder's name; of a finished training, whose folder is `model`, its run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" and (folder / DONE).is_file() else folder.name


def check_folder(path: str | Path) -> Path:
    """Check that a model folder holds data only.

    Raises:
        NotFoundError, ModelError, ConfigError: see `from_pretrained`.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise NotFoundError(
            f"there is no model in {folder}",
            expected="a folder with config.json and safetensors",
            seen="no such folder" if not folder.is_dir() else "no config.json in it",
            hint="pass a folder that save_pretrained wrote, or the name of an embedded model",
        )
    for file in sorted(folder.rglob("*")):
        if file.suffix in PICKLES:
            raise ModelError(
                f"{file.name} in {folder} may be a pickle",
                expected="weights in safetensors only",
                seen=file.suffix,
                hint="convert it first, or move it out of the folder",
                exit_code=65,
            )
        if file.suffix == ".json" and file.parent == folder:
            refuse_remote_code_in(file)
    return folder


def read_card(folder: Path) -> EncoderCard | None:
    """The card of a model's encoder; None if the model has no encoder."""
    file = folder / ENCODER_CARD
    return EncoderCard.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None
