"""Safety check of a model folder before anything is loaded: it holds data only, within limits; the card of its encoder.

Nothing is built here, and neither torch nor transformers is needed. What a file asks for is judged by its own words: a
config with ten million layers is refused as it stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from neuroflamingo.model.plain_files import check_plain_files, weight_files
from neuroflamingo.model.prompt_forms import TrainedPrompts
from neuroflamingo.model.tokens import ENCODER_CARD
from neuroflamingo.settings import check_settings, faults_in_words, read_model_json, refuse_remote_code
from neuroflamingo_encoders.card import EncoderCard, current_digest
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError
from neuroflamingo_preprocessing.files import sha256_of, sha256_of_text

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".joblib")
TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
"""Patterns of the files that a tokenizer is read from."""
MOST_LAYERS = 1024
"""Most layers, blocks or experts of a config; the largest published language models have 126 layers, 512 experts."""
MOST_BEAMS = 1024
_COUNTS = re.compile(r"(layers?|depths?|blocks|stages|experts)$")
_IDS = re.compile(r"(token_ids?|suppress_tokens|bad_words_ids|decoder_ids)$")
_USED_IDS = re.compile(r"(suppress_tokens|bad_words_ids|forced_\w+_token_id|image_token_id|endofchunk_token_id)$")
_CODE = ("compile_config", "watermarking_config")
_BEAMS = ("num_beams", "num_beam_groups", "num_return_sequences")
_NUMBERS = {*_BEAMS, "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"} | {
    "repetition_penalty",
    "length_penalty",
    "diversity_penalty",
    "no_repeat_ngram_size",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
}

NEVER_OPENED = re.compile(r"(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth|training_args\.bin")
"""Files of a checkpoint of transformers' Trainer that are no part of the model: they may lie there, unread."""


LIKENESS = "likeness.safetensors"
"""In the folder of a model that knows which heads are like its own: see `evaluation.likeness`."""
DONE = "training.json"
"""In the folder of a model that a training made: how far the training went."""


def model_name(folder: Path) -> str:
    """What reports call a model: its folder's name; of a finished training, whose folder is `model`, its run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" and (folder / DONE).is_file() else folder.name


def check_folder(path: str | Path) -> Path:
    """Check that a model folder holds data only, within limits.

    Raises:
        NotFoundError, ModelError, ConfigError: see `from_pretrained`.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise NotFoundError(
            f"there is no model in {folder}",
            expected="a folder with config.json and safetensors",
            seen="no such folder" if not folder.is_dir() else "no config.json in it",
            hint="pass a folder that save_pretrained wrote, or the name of an embedded model",
        )
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in PICKLES and not NEVER_OPENED.fullmatch(file.relative_to(folder).as_posix()):
            raise _refusal(file, "weights in safetensors only", "a file that may be a pickle", "convert it first")
    refuse_adapters(folder)
    check_plain_data(folder, sorted(folder.glob("*.json")))
    kind = read_model_json(folder / CONFIG).get("model_type")
    if kind != "neuroflamingo":
        raise _refusal(
            folder / CONFIG, "model_type: neuroflamingo", f"model_type: {kind!r:.40}", "take a model's folder"
        )
    return folder


def refuse_adapters(folder: Path) -> None:
    """Refuse an adapter (LoRA) beside a model, which transformers would merge into it without a word.

    Raises:
        ModelError: names the file (exit 65).
    """
    for file in sorted(folder.glob("adapter_*")):
        if file.name.startswith(("adapter_config", "adapter_model")):
            raise _refusal(file, "one whole model", "an adapter, which would change it unasked", "merge it first")


def check_plain_data(folder: Path, files: Iterable[Path]) -> None:
    """Check a folder that transformers is to read: no odd file; in these JSON files neither code nor absurd numbers.

    Raises:
        ModelError: names the file (exit 65).
        ConfigError: a file asks for code to be run.
    """
    check_plain_files(folder)
    for file in files:
        values = read_model_json(file, object)
        refuse_remote_code(values, str(file))
        if file.name in _CHECKS:
            for seen, expected in _CHECKS[file.name](values):
                raise _refusal(file, expected, seen, "take the file of the original model")


def read_card(folder: Path) -> EncoderCard | None:
    """The card of a model's encoder, which is that of its config; None if the model has no encoder.

    Raises:
        ModelError: it is no card, or not the one in `config.json` (exit 65).
    """
    described = read_model_json(folder / CONFIG).get("encoder")
    described = described if isinstance(described, dict) else {}
    file = folder / ENCODER_CARD
    if not file.is_file():
        return _card_of(folder / CONFIG, described["card"]) if described.get("card") else None
    card = _card_of(file, read_model_json(file))
    stored = current_digest(described.get("card") or card.model_dump(mode="json"), described.get("digest"))
    declared = _card_of(folder / CONFIG, described["card"]) if described.get("card") else card
    if described and (card != declared or stored != card.digest):
        raise ModelError(
            f"{ENCODER_CARD} in {folder} is not the card that this model was saved with",
            expected=f"the card in config.json, with the digest {str(stored)[:16]}",
            seen=f"another card, with the digest {card.digest[:16]}",
            hint="take both files from one model: scans would be prepared for another encoder",
            exit_code=65,
        )
    return card


