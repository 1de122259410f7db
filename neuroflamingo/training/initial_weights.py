"""Initial weights of a training run: a model folder, a checkpoint of another run, or a published file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuroflamingo.checkpoints.local_models import find_model, list_models
from neuroflamingo.checkpoints.multimodal_gpt import input_first_names, lora_part, merged, pair_updates
from neuroflamingo.checkpoints.openflamingo import LoadReport, load_openflamingo
from neuroflamingo.checkpoints.openflamingo_names import listing, plain_name
from neuroflamingo_encoders.state_dict_fit import not_safetensors
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, did_you_mean
from neuroflamingo_preprocessing.files import load_json

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo

RUN_WEIGHTS, RUN_STATE = "weights.safetensors", "state.json"  # of a checkpoint of a run


def start_from(model: NeuroFlamingo, start: str | Path, *, outline: bool = False) -> LoadReport:
    """Load initial weights strictly: every tensor must fit.

    LoRA adapters are merged into their matrices, so they need the language model with which they were trained.

    Args:
        model: changed in place; must not have adapters yet.
        start: a folder with `model*.safetensors`, a checkpoint of a run (its trained parameters replace those of the
            model), a safetensors file in any layout that `load_openflamingo` reads, or the name of an embedded model.
        outline: the model may be without memory: only names and shapes are compared there.

    Raises:
        NotFoundError: no such file or folder.
        ModelError: a pickle, or tensors that do not fit (exit 65).
    """
    files = start_files(start)
    if files[0].name == RUN_WEIGHTS and (files[0].parent / RUN_STATE).is_file():
        return _load_run(model, files[0].parent)
    tensors: dict[str, Any] = {}
    for file in files:
        tensors |= _read(file)
    return load_openflamingo(model, tensors, outline=outline)


def start_files(start: str | Path) -> list[Path]:
    """Find the files of initial weights; see `start_from`.

    Raises:
        NotFoundError: no such file, folder or embedded model, or a folder without weights.
    """
    path = find_model(start) if str(start) in list_models() else Path(start).expanduser()
    if (path / RUN_STATE).is_file() and (path / RUN_WEIGHTS).is_file():
        return [path / RUN_WEIGHTS]
    files = sorted(path.glob("model*.safetensors")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise NotFoundError(
            f"there are no weights to start from in {path}",
            expected="a safetensors file, a folder with model.safetensors, a checkpoint of a run, or the name of an "
            f"embedded model ({', '.join(list_models())})",
            seen="no such file or folder" if not path.exists() else "a folder without weights",
            hint=did_you_mean(str(start), list_models()) or "check model.start",
        )
    return files


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise not_safetensors(file, error) from error


@torch.no_grad()
def _load_run(model: NeuroFlamingo, folder: Path) -> LoadReport:
    """Load the parameters trained in another run, by name."""
    found = _read(folder / RUN_WEIGHTS)
    mine = dict(model.named_parameters())
    branches = {(part[0], part[1]): value for key, value in found.items() if (part := lora_part(plain_name(key)))}
    values = {key: value for key, value in found.items() if not lora_part(plain_name(key))}
    updates = pair_updates(branches, _tuning(folder))
    faults = [name for name in [*values, *updates] if name not in mine]
    faults += [
        f"{name} {list(value.shape)}, in the model {list(mine[name].shape)}"
        for name, value in values.items()
        if name in mine and mine[name].shape != value.shape
    ]
    turned = input_first_names(model)
    for name, update in updates.items():
        shape = (update.up.shape[0], update.down.shape[1])
        if name in mine and tuple(mine[name].shape) != (shape[::-1] if name in turned else shape):
            faults.append(f"branch of {name} {list(shape)}, in the model {list(mine[name].shape)}")
    if faults:
        raise ModelError(
            f"{len(faults)} tensors of the checkpoint {folder.name} do not fit the model",
            expected="names and shapes of this recipe's model; new tokens trainable if they were trained there",
            seen=listing(faults),
            hint="start from the finished model of that run, or use its recipe's model section",
            exit_code=65,
        )
    for name, value in values.items():
        mine[name].copy_(value)
    for name, update in updates.items():
        mine[name].copy_(merged(mine[name], update, input_first=name in turned))
    missing = tuple(name for name in mine if name not in values and name not in updates)
    return LoadReport(loaded=tuple(values), merged=tuple(updates), missing=missing, left_over=())


def _tuning(folder: Path) -> dict[str, Any] | None:
    """Read rank and alpha of the adapters from the recipe in the checkpoint."""
    try:
        recipe = load_json(folder / RUN_STATE)["recipe"]
        lora = recipe["trained"]["lora"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder.name}/{RUN_STATE} cannot be read", expected="the recipe of a run", seen=str(error), exit_code=65
        ) from error
    return None if lora is None else {"r": lora["rank"], "alpha": lora["alpha"]}
