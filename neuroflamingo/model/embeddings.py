"""Access to the language model's embeddings and backbone, as tools of the Hugging Face ecosystem expect it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from neuroflamingo.model.freezing import TrainingState
from neuroflamingo.model.loss import gather_before, logits_at
from neuroflamingo_preprocessing.errors import ModelError


class Backbone:
    """The model up to its head, for trainers that compute the loss from the head's weights themselves (trl).

    Args:
        model: a `NeuroFlamingo`.
    """

    _tp_plan = _pp_plan = None  # transformers asks a base model for them

    def __init__(self, model: Any) -> None:
        self._whole = model

    def __call__(self, *arguments: Any, **inputs: Any) -> BaseModelOutput:
        """Hidden states in front of the head, `[batch, text, width]`; arguments as for the model, without labels."""
        model = self._whole
        if model.new_tokens is not None and torch.is_grad_enabled():
            warnings.warn(_HEAD_ROWS, stacklevel=2)
        with logits_at(torch.zeros(1, dtype=torch.long)) as gathering:  # one position: its logits are not looked at
            type(model).forward(model, *arguments, **inputs)
        if gathering.hidden is None:
            raise ModelError(f"{type(model.lang_encoder).__name__} has no head to compute a loss from", exit_code=65)
        return BaseModelOutput(last_hidden_state=gathering.hidden)  # pyright: ignore[reportArgumentType]


_HEAD_ROWS = (
    "this trainer reads the weights of the head itself: the rows of <|endofchunk|> and <image> are learnt as inputs, "
    "not as outputs. model.freeze_for_training(embeddings='all') before training learns both."
)


class EmbeddingAccess(TrainingState):
    """Embedding tables of the language model under the names that transformers, peft and trl ask for."""

    def get_input_embeddings(self) -> nn.Module:
        """The language model's input embeddings; trained rows of new tokens are in their output."""
        return self.lang_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the input embeddings."""
        with self._changed_tables():
            self.lang_encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The language model's head; None if it has none."""
        return self.lang_encoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        with self._changed_tables():
            self.lang_encoder.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *arguments: Any, **options: Any) -> nn.Module:
        """Change the number of tokens, as `PreTrainedModel.resize_token_embeddings`; trained rows are kept."""
        with self._changed_tables():
            table = self.lang_encoder.resize_token_embeddings(*arguments, **options)
        return table

    @property
    def base_model(self) -> Any:
        """The model up to its head."""
        return Backbone(self)

    @contextmanager
    def _changed_tables(self) -> Iterator[None]:
        """Write trained rows into the tables, and afterwards tend the new tables as the old ones were."""
        head, rows = self.get_output_embeddings(), self.new_tokens is not None
        self._set_new_tokens(False)
        yield
        new = self.get_output_embeddings()
        if new is not head:
            gather_before(new)
        self._set_new_tokens(rows)
