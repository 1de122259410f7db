"""Choice of an encoder and its weights, and loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from neuroflamingo.checkpoints.local_models import MODELS, list_models
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.card import current_digest
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_encoders.weights.cache import find_weights, how_to_get
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.files import sha256_of
from neuroflamingo_preprocessing.user_files import decode_text

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard
    from neuroflamingo_encoders.contract import BrainEncoder


ENCODER_PART = "encoder."


class Words(NamedTuple):
    """How a user says which weights, random ones, and a table."""

    weights: str
    init: str
    table: str


ON_COMMAND_LINE = Words("--weights FILE.safetensors", "--init random", "--table FILE")
IN_RECIPES = Words(
    "--set model.encoder.weights=FILE.safetensors",
    "--set model.encoder.init=random",
    "--set model.encoder.table=FILE",
)


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder and its weights.

    Attributes:
        name: encoder name, see `list_encoders`.
        options: options of the encoder's card, such as `{"slices": 12}` for a 2D encoder on slices.
        weights: a safetensors file; None: the embedded model's, or the file in the encoder's weights folder.
        init: `random` for a deliberately untrained encoder.
        seed: seed of the random initialisation.
        table: an additional table that the encoder needs: parcel coordinates, functional gradients.
        by_recipe: messages name the keys of a recipe, not the options of `encode`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | Path | None = None
    init: Literal["random"] | None = None
    seed: int = 0
    table: str | Path | None = None
    by_recipe: bool = False

    @property
    def card(self) -> EncoderCard:
        """Card of the encoder with the options applied.

        Raises:
            ModelError, ConfigError: unknown encoder, or options that it does not have.
        """
        return encoder_card(self.name, **self.options)

    def load(self) -> tuple[BrainEncoder, dict[str, Any]]:
        """Load the encoder, frozen and with its table; returns it with the source of its weights.

        Raises:
            NeuroFlamingoError: see `load_encoder`; a missing or invalid table.
        """
        words = IN_RECIPES if self.by_recipe else ON_COMMAND_LINE
        how: dict[str, Any] = {"options": self.options, "init": self.init, "seed": self.seed}
        module, origin = load_encoder(self.name, self.weights, words=words, **how)
        if self.table is not None or _wants_table(module):
            origin["table"] = _set_table(module, self.table, words)
        return module.freeze(), origin


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    init: Literal["random"] | None = None,
    seed: int = 0,
    words: Words = ON_COMMAND_LINE,
) -> tuple[BrainEncoder, dict[str, Any]]:
    """Load a frozen encoder with its weights; returns it with the source of the weights.

    Raises:
        ModelError: no weights installed and `init` not given (exit 69), or they do not fit (exit 65).
        UsageError: both weights and `init`.
    """
    import torch

    options = options or {}
    card = encoder_card(name, **options)
    if init is not None and weights is not None:
        raise UsageError("both weights and random ones were asked for", expected=f"{words.weights}, or {words.init}")
    if init is not None or not card.cost.parameters:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build_encoder(name, **options)
        return module, {"init": "random", "seed": seed} if card.cost.parameters else {"init": "no weights needed"}
    if weights is None and card.weights.source == "embedded":
        return _embedded_encoder(card, words)
    path = find_weights(name) if weights is None else Path(weights)
    if path is None:
        raise ModelError(
            f"the weights of '{name}' are not installed",
            expected=f"{words.weights} ({card.weights.licence}), or {words.init}",
            hint=how_to_get(card),
        )
    module = build_encoder(name, path, **options)
    return module, {"file": path.name, "sha256": sha256_of(path), "licence": card.weights.licence}


def embedded_weights(card: EncoderCard, words: Words = ON_COMMAND_LINE) -> Path:
    """Weights file of the embedded model that has this encoder.

    Raises:
        ModelError: no embedded model has it (exit 69), or only with another card (exit 65).
    """
    others = []
    for model in list_models():
        described = json.loads((MODELS / model / "config.json").read_text(encoding="utf-8")).get("encoder") or {}
        if current_digest(described.get("card"), described.get("digest")) == card.digest:
            return MODELS / model / "model.safetensors"
        others += [model] if described.get("name") == card.name else []
    raise ModelError(
        f"no embedded model holds the weights of '{card.name}'",
        expected=f"one with the card's digest {card.digest}",
        seen=f"{', '.join(others)} with another card" if others else "none with this encoder",
        hint=f"{words.init}, or {words.weights}",
        exit_code=65 if others else 69,
    )


def _embedded_encoder(card: EncoderCard, words: Words) -> tuple[BrainEncoder, dict[str, Any]]:
    from safetensors import safe_open

    path = embedded_weights(card, words)
    module = build_encoder(card.name)
    with safe_open(path, "pt") as stream:
        names = [name for name in stream.keys() if name.startswith(ENCODER_PART)]  # noqa: SIM118
        state = {name.removeprefix(ENCODER_PART): stream.get_tensor(name) for name in names}
    module.load_weights(state)
    origin = {"model": path.parent.name, "file": path.name, "sha256": sha256_of(path), "part": ENCODER_PART}
    return module, origin | {"licence": card.weights.licence}


def _wants_table(module: Any) -> bool:
    return hasattr(module, "set_coordinates") or hasattr(module, "set_gradient")


def _set_table(module: Any, table: str | Path | None, words: Words = ON_COMMAND_LINE) -> dict[str, Any]:
    """Load the table that the encoder's card requires; returns the table's name and hash."""
    import numpy as np
    import torch

    demands = [d.what for d in module.card.demands if ", by set_" in d.what]
    name = demands[0].partition(", by ")[0] if demands else "no table"
    if table is None or not _wants_table(module):
        raise UsageError(
            f"the encoder '{module.card.name}' needs {name}" if _wants_table(module) else "this encoder takes no table",
            expected=words.table if _wants_table(module) else f"no {words.table.rstrip('FILE= ')}",
            hint=f"see {module.card.repository}" if _wants_table(module) else "leave it out",
        )
    path = Path(table)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", expected=name, hint="check the path")
    try:
        text = decode_text(path.read_bytes()).replace(",", " ").splitlines()
        rows = np.array([line.split() for line in text if line.strip()], dtype=np.float32)
    except (UnicodeDecodeError, ValueError) as error:
        raise ScanError(f"{path.name} is not a numeric table", seen=str(error)[:200], hint="check the file") from error
    if hasattr(module, "set_coordinates"):
        module.set_coordinates(torch.from_numpy(rows[:, -3:]))  # a column of labels may precede X Y Z
    else:
        module.set_gradient(torch.from_numpy(rows))
    return {"file": path.name, "sha256": sha256_of(path)}
