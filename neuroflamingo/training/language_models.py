"""Language model and tokenizer of a recipe: from a folder, from a hub, or by architecture with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from neuroflamingo.checkpoints.local_models import find_model, list_models
from neuroflamingo.checkpoints.quantization import quantization
from neuroflamingo.model.config import make_text_config
from neuroflamingo.model.folder import check_plain_data, refuse_adapters
from neuroflamingo.model.library_errors import blame_file
from neuroflamingo.model.plain_files import weight_tensors
from neuroflamingo.recipe.sources import local_folder, planned_folder, refuse_pickles
from neuroflamingo.training.lacking import Lacking
from neuroflamingo_preprocessing.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from neuroflamingo.recipe.schema import LanguageModelSettings


def language_model(
    settings: LanguageModelSettings,
    *,
    meta: bool = False,
    allow_download: bool = False,
    device: str = "cpu",
    lacking: Lacking | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load or build the bare language model and its tokenizer.

    Args:
        settings: see `LanguageModelSettings`. Weights are read from the source; without one they are random.
        meta: build on the meta device; a missing source is then replaced by the architecture, and a missing tokenizer
            by one of the same size.
        allow_download: see `local_folder`.
        device: device of quantised weights (others are moved later).
        lacking: with `meta`, everything is checked that would be checked without, by the headers of the weights;
            nothing is downloaded that the architecture stands in for, and faults are noted.

    Raises:
        ModelError: the source is missing (exit 69), or its weights do not fit (65).
        ConfigError: source and architecture differ, an unknown architecture, or no tokenizer.
    """
    if meta:
        return _outlined(settings, allow_download, lacking)
    folder = None if settings.source is None else local_folder(settings.source, settings.revision, allow_download)
    config = _config(settings, folder)
    model = _random(settings, config) if folder is None else _read(settings, folder, config, device)
    if settings.tokenizer is not None:
        folder = _tokenizer_folder(settings.tokenizer, allow_download)
    return model.eval(), _read_tokenizer(folder)


def _outlined(
    settings: LanguageModelSettings, allow_download: bool, lacking: Lacking | None
) -> tuple[PreTrainedModel, Any]:
    """The language model without memory, and its tokenizer or one of the same size."""
    said = Lacking() if lacking is None else lacking
    folder = _outline_folder(settings, allow_download, said, dry=lacking is not None)
    config = _config(settings, folder)
    with torch.device("meta"):
        model = _random(settings, config)
    if folder is not None and lacking is not None:
        with lacking.noted():
            model = _read(settings, folder, config, "meta")
    with said.noted():
        place = folder
        if settings.tokenizer is not None:
            place = _tokenizer_folder(settings.tokenizer, allow_download, planned=lacking is not None)
            said.downloads += [settings.tokenizer] * (place is None)
        if place is not None or (settings.tokenizer is None and settings.source is None):
            tokenizer = _read_tokenizer(place)
            said.tokenizer = True
            return model.eval(), tokenizer
    return model.eval(), _counting_tokenizer(settings, config)


def _outline_folder(
    settings: LanguageModelSettings, allow_download: bool, lacking: Lacking, *, dry: bool
) -> Path | None:
    """Where the source lies; None if there is none, or the architecture stands in for it."""
    if settings.source is None:
        return None
    if settings.architecture is None or (allow_download and not dry):
        return local_folder(settings.source, settings.revision, allow_download)
    with lacking.noted():
        folder = planned_folder(settings.source, settings.revision, allow_download)
        if folder is None:
            lacking.downloads.append(settings.source)
        else:
            _check_plain_data(folder)
        return folder
    return None


def _random(settings: LanguageModelSettings, config: PretrainedConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype))


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
    placed: dict[str, Any] = {"device_map": {"": device}} if device == "meta" or settings.quantize else {}
    if settings.quantize is not None:
        quantized = quantization(settings.quantize, getattr(torch, settings.dtype))
        placed |= {} if device == "meta" else {"quantization_config": quantized}
    with blame_file(folder / "config.json", "the config and the weights of a language model", "copy it again"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **placed,
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


def _tokenizer_folder(source: str, allow_download: bool, *, planned: bool = False) -> Path | None:
    """Where a tokenizer lies: with an embedded model of that name, in a folder, or in the hub's cache."""
    if source in list_models():
        return find_model(source)
    return (planned_folder if planned else local_folder)(source, None, allow_download)


def _read_tokenizer(folder: Path | None) -> Any:
    if folder is None:
        raise ConfigError(
            "model.language_model has an architecture and no tokenizer",
            expected="a source, or a tokenizer: a folder, or the name of an embedded model",
            seen="neither",
            hint="--set model.language_model.tokenizer=FOLDER",
        )
    about = folder / "tokenizer_config.json"
    check_plain_data(folder, [about] if about.exists() else [])
    with blame_file(folder / "tokenizer.json", "the files of a tokenizer", "copy or download them again"):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


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
