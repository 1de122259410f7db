"""Parameter groups of a model: resampler, gated blocks, language model, encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from neuroflamingo.model.fusion import GATED
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo


GROUPS = ("resampler", "gated_blocks", "new_tokens", "embeddings", "lora", "language_model", "encoder")


def encoder_blocks(model: NeuroFlamingo, count: int) -> dict[str, nn.Module]:
    """Names and modules of the encoder's last `count` blocks, from its largest list of equal modules.

    Raises:
        ConfigError: no encoder, or it has fewer blocks.
    """
    if not count:
        return {}
    lists = [
        (name, module)
        for name, module in (model.encoder.named_modules(prefix="encoder") if model.encoder is not None else ())
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(part) for part in module}) == 1
    ]
    size = {name: sum(p.numel() for p in module.parameters()) for name, module in lists}
    name, blocks = max(lists, key=lambda item: (len(item[1]) > 1, size[item[0]]), default=("", ()))
    if len(blocks) < count:
        raise ConfigError(
            f"the encoder does not have {count} blocks",
            expected=f"an encoder with at least {count}",
            seen=f"{len(blocks)} in {name}" if name else "no encoder" if model.encoder is None else "no blocks",
            hint="lower encoder_blocks",
        )
    return {f"{name}.{number}": blocks[number] for number in range(len(blocks) - count, len(blocks))}


def grouped_names(model: NeuroFlamingo) -> dict[str, str]:
    """Group (one of `GROUPS`) of each parameter, by name."""
    tables = {id(weight) for weight in model._embedding_weights()}
    return {
        name: "embeddings" if id(parameter) in tables else _group(name) for name, parameter in model.named_parameters()
    }


def _group(name: str) -> str:
    """Group of a parameter, from its name alone; embedding tables count as the language model."""
    if ".lora_" in name:
        return "lora"
    if name.startswith(("encoder.", "perceiver.")):
        return "encoder" if name.startswith("encoder.") else "resampler"
    if GATED in name:
        return "gated_blocks"
    return "new_tokens" if "new_token" in name else "language_model"
