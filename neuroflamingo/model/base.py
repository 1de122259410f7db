"""Base class of `NeuroFlamingo`'s mixins: the modules, and the forward pass of the language model with its media."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from neuroflamingo.model import fusion
from neuroflamingo.model.config import NeuroFlamingoConfig
from neuroflamingo.model.gated_attention import GatedCrossAttentionBlock
from neuroflamingo.model.loss import chosen_logits, logits_at
from neuroflamingo.model.media import Media, MediaRule, media_scope
from neuroflamingo.model.media_cache import MediaCache
from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo.model.scan_inputs import ScanInputs, encode_scans


class FusedModel(PreTrainedModel):
    """An encoder, a resampler and a fused language model; `NeuroFlamingo` sets them.

    Attributes:
        encoder: maps a batch of scans to an `EncoderOutput`; None: only ready tokens are accepted.
        perceiver: the resampler.
        lang_encoder: the fused language model.
        _keyword: whether its layers are handed the media as a keyword, else from `media_scope`; see `prove_media`.
    """

    config: NeuroFlamingoConfig
    encoder: nn.Module | None
    perceiver: PerceiverResampler
    lang_encoder: PreTrainedModel
    _keyword: bool = False
    _text_arguments: frozenset[str]

    @property
    def gated_blocks(self) -> dict[int, GatedCrossAttentionBlock]:
        """Gated blocks by layer number."""
        return dict(fusion.gated_blocks(self.lang_encoder))

    def _read(self, media: Media, label_positions: Int[Tensor, " label"] | None = None, **arguments: Any) -> Any:
        """Run the fused language model with the media as an argument; with `label_positions`, logits only there."""
        keep, arguments["return_dict"] = arguments["logits_to_keep"], True
        arguments = {name: value for name, value in arguments.items() if self._takes(name, value)}
        if self._keyword:
            arguments["media"] = media
        with ExitStack() as scope:
            if not self._keyword:
                scope.enter_context(media_scope(media))
            gathering = None if label_positions is None else scope.enter_context(logits_at(label_positions))
            output = self.lang_encoder(**arguments)
        if gathering is not None:
            output.logits = chosen_logits(output.logits, gathering)
        elif "logits_to_keep" not in self._text_arguments:
            output.logits = output.logits[:, -keep:] if isinstance(keep, int) else output.logits[:, keep]
        return output

    def _takes(self, name: str, value: Any) -> bool:
        """Whether an argument is for the language model; one that would change what is computed is never dropped."""
        if name in self._text_arguments:
            return True
        if value is None or name in ("position_ids", "logits_to_keep"):
            return False
        return "**" in self._text_arguments or name not in ("use_cache", "return_dict")

    @property
    def keeps_cache(self) -> bool:
        """Whether the language model continues a text from a cache that the scans can travel with.

        State-space models (Mamba, xLSTM, RWKV) keep a state of their own kind: here they read the whole text again.
        """
        return "past_key_values" in self._text_arguments

    def encode(
        self, scan_inputs: ScanInputs, batch: int, before: Int[Tensor, " batch"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Latents of the scans, `[batch, scan, latent, width]`, and a mask of the real ones, `[batch, scan]`.

        `before` is the number of scans that each row has had in earlier chunks.
        """
        present = scan_inputs.present(batch).to(self.perceiver.latents.device)
        return encode_scans(scan_inputs, present, self.encoder, self.perceiver, before), present

    def project(self, latents: Tensor) -> dict[int, Tensor]:
        """Keys and values of the scans for each gated block, by layer number."""
        matrices = {layer: (block, block.attn.to_kv.weight) for layer, block in self.gated_blocks.items()}
        return {  # an offloaded matrix is on no device yet: its hook moves its input
            layer: block.project(latents if weight.is_meta else latents.to(weight.device))
            for layer, (block, weight) in matrices.items()
        }

    def empty_media_cache(self, batch: int, length: int = 0, rule: MediaRule | None = None) -> MediaCache:
        """Empty media cache for a text of which `length` tokens have been processed (`rule` as in `forward`)."""
        device = self.perceiver.latents.device
        nothing = torch.zeros(batch, 0, dtype=torch.long, device=device)
        attentions = {layer: block.attn for layer, block in self.gated_blocks.items()}
        media_cache = MediaCache(
            {},
            nothing,
            lambda layer, packed, plan: attentions[layer].arrange(packed, plan),
            immediate=self.config.cross_attention["only_attend_immediate_media"],
            rule=rule or self.config.cross_attention["media_rule"],
        )
        media_cache.length = length
        return media_cache
