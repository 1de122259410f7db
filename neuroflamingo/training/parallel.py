"""One process or many: devices and precision by accelerate, gradients by DDP, large models by FSDP2 (`fully_shard`).

accelerate's own road to FSDP2 needs the optimiser beforehand and moves weights through the meta device; sharding here
is done before the optimiser is made, which then only ever sees the sharded parameters that train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from neuroflamingo.model.fusion import FusedLayer
from neuroflamingo.training.precision import resolved_precision
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
    from neuroflamingo.recipe.schema import Recipe, RunSettings


def accelerate_for(recipe: Recipe | EmbeddedRecipe, folder: str | Path | None = None) -> Accelerator:
    """The accelerator of this process; started by torchrun or `accelerate launch`, it knows the others.

    Raises:
        ConfigError: a precision that this device or this language model does not have, or a tracker that is not here.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    _check_trackers(recipe.log.trackers)
    AcceleratorState._reset_state()  # a second training in this process may want another precision
    precision = resolved_precision(recipe)
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=not torch.cuda.is_available(),
        log_with=list(recipe.log.trackers) or None,
        project_dir=folder,
    )


def _check_trackers(trackers: tuple[str, ...]) -> None:
    """Accelerate itself leaves out what is not installed, without a word."""
    from accelerate.tracking import get_available_trackers

    here = [str(tracker) for tracker in get_available_trackers()] if trackers else []
    if missing := [tracker for tracker in trackers if tracker not in here]:
        raise ConfigError(
            f"log.trackers: {', '.join(missing)} is not here",
            expected=", ".join(here) or "one that is installed",
            seen=", ".join(trackers),
            hint="pip install 'neuroflamingo[track]' for tensorboard; log.jsonl is always written",
        )


def shard(model: NeuroFlamingo) -> None:
    """Shard the model over all processes, in place: each layer of the language model, each gated block, and the rest.

    Frozen parameters are sharded like the others. Embeddings and head stay in one unit with the rest, so that tied
    ones stay tied.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for module in model.modules():
        if isinstance(module, FusedLayer):
            fully_shard(module.decoder_layer)
            if module.gated_cross_attn_layer is not None:
                fully_shard(module.gated_cross_attn_layer)
                register_fsdp_forward_method(module.gated_cross_attn_layer, "project")  # called on its own when writing
    fully_shard(model, reshard_after_forward=False)


def runner_of(model: NeuroFlamingo, settings: RunSettings, accelerator: Accelerator) -> nn.Module:
    """What is called in training: the model on its device, sharded in place, in DDP, or as it is.

    What trains is float32 whatever the frozen parts are stored in, or small updates would be lost in rounding.
    """
    model.to(accelerator.device)  # type: ignore[arg-type]
    for _, p in trained(model):
        p.data = p.data.float()
    if settings.gradient_checkpointing != "off":
        enable = getattr(model, "activation_checkpointing_enable", None)  # newer releases of transformers call it so
        (enable or model.gradient_checkpointing_enable)()
        model.checkpoint_offload = settings.gradient_checkpointing == "offload"
    if settings.parallel == "fsdp" and accelerator.num_processes > 1:
        shard(model)
    if settings.compile:
        compile_layers(model)
    return model if is_sharded(model) else data_parallel(model, accelerator)


def data_parallel(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The module, in DDP if there are several processes."""
    if accelerator.num_processes == 1:
        return module
    devices = [accelerator.device] if accelerator.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=devices)


def compile_layers(model: NeuroFlamingo) -> None:
    """Compile the language model's layers and the gated blocks, in place, for texts of any length.

    Layers of one kind share what is compiled. The model as a whole took minutes to compile at toy size.
    """
    for module in model.modules():
        if isinstance(module, FusedLayer):
            module.decoder_layer.compile(dynamic=True)
            if module.gated_cross_attn_layer is not None:
                module.gated_cross_attn_layer.compile(dynamic=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on this model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """After forward passes without a backward pass: what they gathered is let go, and parameters are shards again."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def without_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """For backward passes whose gradients are not yet needed elsewhere. Shards sync always, which keeps them small."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that train, by name, each once."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded, on the CPU; every process must ask at once."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that belongs where `like` is, laid out in memory as that is.

    A fused optimiser walks through parameters, gradients and moments side by side, in the order of memory.
    """
    full = full.to(device=like.device, dtype=like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements)
    return torch.empty_like(like, requires_grad=False).copy_(full)


@torch.no_grad()
def put_back(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into parameters of those names."""
    for name, value in values.items():
        parameters[name].copy_(part_of(value, parameters[name]))


def summed(accelerator: Accelerator, *values: float) -> list[float]:
    """Sums over all processes, in double precision."""
    numbers = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(numbers)
    return numbers.tolist()


@torch.no_grad()
def gather(model: nn.Module) -> None:
    """Undo `shard` after training: all weights whole on the CPU, in every process; ties stay ties."""
    whole_ones: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if isinstance(p, DTensor):
                if id(p) not in whole_ones:
                    whole_ones[id(p)] = nn.Parameter(whole(p), requires_grad=p.requires_grad)
                module._parameters[name] = whole_ones[id(p)]
        if is_sharded(module):
            module.__class__ = type(module).__bases__[1]  # `fully_shard` put a subclass in its place
            module.__dict__.pop("project", None)
    model.cpu()


def inputs_of(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What of a batch the model takes, on its device."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name != "kinds"}
    return {name: value.to(device, non_blocking=True) for name, value in tensors.items()} | {"loss_only": True}
