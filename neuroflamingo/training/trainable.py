"""Trainable parameters: parts by name, LoRA adapters by peft, and the optimiser's groups.

Names are those of `model.named_parameters()`. Adapters are added in place: the model stays a `NeuroFlamingo`, and an
adapter is named as in Multimodal-GPT, without peft's `base_model.model.`:
`lang_encoder.model.layers.3.gated_cross_attn_layer.attn.to_q.lora_A.default.weight`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from neuroflamingo.model import fusion
from neuroflamingo.model.fusion import GATED
from neuroflamingo.model.parameters import GROUPS, _group, encoder_blocks, grouped_names
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.recipe.schema import LoraSettings, OptimSettings, TrainedSettings

_PLAIN = re.compile(r"[\w.]+")
_IDLE = ".norm_cross_attn."  # monai's blocks have this norm and never use it: it would wait for a gradient
_ADDED = ("latents", "frame_embs", "media_time_embs")  # of the resampler: tables, though they are matrices


def freeze(model: NeuroFlamingo, trained: TrainedSettings) -> NeuroFlamingo:
    """Freeze everything except the parts that `trained` names and existing LoRA adapters.

    Args:
        model: changed in place; frozen parts stay in eval mode while it trains.
        trained: parts, patterns and the encoder's last blocks. The encoder stays in eval mode even if it trains: no
            dropout, no update of running statistics.

    Raises:
        ConfigError: a pattern that matches no parameter, or blocks that the encoder does not have.
    """
    parts = set(trained.parts)
    whole = bool(parts & {"embeddings", "language_model"})
    model.freeze_for_training(embeddings="all" if whole else "new" if "new_tokens" in parts else "none")
    model.perceiver.requires_grad_("resampler" in parts)
    for _, block in fusion.gated_blocks(model.lang_encoder):
        block.requires_grad_("gated_blocks" in parts)
    if "language_model" in parts:
        for name, parameter in model.lang_encoder.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or _group("lang_encoder." + name) == "language_model")
    if "attention" in parts:
        for parameter in _attention_matrices(model):
            parameter.requires_grad_(True)
    if "encoder" in parts:
        _unfreeze_encoder(model)
    for block in encoder_blocks(model, trained.encoder_blocks).values():
        block.requires_grad_(True)
    _unfreeze_patterns(model, trained.patterns)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(True)
        elif _IDLE in name:
            parameter.requires_grad_(False)
    return model.train(model.training)


def add_lora(model: NeuroFlamingo, lora: LoraSettings, *, seed: int = 0) -> tuple[str, ...]:
    """Add trainable LoRA adapters in place; other parameters stay frozen or trainable as they were.

    Args:
        model: stays a `NeuroFlamingo`; its outputs are unchanged at first (the adapters' second matrix is zero).
        lora: rank, scale, dropout and target matrices.
        seed: seed of the adapters' first matrix.

    Returns:
        Names of the matrices' modules, in the model's order. If the same adapters already exist, nothing changes.

    Raises:
        ConfigError: a target that matches nothing (the message names all that do), or other adapters already exist.
    """
    from peft import LoraConfig, inject_adapter_in_model

    chosen = lora_targets(model, lora)
    if there := _branches(model):
        if there != dict.fromkeys(chosen, (lora.rank, lora.alpha)):
            raise ConfigError("the model already has other LoRA adapters", hint="merge_lora(model) first")
        return tuple(chosen)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        bias="none",
        target_modules="|".join(map(re.escape, chosen)),
    )
    for kind in ("is_loaded_in_8bit", "is_loaded_in_4bit"):  # where peft looks for it
        if getattr(model.lang_encoder, kind, False):
            setattr(model, kind, True)
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    without_memory = next(model.perceiver.parameters()).is_meta
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft sees itself which matrices are stored [in out], as GPT-2's, and warns of it
        warnings.filterwarnings("ignore", "fan_in_fan_out")
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, low_cpu_mem_usage=without_memory)
    for parameter, trains in before:  # peft freezes everything else
        parameter.requires_grad_(trains)
    model.train(model.training)
    return tuple(chosen)


def lora_targets(model: NeuroFlamingo, lora: LoraSettings) -> list[str]:
    """List the names of the modules that get an adapter.

    Raises:
        ConfigError: a target that matches nothing.
    """
    looked_at = dict(_matrices(model, lora))
    chosen, idle = set(), []
    for target in lora.targets:
        found = {name for name in looked_at if _matches(target, name)}
        chosen |= found
        idle += [] if found else [target]
    if idle or not chosen:
        ends = sorted({_end(name) for name in looked_at})
        raise ConfigError(
            f"trained.lora.targets: {', '.join(idle) or 'the empty list'} matches nothing",
            expected=f"ends of names such as {', '.join(ends)}, or regular expressions on whole names",
            seen=f"{type(model.lang_encoder).__name__}, {len(looked_at)} matrices",
            hint="neuroflamingo inspect shows all names; leave out those that this language model does not have",
        )
    return [name for name in looked_at if name in chosen]


@torch.no_grad()
def merge_lora(model: NeuroFlamingo) -> tuple[str, ...]:
    """Merge every adapter into its matrix in place: the same outputs, and an ordinary model to save.

    Quantised weights are dequantised first, so that no part of an adapter is lost to rounding.

    Returns:
        Names of the matrices' modules.
    """
    changes: dict[str, torch.Tensor] = {}
    for name, layer in _branched(model).items():
        changes[name] = layer.get_delta_weight("default").float()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    if changes and getattr(model.lang_encoder, "hf_quantizer", None) is not None:
        model.lang_encoder.dequantize()
    for name, change in changes.items():
        weight = model.get_parameter(f"{name}.weight")
        weight.copy_((weight.float() + change).to(weight.dtype))
    if hasattr(model, "peft_config"):
        del model.peft_config
    return tuple(changes)


def parameter_groups(model: NeuroFlamingo, optim: OptimSettings) -> list[dict[str, Any]]:
    """Group the trainable parameters for the optimiser, with and without weight decay.

    With `decay: matrices` all trained matrices decay except embeddings and learnt tables (latents, frame and scan
    embeddings); with `decay: gated`, as upstream, all weights of the gated blocks, including norms and gates. Rows of
    new tokens never decay.

    Returns:
        Groups for any optimiser of torch: `params`, `weight_decay`, and, for messages, `name` and `names`. None is
        empty.

    Raises:
        ConfigError: nothing trains.
    """
    groups: dict[Literal["decay", "no_decay"], dict[str, Any]] = {
        "decay": {"name": "decay", "params": [], "weight_decay": optim.weight_decay, "names": []},
        "no_decay": {"name": "no_decay", "params": [], "weight_decay": 0.0, "names": []},
    }
    belongs = grouped_names(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if optim.decay == "gated":
            decays = GATED in name
        else:
            table = belongs[name] in ("new_tokens", "embeddings") or name.rpartition(".")[2] in _ADDED
            decays = parameter.ndim > 1 and not table
        group = groups["decay" if decays else "no_decay"]
        group["params"].append(parameter)
        group["names"].append(name)
    if not any(group["params"] for group in groups.values()):
        raise ConfigError(
            "no parameters are trainable", expected="trained.parts, trained.patterns or trained.lora", seen="none"
        )
    return [group for group in groups.values() if group["params"]]


def describe_groups(model: NeuroFlamingo, optim: OptimSettings) -> str:
    """Describe the groups: how many weights of which parts decay."""
    belongs = grouped_names(model)
    lines = []
    for group in parameter_groups(model, optim):
        counts: dict[str, int] = {}
        for name, parameter in zip(group["names"], group["params"], strict=True):
            counts[belongs[name]] = counts.get(belongs[name], 0) + parameter.numel()
        parts = ", ".join(f"{part} {counts[part]:,}" for part in GROUPS if part in counts)
        lines.append(f"weight decay {group['weight_decay']:g}: {sum(counts.values()):,} weights ({parts})")
    return "\n".join(lines)


def _matrices(model: NeuroFlamingo, lora: LoraSettings) -> Iterator[tuple[str, nn.Module]]:
    """List the modules whose matrix may get an adapter."""
    from transformers.pytorch_utils import Conv1D

    prefixes = ["lang_encoder.", *(["perceiver."] if lora.resampler else [])]
    prefixes += [name + "." for name in encoder_blocks(model, lora.encoder_blocks)]
    heads = {id(model.lang_encoder.get_output_embeddings())}
    for name, module in model.named_modules():
        wanted = name.startswith(tuple(prefixes)) and ".lora_" not in name and id(module) not in heads
        if wanted and isinstance(module, nn.Linear | Conv1D):
            yield name.removesuffix(".base_layer"), module


def _branches(model: nn.Module) -> dict[str, tuple[int, float]]:
    """Return rank and alpha of existing adapters, by the names of the matrices' modules."""
    return {name: (layer.r["default"], layer.lora_alpha["default"]) for name, layer in _branched(model).items()}


def _branched(model: nn.Module) -> dict[str, Any]:
    """List the modules that have an adapter."""
    from peft.tuners.lora.layer import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _matches(target: str, name: str) -> bool:
    if _PLAIN.fullmatch(target):
        return f".{name}".endswith(f".{target}")
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise ConfigError(f"{target} is not a regular expression", seen=str(error)) from error


def _end(name: str) -> str:
    """Shorten a name for messages: `to_q` of `...attn.to_q`, `ff.1` of `...ff.1`."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _attention_matrices(model: NeuroFlamingo) -> Iterator[nn.Parameter]:
    """List the weights of the language model's own attention, found by the class names in transformers."""
    for layer in model.lang_encoder.modules():
        if not isinstance(layer, fusion.FusedLayer):
            continue
        for module in layer.decoder_layer.modules():
            if "attention" in type(module).__name__.lower() and not isinstance(module, nn.LayerNorm):
                yield from (weight for weight in module.parameters() if weight.ndim > 1)


def _unfreeze_encoder(model: NeuroFlamingo) -> None:
    """Unfreeze the parts that the encoder's card declares trainable; the encoder stays in eval mode."""
    if model.encoder is None:
        raise ConfigError(
            "trained.parts names the encoder", expected="model.encoder", seen="precomputed tokens, without an encoder"
        )
    prefixes = getattr(getattr(model.encoder, "card", None), "trainable", ())
    for name, parameter in model.encoder.named_parameters():
        parameter.requires_grad_(not prefixes or name.startswith(tuple(prefixes)))


def _unfreeze_patterns(model: NeuroFlamingo, patterns: Sequence[str]) -> None:
    idle = []
    for pattern in patterns:
        try:
            found = [p for name, p in model.named_parameters() if re.search(pattern, name)]
        except re.error as error:
            raise ConfigError(f"trained.patterns: {pattern} is not a regular expression", seen=str(error)) from error
        for parameter in found:
            parameter.requires_grad_(True)
        idle += [] if found else [pattern]
    if idle:
        raise ConfigError(
            f"trained.patterns: {', '.join(idle)} matches nothing",
            expected="regular expressions that match names of parameters",
            hint="neuroflamingo inspect CONFIG --frozen shows all names",
        )
