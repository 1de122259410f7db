"""Fuses gated cross-attention into any causal language model of transformers, without a file per family."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from neuroflamingo.model.gated_attention import GatedCrossAttentionBlock
from neuroflamingo.model.media import NO_MEDIA, Media, current_media
from neuroflamingo_preprocessing.errors import ModelError

# Families of transformers whose model does not pass unknown keywords on to its layers (observed with 5.23).
SCOPED = frozenset({"bloom", "codegen", "falcon", "gpt_neo", "gptj", "mpt"})


def passes_media_keyword(language_model: nn.Module) -> bool:
    """True if a keyword of this language model's forward reaches its layers.

    So for all but a few families of transformers; those and classes from elsewhere get the media from `media_scope`.
    """
    ships = type(language_model).__module__.startswith("transformers.")
    return ships and getattr(language_model.config, "model_type", None) not in SCOPED


class FusedLayer(nn.Module):
    """A decoder layer of the language model, preceded by a gated block.

    It replaces the decoder layer in the language model; all other attributes are those of the decoder layer.

    Args:
        decoder_layer: the language model's own layer.
        gated_cross_attn_layer: the gated block; None if this layer has none.
        index: the layer's number.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from neuroflamingo.model.fusion import fuse
        >>> config = LlamaConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, vocab_size=32)
        >>> language_model = LlamaForCausalLM(config)
        >>> fuse(language_model, dim_visual=32, every=2)  # replaces the layers in place
        'model.layers'
        >>> [layer.gated_cross_attn_layer is not None for layer in language_model.model.layers]
        [False, True, False, True]
    """

    gradient_checkpointing = False
    checkpoint_offload = False  # keep checkpointed activations in CPU memory

    def __init__(
        self, decoder_layer: nn.Module, gated_cross_attn_layer: GatedCrossAttentionBlock | None, index: int
    ) -> None:
        super().__init__()
        self.gated_cross_attn_layer = gated_cross_attn_layer
        self.decoder_layer = decoder_layer
        self.index = index

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "decoder_layer":
                raise
            return getattr(self.decoder_layer, name)

    def forward(self, *arguments: Any, media: Media | None = None, **keywords: Any) -> Any:
        """Run the gated block, then the decoder layer; `media` comes as a keyword or from the current scope."""
        if self.gated_cross_attn_layer is not None:
            hidden = arguments[0] if arguments else keywords.pop("hidden_states")
            media = media or current_media() or NO_MEDIA
            arguments = (self._look(hidden, media), *arguments[1:])
        if not self._checkpoints:
            return self.decoder_layer(*arguments, **keywords)
        with self._keeping():
            if self._inner_checkpoints:
                return self.decoder_layer(*arguments, **keywords)
            return self._gradient_checkpointing_func(partial(self.decoder_layer, **keywords), *arguments)

    def _look(self, hidden: Tensor, media: Media) -> Tensor:
        block = self.gated_cross_attn_layer
        assert block is not None
        if not self._checkpoints:
            return block(hidden, media, layer=self.index)

        # The media are captured here, in the forward pass: recomputation happens later, maybe in another thread. The
        # latents are an explicit argument because reentrant checkpoints give gradients to arguments only.
        def look(hidden: Tensor, latents: Tensor | None) -> Tensor:
            return block(hidden, media.with_latents(latents), layer=self.index)

        with self._keeping():
            return self._gradient_checkpointing_func(look, hidden, media.latents)

    def _keeping(self) -> AbstractContextManager[Any]:
        """Context that decides where checkpointed activations wait for the backward pass."""
        if not self.checkpoint_offload:
            return nullcontext()
        return save_on_cpu(pin_memory=torch.cuda.is_available())

    @property
    def _checkpoints(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    @property
    def _inner_checkpoints(self) -> bool:
        # transformers' layers checkpoint themselves when they train; a frozen language model stays in eval mode.
        return bool(getattr(self.decoder_layer, "gradient_checkpointing", False)) and self.decoder_layer.training


def find_layers(language_model: nn.Module, path: str | None = None) -> tuple[str, nn.ModuleList]:
    """Find the list of decoder layers and its dotted name.

    Args:
        language_model: a causal language model of transformers.
        path: the name, if known; None takes the list with as many members as the config has layers, and the one with
            the most parameters if there are several.

    Raises:
        ModelError: there is no such list.
    """
    family = type(language_model).__name__
    if path is not None:
        layers = dict(language_model.named_modules()).get(path)
        if not isinstance(layers, nn.ModuleList):
            raise ModelError(
                f"{family} has no list of layers named '{path}'",
                expected="the dotted name of a ModuleList",
                seen=type(layers).__name__,
                hint="leave decoder_layers out, or look at `print(language_model)`",
                exit_code=65,
            )
        return path, layers
    count = getattr(language_model.config, "num_hidden_layers", None)
    found = [
        (name, module)
        for name, module in language_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise ModelError(
            f"no decoder layers found in {family}",
            expected=f"a ModuleList with num_hidden_layers = {count} members",
            seen=", ".join(
                f"{name} ({len(module)})"
                for name, module in language_model.named_modules()
                if isinstance(module, nn.ModuleList)
            )
            or "no ModuleList at all",
            hint="name it: decoder_layers='path.to.layers'",
            exit_code=65,
        )
    return max(found, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def text_width(language_model: nn.Module) -> int:
    """Width of the hidden states between layers (embeddings may be narrower)."""
    width = getattr(language_model.config, "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(
            f"the config of {type(language_model).__name__} has no hidden_size", expected="a width", exit_code=65
        )
    return width


def fuse(
    language_model: nn.Module,
    *,
    dim_visual: int,
    every: int = 1,
    dim_head: int = 64,
    heads: int = 8,
    ff_mult: int = 4,
    only_attend_immediate_media: bool = True,
    gate: float = 0.0,
    path: str | None = None,
) -> str:
    """Put a gated block before every `every`-th decoder layer, in place.

    Args:
        language_model: changed: each decoder layer is replaced by a `FusedLayer`.
        dim_visual: width of the latents.
        every: layer N (from 0) gets a block when N + 1 is a multiple of it, as upstream.
        dim_head, heads, ff_mult, only_attend_immediate_media: see `GatedCrossAttentionBlock`.
        gate: what both gates start at, before tanh.
        path: see `find_layers`.

    Returns:
        The dotted name of the list of layers.

    Raises:
        ModelError: no decoder layers found, or already fused.
    """
    path, layers = find_layers(language_model, path)
    if any(isinstance(layer, FusedLayer) for layer in layers):
        raise ModelError(f"{type(language_model).__name__} is fused already", hint="start from the bare language model")
    width = text_width(language_model)
    for index, layer in enumerate(layers):
        block = None
        if (index + 1) % every == 0:
            block = GatedCrossAttentionBlock(
                dim=width,
                dim_visual=dim_visual,
                dim_head=dim_head,
                heads=heads,
                ff_mult=ff_mult,
                only_attend_immediate_media=only_attend_immediate_media,
            )
            sample = next(layer.parameters())
            block.to(device=sample.device, dtype=sample.dtype if sample.is_floating_point() else None)
            if gate:
                nn.init.constant_(block.attn_gate, gate)
                nn.init.constant_(block.ff_gate, gate)
            for part in block.modules():  # else transformers would initialise them like its own layers
                part._is_hf_initialized = True  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        layers[index] = FusedLayer(layer, block, index)
    return path


def gated_blocks(language_model: nn.Module) -> Iterator[tuple[int, GatedCrossAttentionBlock]]:
    """Gated blocks with their layer numbers."""
    for module in language_model.modules():
        if isinstance(module, FusedLayer) and module.gated_cross_attn_layer is not None:
            yield module.index, module.gated_cross_attn_layer


def forward_arguments(module: nn.Module) -> frozenset[str]:
    """Names of a module's forward arguments."""
    return frozenset(inspect.signature(module.forward).parameters)


GATED = ".gated_cross_attn_layer."
