"""`load`: a model and its processor by name or folder, from this machine only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from neuroflamingo.checkpoints.device_map import check_offload, place_layers
from neuroflamingo.checkpoints.local_models import find_model
from neuroflamingo.checkpoints.quantization import quantization
from neuroflamingo.device import pick_device
from neuroflamingo.model.folder import CONFIG, check_folder
from neuroflamingo.model.library_errors import blame_file
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.processor import NeuroFlamingoProcessor
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo_preprocessing.errors import ModelError


def load(
    name_or_path: str | Path = "tiny-t1w",
    device: str = "auto",
    dtype: torch.dtype | None = None,
    *,
    device_map: str | Mapping[str, int | str] | None = None,
    max_memory: Mapping[Any, int | str] | None = None,
    offload_folder: str | Path | None = None,
    quantize: Literal["8bit", "4bit"] | None = None,
) -> tuple[NeuroFlamingo, NeuroFlamingoProcessor]:
    """Read a model and its processor, ready to write: frozen as saved, in eval mode, on its device.

    Args:
        name_or_path: an embedded model's name, or a folder that `save_pretrained` wrote.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: of the weights; None: float32, whatever they were stored in.
        device_map: for models larger than the device, which then are for writing only: `auto` or places by the names
            of modules, see `place_layers`.
        max_memory: for `auto`: room by place, such as `{0: "20GiB", "cpu": "60GiB"}`; None: what is free.
        offload_folder: for what goes to the disk.
        quantize: `8bit` or `4bit` weights of the language model's own layers, by bitsandbytes.

    Raises:
        ModelError: unknown name; a pickle in the folder; weights that do not fit (exit 65); no bitsandbytes (69).
        NotFoundError: the folder holds no model.
        ConfigError: the folder's files ask for code to be run.
        UsageError: no such device, a device map that splits a layer, or one that needs an offload folder.
    """
    folder, device = find_model(name_or_path), pick_device(device)
    how: dict[str, Any] = {"dtype": dtype or torch.float32}
    if quantize is not None:
        how |= {"quantization_config": quantization(quantize, dtype), "device_map": {"": device}}
    if device_map is not None:
        check_folder(folder)
        with blame_file(folder / CONFIG, "the config of a model that this version of transformers can build"):
            places = place_layers(folder, device_map, device, max_memory, how["dtype"])
        how |= check_offload(places, offload_folder)
    model = NeuroFlamingo.from_pretrained(folder, **how)
    if "device_map" in how:
        model.freeze_for_training(embeddings="none").requires_grad_(False)
    else:
        model = model.to(device)
    processor = NeuroFlamingoProcessor.from_pretrained(folder)
    _check_tokenizer(model, processor, folder)
    return model.eval(), processor


def _check_tokenizer(model: NeuroFlamingo, processor: NeuroFlamingoProcessor, folder: Path) -> None:
    """Refuse the tokenizer of another model, which would give the special tokens other ids, or ids without embeddings.

    Raises:
        ModelError: names the token (exit 65).
    """
    config, tokenizer = model.config, processor.tokenizer
    table: Any = model.lang_encoder.get_input_embeddings()
    for token, wanted in ((IMAGE, config.image_token_id), (END_OF_CHUNK, config.endofchunk_token_id)):
        found = tokenizer.get_vocab().get(token)
        if found != wanted or len(tokenizer) > table.num_embeddings:
            raise ModelError(
                f"the tokenizer in {folder} is not the one of this model",
                expected=f"{token} with the id {wanted}, and at most {table.num_embeddings} tokens",
                seen=f"{'no such token' if found is None else f'the id {found}'}, {len(tokenizer)} tokens",
                hint="take tokenizer.json and config.json from one model",
                exit_code=65,
            )
