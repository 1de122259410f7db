"""Freezing of parts; by default the resampler, the gated blocks and the embeddings of new tokens train."""

from __future__ import annotations

from typing import Literal, Self

from torch import nn

from neuroflamingo.model import fusion
from neuroflamingo.model.base import FusedModel
from neuroflamingo.model.new_tokens import NewTokens


class TrainingState(FusedModel):
    """Freezing methods of `NeuroFlamingo`; frozen parts stay in eval mode while the rest trains."""

    new_tokens: NewTokens | None

    def freeze_for_training(self, *, embeddings: Literal["new", "all", "none"] = "new") -> Self:
        """Freeze everything except the resampler, the gated blocks and the embeddings.

        Args:
            embeddings: train the rows of the added tokens only (as `new_tokens.input` and, where the head is not tied,
                `new_tokens.output`; give them no weight decay), all rows, or none.
        """
        self.requires_grad_(False)
        self.perceiver.requires_grad_(True)
        for _, block in fusion.gated_blocks(self.lang_encoder):
            block.requires_grad_(True)
        self._set_new_tokens(embeddings == "new" and bool(self.config.new_token_ids))
        for weight in self._embedding_weights():
            weight.requires_grad_(embeddings == "all")
        return self.train(self.training)

    def _set_new_tokens(self, wanted: bool) -> None:
        """Add or remove the table of new tokens; a matching one is kept, since optimisers may hold its parameters."""
        modules = (self.lang_encoder.get_input_embeddings(), self.lang_encoder.get_output_embeddings())
        ids = list(self.config.new_token_ids)
        if self.new_tokens is not None and not (wanted and self.new_tokens.serves(ids, *modules)):
            self.new_tokens.remove()
            self.new_tokens = None
        if wanted and self.new_tokens is None:
            self.new_tokens = NewTokens(ids, *modules)
        if self.new_tokens is not None:
            self.new_tokens.requires_grad_(True)

    @property
    def checkpoint_offload(self) -> bool:
        """With gradient checkpointing, keep checkpointed activations in CPU memory; off by default.

        This saves GPU memory (one hidden state per decoder layer and gated block) at the cost of a transfer each way.
        """
        return any(layer.checkpoint_offload for layer in self._fused_layers())

    @checkpoint_offload.setter
    def checkpoint_offload(self, wanted: bool) -> None:
        for layer in self._fused_layers():
            layer.checkpoint_offload = wanted

    def _fused_layers(self) -> list[fusion.FusedLayer]:
        return [module for module in self.lang_encoder.modules() if isinstance(module, fusion.FusedLayer)]

    def _embedding_weights(self) -> list[nn.Parameter]:
        """Input and output embeddings, once if they are tied."""
        tables = (self.lang_encoder.get_input_embeddings(), self.lang_encoder.get_output_embeddings())
        found = {id(table.weight): table.weight for table in tables if table is not None}
        return [weight for weight in found.values() if isinstance(weight, nn.Parameter)]

    @property
    def language_model_frozen(self) -> bool:
        """True if no part of the bare language model trains, except its embeddings."""
        added = {id(p) for _, block in fusion.gated_blocks(self.lang_encoder) for p in block.parameters()}
        added |= {id(weight) for weight in self._embedding_weights()}
        return not any(p.requires_grad and id(p) not in added for p in self.lang_encoder.parameters())

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except in frozen parts: a frozen language model must not apply dropout."""
        super().train(mode)
        if not mode:
            return self
        if self.encoder is not None and not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()
        if self.language_model_frozen:
            self.lang_encoder.eval()
            for layer in self._fused_layers():
                layer.training = True
                if layer.gated_cross_attn_layer is not None:
                    layer.gated_cross_attn_layer.train()
        return self
