"""A model for reports: its folder, which defines the required scans, and the model itself, loaded once for many."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import neuroflamingo.checkpoints as checkpoints  # the face: `load` brings torch and transformers on first use
from neuroflamingo.checkpoints.local_models import find_model
from neuroflamingo.device import pick_device
from neuroflamingo.inference.model_card import model_card
from neuroflamingo.inference.second_look import SecondLook
from neuroflamingo.model.folder import check_folder, digest_of_files, loaded_files, model_name, read_card, read_prompts
from neuroflamingo.model.plain_files import weight_tensors
from neuroflamingo.provenance import ModelRecord
from neuroflamingo.report.records import Citation, ModelCard
from neuroflamingo_preprocessing.errors import ModelError
from neuroflamingo_preprocessing.software import installed_version

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.model.prompt_forms import TrainedPrompts
    from neuroflamingo_encoders.card import EncoderCard
    from neuroflamingo_preprocessing.spec import ScanSpec

_OURS = ("neuroflamingo", "neuroflamingo_encoders")


@dataclass(frozen=True)
class ModelFolder:
    """A model that is not loaded yet, but already defines the required scans, so that unsuitable ones fail early."""

    folder: Path
    device: str
    card: EncoderCard | None
    prompts: TrainedPrompts | None = None
    device_map: str | Mapping[str, int | str] | None = None
    max_memory: Mapping[Any, int | str] | None = None
    offload_folder: str | Path | None = None

    @property
    def scan_spec(self) -> ScanSpec:
        """Input specification from the encoder's card."""
        return _scan_spec(self.name, self.card)

    @property
    def name(self) -> str:
        """What reports call the model."""
        return model_name(self.folder)

    def load(self) -> LoadedModel:
        """Load the model.

        Raises:
            ModelError: files that do not fit.
            UsageError: no such device.
        """
        with _without_collections():
            word = self.device.strip().lower()
            place = pick_device("cuda" + word[3:] if word == "gpu" or word.startswith("gpu:") else word)
            model, processor = checkpoints.load(
                self.folder,
                device=place,
                device_map=self.device_map,
                max_memory=self.max_memory,
                offload_folder=self.offload_folder,
            )
        record = describe(self.name, self.folder, model, processor)
        training = getattr(model.config, "training", None)
        about, second_look = model_card(self.folder, training), SecondLook.of(self.folder, training)
        return LoadedModel(record.name, model, processor, record, place, about, second_look)


@dataclass(frozen=True)
class LoadedModel:
    """Model and processor on a device, to be shared by reports on many scans."""

    name: str
    model: NeuroFlamingo
    processor: NeuroFlamingoProcessor
    record: ModelRecord
    device: str
    about: ModelCard
    second_look: SecondLook

    @property
    def dtype(self) -> str:
        """Number format of the weights, such as `float32`."""
        return str(next(self.model.perceiver.parameters()).dtype).removeprefix("torch.")

    @property
    def prompts(self) -> TrainedPrompts | None:
        """Prompt forms that it was trained for; None: they are not known."""
        return self.processor.prompts

    @cached_property
    def scan_spec(self) -> ScanSpec:
        """Input specification from the encoder's card."""
        return _scan_spec(self.name, self.processor.card)

    @property
    def citations(self) -> tuple[Citation, ...]:
        """Citations from the encoder's card."""
        card = self.processor.card
        if card is None or not card.citation:
            return ()
        return (Citation(key=card.name, text=card.citation, url=card.paper),)


def open_model(name_or_path: str | Path = "tiny-t1w", *, device: str = "auto", **places: Any) -> LoadedModel:
    """Load a model for reports.

    Args:
        name_or_path: an embedded model's name, or a folder that `save_pretrained` wrote.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; `gpu` is another word for `cuda`.
        places: `device_map`, `max_memory` and `offload_folder`, for models larger than the device: see `load`.

    Raises:
        ModelError: unknown model (the nearest names are given), or files that do not fit.
        UsageError: no such device.
    """
    return model_folder(name_or_path, device=device, **places).load()


def model_folder(name_or_path: str | Path = "tiny-t1w", *, device: str = "auto", **places: Any) -> ModelFolder:
    """Find a model and check its folder, without torch; arguments as for `open_model`.

    Raises:
        ModelError: unknown model (the nearest names are given), or a folder that holds more than data.
        NotFoundError: the folder holds no model.
    """
    folder = check_folder(find_model(name_or_path))
    weight_tensors(folder)  # cut weights and odd files are found before the scan is read
    return ModelFolder(folder, device, read_card(folder), read_prompts(folder), **places)


def _scan_spec(name: str, card: EncoderCard | None) -> ScanSpec:
    if card is None:
        raise ModelError(
            f"the model {name} has no encoder, so it cannot read scan files",
            expected="a model that was saved with its encoder",
            seen="one for precomputed tokens only",
            hint="call the model from Python with scan_tokens",
            exit_code=65,
        )
    return card.scan


@contextmanager
def _without_collections() -> Iterator[None]:
    """Suspend garbage collection: imports create a million permanent objects, and scanning them costs half a second."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def describe(name: str, folder: Path, model: Any, processor: Any) -> ModelRecord:
    """Provenance record of a model: hashes of the files that it was loaded from, its encoder and language model."""
    files = loaded_files(folder)
    card = processor.card
    distribution = _distribution(card.implementation) if card else None
    return ModelRecord(
        name=name,
        files=files,
        digest=digest_of_files(files),
        encoder=card.name if card else None,
        encoder_version=card.version if card else None,
        encoder_distribution=distribution,
        language_model=model.config.text_config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _distribution(implementation: str) -> str | None:
    """Name and version of the package that provides an encoder's module."""
    from importlib.metadata import packages_distributions

    top = implementation.split(":")[0].split(".")[0]
    # Ours is known without asking every distribution for its list of files, which takes a while.
    names = ["neuroflamingo"] if top in _OURS else packages_distributions().get(top)
    return f"{names[0]} {installed_version(names[0])}" if names else None
