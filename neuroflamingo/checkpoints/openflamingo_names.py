"""Mapping of tensor names in OpenFlamingo checkpoints to names in a NeuroFlamingo model.

Upstream registers the same tensor under several names, wraps modules for distributed training, and Multimodal-GPT
wraps the language model alone with peft. All of that is undone here by rules on whole dotted segments
(upstream replaces text anywhere in a name). Sources: https://github.com/mlfoundations/open_flamingo,
https://github.com/open-mmlab/Multimodal-GPT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuroflamingo_preprocessing.errors import ModelError

MISFIT = 65  # exit code of a weight file that does not fit

_WRAPPERS = {"module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_RUN_ENTRIES = {"epoch", "optimizer_state_dict", "lr_scheduler_state_dict", "tuning_config"}
_ALIASES = {"gated_cross_attn_layers": "gated_cross_attn_layer", "old_decoder_blocks": "decoder_layer"}
_ALIAS = re.compile(rf"lang_encoder\.({'|'.join(_ALIASES)})\.(\d+)\.(.+)")
_GATED_LAYER = re.compile(r"(lang_encoder\..+)\.(\d+)\.gated_cross_attn_layer\.")
_ROTARY = re.compile(r"lang_encoder\..*rotary_emb\.inv_freq")
_CAUSAL_MASK = re.compile(r"lang_encoder\..*(?:attn|attention)\.(?:bias|masked_bias)")


@dataclass(frozen=True)
class FileEntries:
    """Contents of a checkpoint file: tensors by their names in the file, and all other entries."""

    tensors: dict[str, Tensor]
    tuning: Mapping[str, Any] | None
    run_entries: tuple[str, ...]


def read_entries(state_dict: Mapping[str, Any]) -> FileEntries:
    """Split a flat or nested (`model_state_dict`) checkpoint into tensors and other entries.

    Raises:
        ModelError: an entry is neither a tensor nor one that upstream's trainers write.
    """
    nested = state_dict.get("model_state_dict")
    beside = {key: value for key, value in state_dict.items() if key != "model_state_dict"}
    if nested is None:
        beside = {key: state_dict[key] for key in state_dict if key in _RUN_ENTRIES}
        nested = {key: value for key, value in state_dict.items() if key not in beside}
    strange = [key for key in beside if key not in _RUN_ENTRIES]
    if isinstance(nested, Mapping):
        strange += [key for key, value in nested.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if not isinstance(nested, Mapping) or strange or not nested:
        raise ModelError(
            "the checkpoint holds entries that are not weights" if strange else "the checkpoint holds no weights",
            expected="names with tensors, flat or under model_state_dict, beside " + ", ".join(sorted(_RUN_ENTRIES)),
            seen=listing(map(str, strange)) or "nothing",
            hint="pass the dictionary saved by the trainer",
            exit_code=MISFIT,
        )
    tuning = beside.get("tuning_config")
    if tuning is not None and not isinstance(tuning, Mapping):
        raise ModelError(
            "the checkpoint's tuning_config cannot be read",
            expected="a mapping with r and alpha",
            seen=type(tuning).__name__,
            hint="convert it to a plain dictionary",
            exit_code=MISFIT,
        )
    return FileEntries(dict(nested), tuning, tuple(sorted(beside)))


def plain_name(key: str) -> str:
    """Remove the prefixes of distributed training, activation checkpointing and peft from a name."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    if parts[:3] == ["lang_encoder", "base_model", "model"]:
        parts = ["lang_encoder", *parts[3:]]
        parts = [part for part in parts if part != "base_layer"]
    if len(parts) > 3 and parts[-3] in ("lora_A", "lora_B") and parts[-2] == "default":
        del parts[-2]
    return ".".join(parts)


class ModelNames:
    """Names in the model: its decoder layers, and names that share a tensor.

    Args:
        model: a model with `perceiver.*` and `lang_encoder.<layers>.N.gated_cross_attn_layer.*`.

    Raises:
        ModelError: the model has no gated cross-attention.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.tensors: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
        places = {match.group(1) for match in map(_GATED_LAYER.match, self.tensors) if match}
        if len(places) != 1:
            raise ModelError(
                "an OpenFlamingo checkpoint cannot be loaded into this model",
                expected="one list of decoder layers with gated cross-attention",
                seen=listing(sorted(places)) or "none",
                hint="build it with NeuroFlamingo.assemble first",
                exit_code=MISFIT,
            )
        self.layers = places.pop()
        self.rotary = [value for name, value in model.named_buffers() if name.endswith("rotary_emb.inv_freq")]

    def resolve(self, name: str) -> str | None:
        """Name in the model for a checkpoint's plain name; None if the model has no such tensor."""
        alias = _ALIAS.fullmatch(name)
        if alias:
            family, layer, rest = alias.groups()
            name = f"{self.layers}.{layer}.{_ALIASES[family]}.{rest}"
        return name if name in self.tensors else None

    def gated_layers(self) -> list[int]:
        """Numbers of the decoder layers with a gated block."""
        return gated_layers(self.tensors)

    def tied(self) -> dict[str, tuple[str, ...]]:
        """All names of a shared tensor, by each of its names."""
        groups: dict[int, list[str]] = {}
        for name, value in self.tensors.items():
            groups.setdefault(id(value), []).append(name)
        return {name: tuple(group) for group in groups.values() if len(group) > 1 for name in group}

    def is_recomputed(self, name: str, value: Tensor) -> bool:
        """True for a buffer that older transformers releases saved and newer ones compute, so that it may be skipped.

        Rotary frequencies must equal the model's, since a different base would change every output.
        """
        if _ROTARY.fullmatch(name):
            return any(mine.shape == value.shape and torch.allclose(mine.to(value), value) for mine in self.rotary)
        square = value.ndim == 4 and value.shape[:2] == (1, 1) and value.shape[2] == value.shape[3]
        return bool(_CAUSAL_MASK.fullmatch(name)) and (square or value.ndim == 0)


def gated_layers(names: Iterable[str]) -> list[int]:
    """Numbers of the decoder layers with gated cross-attention, from either naming scheme."""
    found = re.compile(r"lang_encoder\.(?:.+\.(\d+)\.gated_cross_attn_layer|gated_cross_attn_layers\.(\d+))\.")
    matches = [match for match in map(found.match, names) if match]
    return sorted({int(match.group(1) or match.group(2)) for match in matches})


def listing(names: Iterable[str], limit: int = 8) -> str:
    """Format names for an error message: the first few, and the number of others."""
    ordered = list(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more
