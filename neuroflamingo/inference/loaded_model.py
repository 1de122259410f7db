"""A model that is loaded once and used for many reports, with what its provenance needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.checkpoints.local_models import find_model, load
from neuroflamingo.device import pick_device
from neuroflamingo.provenance import ModelRecord
from neuroflamingo.report.records import Citation
from neuroflamingo_preprocessing.errors import ModelError
from neuroflamingo_preprocessing.files import sha256_of
from neuroflamingo_preprocessing.software import installed_version

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.report.records import Citation
    from neuroflamingo_preprocessing.spec import ScanSpec


@dataclass(frozen=True)
class LoadedModel:
    """Model and processor on a device. Reports on many scans may share one."""

    name: str
    model: NeuroFlamingo
    processor: NeuroFlamingoProcessor
    record: ModelRecord
    device: str

    @property
    def dtype(self) -> str:
        return str(next(self.model.perceiver.parameters()).dtype).removeprefix("torch.")

    @cached_property
    def scan_spec(self) -> ScanSpec:
        """What scans must look like, from the encoder's card."""
        if self.processor.card is None:
            raise ModelError(
                f"the model {self.name} has no encoder, so it cannot read scan files",
                expected="a model that was saved with its encoder",
                seen="one that takes ready tokens only",
                hint="call the model from Python with scan_tokens",
                exit_code=65,
            )
        return self.processor.card.scan

    @property
    def citations(self) -> tuple[Citation, ...]:
        """What the encoder's card asks to be cited."""
        card = self.processor.card
        if card is None or not card.citation:
            return ()
        return (Citation(key=card.name, text=card.citation, url=card.paper),)


def open_model(name_or_path: str | Path = "tiny-t1w", *, device: str = "auto") -> LoadedModel:
    """Load a model for reports.

    Args:
        name_or_path: an embedded model's name, or a folder that `save_pretrained` wrote.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; `gpu` is another word for `cuda`.

    Raises:
        ModelError: unknown model (the nearest names are given), or files that do not fit.
        UsageError: no such device.
    """
    word = device.strip().lower()
    place = pick_device("cuda" + word[3:] if word == "gpu" or word.startswith("gpu:") else word)
    folder = find_model(name_or_path)
    model, processor = load(folder, device=place)
    record = describe(folder.resolve().name, folder, model, processor)
    return LoadedModel(record.name, model, processor, record, place)


def describe(name: str, folder: Path, model: Any, processor: Any) -> ModelRecord:
    """The record of a model for the provenance: hashes of its files, its encoder and language model."""
    kinds = {".safetensors", ".json", ".jinja"}
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in kinds
    }
    card = processor.card
    distribution = _distribution(card.implementation) if card else None
    return ModelRecord(
        name=name,
        files=files,
        encoder=card.name if card else None,
        encoder_version=card.version if card else None,
        encoder_distribution=distribution,
        language_model=model.config.text_config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _distribution(implementation: str) -> str | None:
    """Name and version of the package that an encoder's module belongs to."""
    from importlib.metadata import packages_distributions

    top = implementation.split(":")[0].split(".")[0]
    names = packages_distributions().get(top)
    name = names[0] if names else ("neuroflamingo" if top.startswith("neuroflamingo") else None)
    return f"{name} {installed_version(name)}" if name else None