def _card_of(file: Path, values: Any) -> EncoderCard:
    try:
        return EncoderCard.model_validate(values)
    except ValidationError as error:
        raise ModelError(
            f"the encoder's card in {file} cannot be used",
            expected="a card as save_pretrained writes it",
            seen="; ".join(faults_in_words(EncoderCard, error)[:3]),
            hint="take the file of the original model, or install the version that wrote it",
            exit_code=65,
        ) from error


def read_prompts(folder: Path) -> TrainedPrompts | None:
    """The record in a model's folder; None if it has none.

    Raises:
        ConfigError: it has wrong keys or values.
    """
    stored = read_model_json(folder / CONFIG).get("prompts")
    return None if stored is None else check_settings(TrainedPrompts, stored, f"prompts in {folder / CONFIG}")


def loaded_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a model and its tokenizer are loaded from, by name; others are not opened."""
    names = {file.name for file in weight_files(folder)} | {CONFIG, GENERATION, ENCODER_CARD}
    if "model.safetensors" not in names:
        names.add("model.safetensors.index.json")
    patterns = (*sorted(names), LIKENESS, *TOKENIZER_FILES)
    files = (file for file in sorted(folder.iterdir()) if any(fnmatch(file.name, pattern) for pattern in patterns))
    return {file.name: sha256_of(file) for file in files if file.is_file()}


def digest_of_files(files: dict[str, str]) -> str:
    """One SHA-256 over names and hashes, as `sha256sum FILES | sha256sum` prints it for files in alphabetical order."""
    return sha256_of_text("".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())))


def _refusal(file: Path, expected: str, seen: str, hint: str) -> ModelError:
    return ModelError(
        f"{file.name} in {file.parent} is refused",
        expected=expected,
        seen=seen,
        hint=f"{hint}, or move it out of the folder",
        exit_code=65,
    )


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values at any depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield str(key), value
            yield from _entries(value)
    elif isinstance(values, list):
        for value in values:
            yield from _entries(value)


def _numbers(value: Any) -> list[Any]:
    """Numbers in a value: itself, or the members of a list, at any depth."""
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _config_faults(values: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a `config.json`: `(seen, expected)` of each fault."""
    if not isinstance(values, dict):
        yield type(values).__name__, "keys and values"
        return
    if "transformers_weights" in values:
        yield "transformers_weights, another name for the weights", "weights in model.safetensors"
    for key, value in _entries(values):
        for number in _numbers(value):
            if math.isnan(number):
                yield f"{key}: NaN", "numbers"
            elif abs(number) > 2**63 and math.isfinite(number):
                yield f"{key}: a number of {len(str(int(number)))} digits", "numbers that a machine can hold"
            elif _COUNTS.search(key) and number > MOST_LAYERS:
                yield f"{key}: {number}", f"at most {MOST_LAYERS}"


def _generation_faults(values: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a `generation_config.json`."""
    if not isinstance(values, dict):
        yield type(values).__name__, "keys and values"
        return
    for key, value in values.items():
        if (isinstance(value, dict) and value) or (key in _CODE and value is not None):
            yield (
                f"the key '{key}'",
                "plain settings: nothing is compiled, and no text is marked, because a file says so",
            )
        elif key in _NUMBERS and value is not None and _numbers(value) != [value]:
            yield f"{key}: {value!r:.40}", "a number"
        elif key in _BEAMS and any(not 1 <= number <= MOST_BEAMS for number in _numbers(value)):
            yield f"{key}: {value!r:.40}", f"1 to {MOST_BEAMS}"
        elif _IDS.search(key) and value is not None and not _numbers(value):
            yield f"{key}: {value!r:.40}", "token ids"


def token_ids(values: Any) -> Iterator[tuple[str, int]]:
    """Ids in a config or in settings of generation that must have a row in the embeddings, with their keys."""
    for key, value in _entries(values):
        if _USED_IDS.search(key):
            yield from ((key, int(number)) for number in _numbers(value))


def _tokenizer_faults(values: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a `tokenizer_config.json`."""
    if not isinstance(values, dict):
        yield type(values).__name__, "keys and values"
        return
    for key, value in values.items():
        if key.endswith("_file") and isinstance(value, str) and Path(value).name != value:
            yield f"{key}: a file elsewhere", "files of the folder only"


_CHECKS = {CONFIG: _config_faults, GENERATION: _generation_faults, TOKENIZER: _tokenizer_faults}
