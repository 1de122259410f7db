"""One process or several: devices and precision by accelerate, gradients by DDP, large models by FSDP2.

accelerate's own FSDP2 support needs the optimiser beforehand and moves weights through the meta device. Here
`fully_shard` runs before the optimiser is made, which then only sees the sharded trainable parameters.
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
    """Make the accelerator of this process; under torchrun or `accelerate launch` it knows the other processes.

    Raises:
        ConfigError: a precision that this device or language model does not support, or a tracker not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    check_trackers(recipe.log.trackers)
    AcceleratorState._reset_state()  # a second training in this process may want another precision
    precision = resolved_precision(recipe)
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=not torch.cuda.is_available(),
        log_with=list(recipe.log.trackers) or None,
        project_dir=folder,
    )


def check_trackers(trackers: tuple[str, ...]) -> None:
    """Check that the trackers are installed; accelerate silently leaves out those that are not.

    Raises:
        ConfigError: one is not.
    """
    from accelerate.tracking import get_available_trackers

    here = [str(tracker) for tracker in get_available_trackers()] if trackers else []
    if missing := [tracker for tracker in trackers if tracker not in here]:
        raise ConfigError(
            f"log.trackers: {', '.join(missing)} is not installed",
            expected=", ".join(here) or "one that is installed",
            seen=", ".join(trackers),
            hint="pip install 'neuroflamingo[track]' for tensorboard; log.jsonl is always written",
        )


def shard(model: NeuroFlamingo) -> None:
    """Shard the model over all processes, in place: each language model layer, each gated block, and the rest.

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
    """Return the module to call in training: the model on its device, sharded in place, in DDP, or unchanged.

    Trainable parameters are float32 whatever the dtype of the frozen ones, or small updates would be rounded away.
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
    """Wrap the module in DDP if there are several processes."""
    if accelerator.num_processes == 1:
        return module
    devices = [accelerator.device] if accelerator.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=devices)


def compile_layers(model: NeuroFlamingo) -> None:
    """Compile the language model's layers and the gated blocks, in place, for texts of any length.

    Layers of one kind share the compiled code. Compiling the whole model took minutes at toy size.
    """
    for module in model.modules():
        if isinstance(module, FusedLayer):
            module.decoder_layer.compile(dynamic=True)
            if module.gated_cross_attn_layer is not None:
                module.gated_cross_attn_layer.compile(dynamic=True)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether `shard` was called on this model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Free the gathered parameters after forward passes without a backward pass, so that they are sharded again."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def without_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """Skip gradient synchronisation in the backward pass; shards always synchronise, which keeps them small."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Map names to trainable parameters, each once."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded, on the CPU; all processes must call it together."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Cut the part of a full tensor that corresponds to the shard `like`, with the same memory layout.

    A fused optimiser reads parameters, gradients and moments in memory order, so their layouts must agree.
    """
    full = full.to(device=like.device, dtype=like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements)
    return torch.empty_like(like, requires_grad=False).copy_(full)


@torch.no_grad()
def put_back(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy unsharded tensors into the parameters of the same names."""
    for name, value in values.items():
        parameters[name].copy_(part_of(value, parameters[name]))


def summed(accelerator: Accelerator, *values: float) -> list[float]:
    """Make a function that sums over all processes in double precision."""
    numbers = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(numbers)
    return numbers.tolist()


@torch.no_grad()
def gather(model: nn.Module) -> None:
    """Undo `shard` after training: all weights unsharded on the CPU, in every process; tied weights stay tied."""
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
    """Move the parts of a batch that the model takes to its device."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name != "kinds"}
    return {name: value.to(device, non_blocking=True) for name, value in tensors.items()} | {"loss_only": True}
