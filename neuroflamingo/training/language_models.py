"""Language model and tokenizer of a recipe: from a folder, from a hub, or by architecture with random weights."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from neuroflamingo.checkpoints.quantization import quantization
from neuroflamingo.model.config import make_text_config
from neuroflamingo.model.folder import check_plain_data, refuse_adapters
from neuroflamingo.model.library_errors import blame_file
from neuroflamingo.model.plain_files import weight_tensors
from neuroflamingo.recipe.sources import is_here, local_folder, refuse_pickles
from neuroflamingo_preprocessing.errors import ConfigError, ModelError, NeuroFlamingoError

if TYPE_CHECKING:
    from neuroflamingo.recipe.schema import LanguageModelSettings


def language_model(
    settings: LanguageModelSettings, *, meta: bool = False, allow_download: bool = False, device: str = "cpu"
) -> tuple[PreTrainedModel, Any]:
    """Load or build the bare language model and its tokenizer.

    Args:
        settings: see `LanguageModelSettings`. Weights are read from the source; without one they are random.
        meta: build on the meta device; a missing source is then replaced by the architecture, and a missing tokenizer
            by one of the same size.
        allow_download: see `local_folder`.
        device: device of quantised weights (others are moved later).

    Raises:
        ModelError: the source is missing (exit 69), or its weights do not fit (65).
        ConfigError: source and architecture differ, an unknown architecture, or no tokenizer.
    """
    folder = None
    if settings.source is not None and not (meta and _only_architecture(settings, allow_download)):
        folder = local_folder(settings.source, settings.revision, allow_download)
    config = _config(settings, folder)
    if folder is None or meta:
        with torch.device("meta") if meta else nullcontext():
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype))
    else:
        model = _read(settings, folder, config, device)
    return model.eval(), _tokenizer(settings, folder, config, allow_download, meta=meta)


def _only_architecture(settings: LanguageModelSettings, allow_download: bool) -> bool:
    assert settings.source is not None
    return settings.architecture is not None and not allow_download and not is_here(settings.source, settings.revision)


def _config(settings: LanguageModelSettings, folder: Path | None) -> PretrainedConfig:
    if folder is None:
        return make_text_config(dict(settings.architecture or {}), "model.language_model.architecture")
    _check_plain_data(folder)
    with blame_file(folder / "config.json", "the config of a language model that this version of transformers knows"):
        config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    described = settings.architecture or {}
    faults = [
        f"{key}: {value!r}, in the source {getattr(config, key, None)!r}"
        for key, value in described.items()
        if getattr(config, key, None) != value
    ]
    if faults:
        raise ConfigError(
            f"model.language_model.architecture differs from that of {settings.source}",
            expected="equal values",
            seen="; ".join(faults),
            hint="correct the architecture, or leave it out to use that of the source",
        )
    return config


def _check_plain_data(folder: Path) -> None:
    """Refuse configs that ask for code, and folders without a config."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no language model in {folder}", expected="config.json", seen="none", exit_code=65)
    refuse_adapters(folder)
    read = ("config.json", "tokenizer_config.json", "generation_config.json")
    check_plain_data(folder, [file for name in read if (file := folder / name).exists()])


def _read(settings: LanguageModelSettings, folder: Path, config: PretrainedConfig, device: str) -> PreTrainedModel:
    refuse_pickles(folder)
    weight_tensors(folder)
    quantized = {}
    if settings.quantize is not None:
        dtype = getattr(torch, settings.dtype)
        quantized = {"quantization_config": quantization(settings.quantize, dtype), "device_map": {"": device}}
    with blame_file(folder / "config.json", "the config and the weights of a language model", "copy it again"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **quantized,
        )
    model, info = loaded
    lacking = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
    if lacking:
        raise ModelError(
            f"the weights in {folder} are not a complete {config.model_type} language model",
            expected="every tensor of it",
            seen=f"{len(lacking)} missing or of another shape ({', '.join(lacking[:3])})",
            hint="check that all parts of the weights are there, and that it is a causal language model",
            exit_code=65,
        )
    return model


def _tokenizer(
    settings: LanguageModelSettings,
    folder: Path | None,
    config: PretrainedConfig,
    allow_download: bool,
    *,
    meta: bool,
) -> Any:
    if settings.tokenizer is not None and not (meta and not is_tokenizer_here(settings.tokenizer)):
        folder = local_folder(settings.tokenizer, None, allow_download)
        about = folder / "tokenizer_config.json"
        check_plain_data(folder, [about] if about.exists() else [])
    if folder is not None:
        with blame_file(folder / "tokenizer.json", "the files of a tokenizer", "copy or download them again"):
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if not meta:
        raise ConfigError(
            "model.language_model has an architecture and no tokenizer",
            expected="a source, or the folder of a tokenizer",
            hint="--set model.language_model.tokenizer=FOLDER",
        )
    return _counting_tokenizer(settings, config)


def is_tokenizer_here(source: str) -> bool:
    """Tell whether a tokenizer is a local folder or in the hub's cache."""
    try:
        return next(local_folder(source).glob("tokenizer*"), None) is not None
    except NeuroFlamingoError:
        return False


def _counting_tokenizer(settings: LanguageModelSettings, config: PretrainedConfig) -> Any:
    """Make a placeholder with as many tokens as the real tokenizer, so that added tokens get their true ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    count = settings.tokenizer_size or config.vocab_size
    padding = getattr(config, "pad_token_id", None)
    tokens = {f"token{number}": number for number in range(count)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(tokens, unk_token="token0")),
        unk_token="token0",
        pad_token=None if padding is None or not 0 <= padding < count else f"token{padding}",
    )
