"""Fuses gated cross-attention into any causal language model of transformers, without a file per family."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from transformers import PreTrainedModel

from neuroflamingo.model.gated_attention import GatedCrossAttentionBlock
from neuroflamingo.model.media import NO_MEDIA, Media, current_media
from neuroflamingo_preprocessing.errors import ModelError


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
        if hidden.ndim == 4:  # several residual streams in front of the batch (Gemma 3n): each of them looks
            return torch.stack([self._look(stream, media) for stream in hidden])
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


_OTHER_THAN_TEXT = re.compile(r"vision|visual|image|audio|speech")


def find_layers(language_model: nn.Module, path: str | None = None) -> tuple[str, nn.ModuleList]:
    """Find the list of decoder layers and its dotted name.

    Args:
        language_model: a causal language model of transformers.
        path: the name, if known; None takes the list with as many members as the config has layers; of several, the
            one with the most parameters that is not named after pictures or sound.

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
    count = getattr(text_config(language_model), "num_hidden_layers", None)
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
    text = [item for item in found if not _OTHER_THAN_TEXT.search(item[0])]
    return max(text or found, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def text_config(language_model: nn.Module) -> Any:
    """Config of the text part; models for images and text, as Gemma 3 and MedGemma from 4B, keep it inside theirs."""
    config: Any = language_model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def text_width(language_model: nn.Module) -> int:
    """Width of the hidden states between layers (embeddings may be narrower)."""
    width = getattr(text_config(language_model), "hidden_size", None)
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
    rename_ties(language_model, path)
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
            block.to(dtype=sample.dtype if sample.is_floating_point() else None)
            if not block.attn_gate.is_meta:  # in a build without memory, a layer may still hold a real tensor
                block.to(device=sample.device)
            if gate:
                nn.init.constant_(block.attn_gate, gate)
                nn.init.constant_(block.ff_gate, gate)
            for part in block.modules():  # else transformers would initialise them like its own layers
                part._is_hf_initialized = True  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        layers[index] = FusedLayer(layer, block, index)
    return path


def rename_ties(language_model: nn.Module, path: str) -> None:
    """Declare tied tensors inside the decoder layers under the names that they get by fusing.

    transformers ties, saves and restores shared tensors (Zamba's shared attention) by the names that a family declares.

    Args:
        language_model: not fused yet.
        path: dotted name of its list of layers.
    """
    for prefix, part in language_model.named_modules():
        if not isinstance(part, PreTrainedModel) or not f"{path}.".startswith(f"{prefix}." if prefix else ""):
            continue
        layers = re.escape(path.removeprefix(prefix).removeprefix("."))

        def new(name: str, layers: str = layers) -> str:
            return re.sub(rf"^({layers}\.\d+)\.", rf"\1.{INSIDE}.", name)

        own: Any = part  # its annotations say less than it holds
        expanded = part.get_expanded_tied_weights_keys(all_submodels=False)
        renamed = {new(target): new(source) for target, source in expanded.items()}
        if renamed != expanded:
            own._tied_weights_keys = renamed
        own.all_tied_weights_keys = {new(a): new(b) for a, b in own.all_tied_weights_keys.items()}
        own._keys_to_ignore_on_save = {new(name) for name in own._keys_to_ignore_on_save or ()}


def gated_blocks(language_model: nn.Module) -> Iterator[tuple[int, GatedCrossAttentionBlock]]:
    """Gated blocks with their layer numbers."""
    for module in language_model.modules():
        if isinstance(module, FusedLayer) and module.gated_cross_attn_layer is not None:
            yield module.index, module.gated_cross_attn_layer


def forward_arguments(module: nn.Module) -> frozenset[str]:
    """Names of a module's forward arguments; `**` is among them if it takes any keyword."""
    parameters = inspect.signature(module.forward).parameters.values()
    return frozenset("**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters)


GATED = ".gated_cross_attn_layer."
INSIDE = "decoder_layer"  # the attribute of a `FusedLayer` that holds the language model's own layer
