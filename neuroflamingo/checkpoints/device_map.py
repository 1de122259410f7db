"""Device maps for models larger than a device: layers are spread over GPUs, CPU memory and disk, by accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from neuroflamingo.model.config import NeuroFlamingoConfig
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo_preprocessing.errors import UsageError

Places = Mapping[str, int | str]
NO_SPLIT = ("FusedLayer", "PerceiverResampler")  # classes
WHOLE = ("encoder", "perceiver")  # small and always in use: never offloaded


def place_layers(
    folder: Path,
    device_map: str | Places,
    device: str,
    max_memory: Mapping[Any, int | str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, int | str]:
    """Device of each part of a saved model.

    A decoder layer and the gated block before it stay together, so that no residual connection is split; encoder and
    resampler are on the main device.

    Args:
        folder: folder of the model.
        device_map: `auto`: GPUs first, then CPU memory, then disk, as space permits; or devices by module names.
        device: the main device.
        max_memory: for `auto`, maximum memory by device, such as `{0: "20GiB", "cpu": "60GiB"}`; None: all free memory.
        dtype: dtype of the loaded weights.

    Raises:
        UsageError: an unknown device map, or one that splits a layer.
    """
    from accelerate import infer_auto_device_map

    with torch.device("meta"):
        model = NeuroFlamingo(NeuroFlamingoConfig.from_pretrained(str(folder)))
    model.freeze_for_training(embeddings="none")
    model.tie_weights()
    main = _main(device)
    if not isinstance(device_map, str):
        _refuse_split(model, device_map)
        return dict(device_map)
    if device_map != "auto":
        raise UsageError("unknown device map", expected="auto, or places by the names of modules", seen=device_map)
    rest = infer_auto_device_map(
        model,
        max_memory=None if max_memory is None else dict(max_memory),
        no_split_module_classes=[*NO_SPLIT, type(model.encoder).__name__],
        dtype=dtype,
    )
    return _spelled_out(model, rest) | {name: main for name in WHOLE if getattr(model, name) is not None}


def _main(device: str) -> int | str:
    kind = torch.device(device)
    return (kind.index or 0) if kind.type == "cuda" else device


def _spelled_out(model: NeuroFlamingo, places: Places) -> dict[str, int | str]:
    """Expand a device map to layers and the modules beside them, so that single parts can be moved."""
    layers = model.config.decoder_layers
    count = sum(1 for _ in model.lang_encoder.get_submodule(str(layers)).children())
    parts = [f"lang_encoder.{layers}.{n}" for n in range(count)]
    beside = [
        name
        for name, module in model.named_modules()
        if name and not name.startswith(tuple(part + "." for part in parts)) and name not in parts
        if next(module.parameters(recurse=False), None) is not None
        or next(module.buffers(recurse=False), None) is not None
    ]
    found = {name: _place(name, places) for name in [*parts, *beside]}
    return {name: place for name, place in found.items() if not name.startswith(WHOLE)}


def _place(name: str, places: Places) -> int | str:
    """Device of the nearest enclosing module that has one."""
    while name not in places:
        if not name:
            return "cpu"
        name = name.rpartition(".")[0]
    return places[name]


def _refuse_split(model: NeuroFlamingo, places: Places) -> None:
    inside = f"lang_encoder.{model.config.decoder_layers}."
    split = [name for name in places if name.startswith(inside) and "." in name.removeprefix(inside)]
    split += [name for name in places if name.startswith(tuple(part + "." for part in WHOLE))]
    if split:
        raise UsageError(
            "the device map splits what is computed together",
            expected=f"whole layers ({inside}0, ...), encoder and perceiver whole",
            seen=", ".join(split[:5]),
            hint="device_map='auto' never splits them",
        )


def place_bytes(folder: Path, places: Places, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Bytes of each part of a device map; a tensor that several parts share counts in the first one."""
    with torch.device("meta"):
        model = NeuroFlamingo(NeuroFlamingoConfig.from_pretrained(str(folder)))
    model.freeze_for_training(embeddings="none")
    model.tie_weights()
    counted: set[int] = set()
    sizes = {}
    for name in places:
        part = model.get_submodule(name)
        found = {id(value): value for value in (*part.parameters(), *part.buffers())}
        new = [value for key, value in found.items() if key not in counted]
        counted |= found.keys()
        sizes[name] = sum(v.numel() * (dtype.itemsize if v.is_floating_point() else v.element_size()) for v in new)
    return sizes


def check_offload(places: Places, folder: str | Path | None) -> dict[str, Any]:
    """Offload arguments of transformers for a device map.

    Raises:
        UsageError: parts are offloaded to disk, but no folder was given.
    """
    on_disk = [name for name, place in places.items() if place == "disk"]
    if on_disk and folder is None:
        raise UsageError(
            f"{len(on_disk)} parts do not fit into memory",
            expected="offload_folder, where they are kept on the disk",
            seen=", ".join(on_disk[:3]),
            hint="--offload-folder DIR on a fast disk with enough space for the model",
        )
    return {"device_map": dict(places)} | ({"offload_folder": str(folder)} if folder is not None else {})
