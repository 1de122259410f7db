"""Which parts of a NeuroFlamingo train: by default the resampler, the gated blocks and the new tokens' embeddings."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from neuroflamingo import language
from neuroflamingo.configuration import NeuroFlamingoConfig
from neuroflamingo.resampler import PerceiverResampler


class TrainingState(nn.Module):
    """The half of `NeuroFlamingo` that knows what is frozen; frozen parts stay in eval mode while the rest trains."""

    config: NeuroFlamingoConfig
    encoder: nn.Module | None
    perceiver: PerceiverResampler
    lang_encoder: PreTrainedModel

    def freeze_for_training(self, *, embeddings: Literal["new", "all", "none"] = "new") -> Self:
        """Freeze everything but the resampler, the gated blocks and the embeddings.

        Args:
            embeddings: train the rows of the added tokens only (the others get a zero gradient; give these weights no
                weight decay), all rows, or none.
        """
        self.requires_grad_(False)
        self.perceiver.requires_grad_(True)
        for _, block in language.gated_blocks(self.lang_encoder):
            block.requires_grad_(True)
        self._trained_rows = embeddings
        trains = embeddings == "all" or (embeddings == "new" and bool(self.config.new_token_ids))
        for weight in self._embedding_weights():
            weight.requires_grad_(trains)
        return self.train(self.training)

    def _embedding_weights(self) -> list[nn.Parameter]:
        """Input and output embeddings, once if they are tied."""
        tables = (self.lang_encoder.get_input_embeddings(), self.lang_encoder.get_output_embeddings())
        found = {id(table.weight): table.weight for table in tables if table is not None}
        return [weight for weight in found.values() if isinstance(weight, nn.Parameter)]

    @property
    def language_model_frozen(self) -> bool:
        """True if nothing of the bare language model trains, its embeddings apart."""
        added = {id(p) for _, block in language.gated_blocks(self.lang_encoder) for p in block.parameters()}
        added |= {id(weight) for weight in self._embedding_weights()}
        return not any(p.requires_grad and id(p) not in added for p in self.lang_encoder.parameters())

    def train(self, mode: bool = True) -> Self:
        """Set the mode. Frozen parts stay in eval mode: a frozen language model must not drop out its own features."""
        super().train(mode)
        if not mode:
            return self
        if self.encoder is not None and not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()
        if self.language_model_frozen:
            self.lang_encoder.eval()
            for module in self.lang_encoder.modules():
                if isinstance(module, language.FusedLayer):
                    module.training = True
                    if module.gated_cross_attn_layer is not None:
                        module.gated_cross_attn_layer.train()
        self._mask_embedding_gradients()
        return self

    def _mask_embedding_gradients(self) -> None:
        masked = getattr(self, "_trained_rows", "new") == "new" and bool(self.config.new_token_ids)
        for weight in self._embedding_weights():
            # The handle lies on the tensor itself: copies and reloaded weights are new tensors that have neither.
            handle = getattr(weight, "row_mask", None)
            if masked and weight.requires_grad and handle is None:
                weight.row_mask = weight.register_hook(_RowMask(self.config.new_token_ids))  # pyright: ignore
            elif not masked and handle is not None:
                handle.remove()
                del weight.row_mask  # pyright: ignore[reportAttributeAccessIssue]


class _RowMask:
    """Gradient hook that keeps the rows of some tokens."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def __call__(self, gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        index = torch.tensor(self.rows, device=gradient.device)
        return kept.index_copy_(0, index, gradient[index])
