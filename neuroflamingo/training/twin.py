"""Tiny twin of a recipe, derived from it by fixed rules: the same pipeline at a size that any CPU can train.

What stays: the family of the language model and every switch of its architecture, the encoder's class, where gated
blocks stand, what trains, which matrices get branches, the template, the mix, losses, schedule, precision, and that
weights to begin with are read. What shrinks: widths, depths, tokens, batches and counts of steps; the learning rate
rises, and gates begin open. What is made: files of scans (`toy_scans`) and manifests that name them (`toy_data`), a
language model that knows the texts but no scan (`toy_language_model`), and weights to begin with where the recipe has
some. So all that is left to learn is what scans show, and the end shows that it was: see `RELIANCE`. Left out, since
few machines have them: quantisation, trackers.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from neuroflamingo.data.manifest import write_manifest
from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.schema import EncoderSettings, Kind, Recipe
from neuroflamingo.settings import check_settings
from neuroflamingo.training.assembly import build
from neuroflamingo.training.toy_data import toy_samples, toy_tokenizer
from neuroflamingo.training.toy_language_model import teach_texts
from neuroflamingo.training.toy_scans import toy_ending, write_toy_scan
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_preprocessing.drafts import draft_folder
from neuroflamingo_preprocessing.errors import ConfigError, not_created
from neuroflamingo_preprocessing.files import fsync_tree
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores.build import prepare_into_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from neuroflamingo.data.manifest import Sample
    from neuroflamingo_encoders.card import EncoderCard

LOG = logging.getLogger(__name__)

WIDTH, HEADS = 32, 4
_SIZES = {
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "n_embd": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "ffn_dim": 2 * WIDTH,
    "n_inner": 2 * WIDTH,
    "num_attention_heads": HEADS,
    "n_heads": HEADS,
    "n_head": HEADS,
    "head_dim": WIDTH // HEADS,
}
"""Keys of architectures, by their names in transformers, and their toy values."""
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_BEGINS = ("llama", "gemma", "mistral", "mixtral")  # families whose tokenizers put a token before each text
_SAMPLES = {"train": 16, "validation": 8}  # of each kind
_STEPS, _BATCH, _RATE = 200, 8, 5e-3
RELIANCE = 0.02
"""By how much more, in nats a token, a finished twin loses with another patient's scan; its tests hold it to that."""
_GATE = 0.5  # a trained model's gates are open, and a toy has no time to open them
SCANS, STORE = "scans", "store"
_MADE = ("name", "data.source", "data.train", "data.validation", "data.tokens", "data.scans", "log.trackers")
_ABOUT = "twin.json"


def tiny_twin(recipe: Recipe, folder: str | Path, said: Collection[str] = ()) -> Recipe:
    """Write what a recipe needs at toy size into a folder, and give the recipe that trains on it.

    A folder with the twin of the same recipe is used unchanged, so that training resumes.

    Args:
        recipe: any; with a `language_model.architecture`, from which the family and its switches are taken.
        folder: gets `language_model/`, `data/` and, if the recipe begins with weights, `start.safetensors`.
        said: keys, such as `checkpoint.every`, whose values in the recipe the twin takes over as they are.

    Raises:
        ConfigError: a recipe without architecture, or a folder with the twin of another recipe (exit 78).
        OutputError: the folder cannot be written.
    """
    target, recipe_values = Path(folder), recipe.model_dump(mode="json")
    if recipe.model.language_model.architecture is None:
        raise ConfigError(
            "this recipe cannot have a tiny twin",
            expected="model.language_model.architecture, which gives the twin its family",
            seen="none",
            hint="copy model_type and what differs from that family's defaults from the language model's config.json",
        )
    if target.exists():
        _check_same(target, recipe_values)
        return _twin(recipe, target, _read_architecture(target), said)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_created(target, error) from error
    with draft_folder(target) as draft:
        _write(recipe, draft)
        (draft / _ABOUT).write_text(json.dumps(recipe_values, indent=2) + "\n", encoding="utf-8")
        fsync_tree(draft)
        _settle(draft, target, recipe_values)
    return _twin(recipe, target, _read_architecture(target), said)


def tiny_stages(recipe: EmbeddedRecipe, said: Collection[str] = ()) -> EmbeddedRecipe:
    """The stages of an embedded model at toy size: as many numbers as can be, of the same stages; `said`: as above."""
    plain = recipe.model_dump(mode="json")
    plain["name"] = f"{recipe.name}-tiny"
    plain["paint"] |= {"heads": None, "validation_heads": None, "outlines": None}
    for purpose, (first, _) in recipe.paint.ranges().items():
        plain["paint"][purpose] = [first, 4 + 2 * (purpose == "encoder")]
    for stage in ("encoder", "language_model", "fusion"):
        plain[stage]["optim"] |= {"steps": 2, "batch": 2, "warmup": 0}
    plain["encoder"] |= {"first_window": 4, "window_growth": 1}
    plain["language_model"]["layers"] = 2
    plain["fusion"] |= {"latents": 4, "pairs": [recipe.fusion.pairs[0], 4]}
    plain["fusion"]["validation_pairs"] = [recipe.fusion.validation_pairs[0], 4]
    for key in said:
        _keep(plain, recipe.model_dump(mode="json"), key)
    return check_settings(EmbeddedRecipe, plain, f"the tiny twin of {recipe.name}")


def toy_architecture(architecture: Mapping[str, Any], every: int, vocabulary: int) -> dict[str, Any]:
    """Shrink an architecture to toy sizes; the family and all options that are not sizes stay.

    Args:
        architecture: as transformers writes configs.
        every: interval of gated blocks in layers; the toy has this many layers, at least two.
        vocabulary: size of the toy's tokenizer.
    """
    heads = next((architecture[key] for key in ("num_attention_heads", "n_heads", "n_head") if key in architecture), 0)
    toy = {key: _SIZES.get(key, value) for key, value in architecture.items()}
    toy |= {key: max(every, 2) for key in _LAYERS if key in architecture}
    if groups := architecture.get("num_key_value_heads"):
        toy["num_key_value_heads"] = HEADS if groups == heads else min(groups, HEADS // 2)
    toy |= {key: None for key in ("pad_token_id",) if key in architecture or str(toy["model_type"]).startswith("gemma")}
    # a wide start: of a language model that is random and frozen, other words must still be within reach
    wide = {"initializer_range": 1 / math.sqrt(WIDTH)}
    return toy | wide | {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1}


def _settle(draft: Path, target: Path, recipe_values: dict[str, Any]) -> None:
    """Rename the finished folder; if several processes make the same twin, the first one's is used."""
    try:
        draft.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise not_created(target, error) from error
        _check_same(target, recipe_values)


def _check_same(folder: Path, recipe_values: dict[str, Any]) -> None:
    file = folder / _ABOUT
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != recipe_values:
        raise ConfigError(
            f"{folder.name} is not the tiny twin of this recipe",
            expected="a new folder, or the twin of the same recipe",
            seen="the twin of another recipe" if file.is_file() else f"a folder without {_ABOUT}",
            hint="choose another folder, or remove this one",
        )


def _read_architecture(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "architecture.json").read_text(encoding="utf-8"))


def _write(recipe: Recipe, folder: Path) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        tokenizer, samples = _write_data(recipe, folder / "data")
        architecture = _write_language_model(recipe, folder, tokenizer, samples)
        if recipe.model.start is not None:
            _write_start(_twin(recipe, folder, architecture), folder / "start.safetensors")


def _write_data(recipe: Recipe, folder: Path) -> tuple[PreTrainedTokenizerFast, list[Sample]]:
    """Files of scans and manifests that name them; volumes and runs, prepared from them, in a store."""
    card = _toy_card(recipe)
    kinds = [kind for kind in get_args(Kind) if getattr(recipe.data.mix, kind)]
    every_sample: list[Sample] = []
    needed: dict[str, int] = {}
    (folder / SCANS).mkdir(parents=True)
    for split, count in _SAMPLES.items():
        ending, most = toy_ending(card.scan), recipe.data.max_scans
        made = [toy_samples(kind, split, count, folder / SCANS, most, ending) for kind in kinds]
        samples = [sample for some, _ in made for sample in some]
        every_sample += samples
        needed |= {file: pattern for _, files in made for file, pattern in files.items()}
        write_manifest(samples, folder / f"{split}.jsonl")
    for number, (file, pattern) in enumerate(sorted(needed.items())):
        write_toy_scan(folder / SCANS / file, card.scan, pattern, number)
    if _is_stored(recipe):
        prepare_into_store(folder / SCANS, folder / STORE, card, Preparation())
    family = (recipe.model.language_model.architecture or {})["model_type"]
    return toy_tokenizer(every_sample, begins=family.startswith(_BEGINS)), every_sample


def _toy_card(recipe: Recipe) -> EncoderCard:
    """What the toy encoder takes; without an encoder, ready tokens."""
    if recipe.model.encoder is None:
        return precomputed_card(width=recipe.model.token_width or 0)
    toy = _toy_encoder(recipe.model.encoder)
    return build_encoder(toy.name, tiny=True, **toy.options).card


def _is_stored(recipe: Recipe) -> bool:
    """Whether the toy scans are volumes or runs, whose preparation takes longer than a step."""
    chosen = recipe.model.encoder
    return chosen is not None and encoder_card(chosen.name, **chosen.options).scan.modality in ("volume3d", "volume4d")


def _toy_encoder(encoder: EncoderSettings) -> EncoderSettings:
    """Shrink an encoder to its class's own toy size; towers take one slice, or an image of four by four patches."""
    options = dict(encoder.options)
    if options.get("slices"):
        options["slices"] = 1
    if "side" in options and "patch" in options:
        options["side"] = 4 * options["patch"]
    return EncoderSettings(name=encoder.name, options=options, tiny=True)


def _write_language_model(
    recipe: Recipe, folder: Path, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]
) -> dict[str, Any]:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    every, described = recipe.model.cross_attention.every, recipe.model.language_model
    architecture = toy_architecture(_with_sizes(described.architecture or {}), every, len(tokenizer))
    switches = {key: value for key, value in architecture.items() if key != "model_type"}
    config = CONFIG_MAPPING[architecture["model_type"]](**switches)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, described.dtype))
    teach_texts(model, tokenizer, samples, recipe.data.template)
    model.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    (folder / "architecture.json").write_text(json.dumps(architecture, indent=2) + "\n", encoding="utf-8")
    return architecture


def _with_sizes(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """An architecture with the sizes of its family where it leaves them out."""
    from transformers import CONFIG_MAPPING

    defaults = CONFIG_MAPPING[architecture["model_type"]]().to_dict()
    sizes = [key for key in (*_SIZES, *_LAYERS) if key != "head_dim" and defaults.get(key) is not None]
    return {key: defaults[key] for key in sizes} | dict(architecture)


def _write_start(twin: Recipe, file: Path) -> None:
    """Write resampler and gated blocks with open gates, under OpenFlamingo's names."""
    from safetensors.torch import save_file

    plain: dict[str, Any] = {"model": twin.model.model_copy(update={"start": None})}
    plain["trained"] = twin.trained.model_copy(update={"lora": None})
    model, _ = build(twin.model_copy(update=plain))
    for block in model.gated_blocks.values():
        block.attn_gate.data.fill_(_GATE)
        block.ff_gate.data.fill_(_GATE)
    state = model.state_dict()
    kept = {name: value for name, value in state.items() if "gated_cross_attn" in name or name.startswith("perceiver.")}
    save_file({name: value.contiguous() for name, value in kept.items()}, file)


def _twin(recipe: Recipe, folder: Path, architecture: dict[str, Any], said: Collection[str] = ()) -> Recipe:
    """The recipe at toy size, with the paths of what lies in the folder."""
    plain = recipe.model_dump(mode="json")
    plain["name"] = f"{recipe.name}-tiny"
    _shrink_model(plain["model"], recipe, folder, architecture)
    _shrink_trained(plain["trained"])
    plain["data"] |= {"source": str(folder / "data"), "train": ["train.jsonl"], "validation": ["validation.jsonl"]}
    plain["data"] |= {"tokens": None, "workers": 0, "max_tokens": min(recipe.data.max_tokens, 256)}
    plain["data"]["scans"] = str(folder / "data" / STORE) if _is_stored(recipe) else None
    optim, steps = recipe.optim, min(recipe.optim.steps, _STEPS)
    plain["optim"] |= {"steps": steps, "warmup": min(optim.warmup, 2), "accumulate": min(optim.accumulate, 2)}
    plain["optim"] |= {"lr": max(optim.lr, _RATE), "batch": min(optim.batch, _BATCH // min(optim.accumulate, 2))}
    for key in said:
        _keep(plain, recipe.model_dump(mode="json"), key)
    steps = plain["optim"]["steps"]
    rare = {"validation": {"every": -(-steps // 3)}, "checkpoint": {"every": -(-steps // 2)}}
    few = {"validation": {"samples": 16, "write": 2, "max_new_tokens": 24}}
    for section, values in (*rare.items(), *few.items()):
        plain[section] |= {key: value for key, value in values.items() if f"{section}.{key}" not in said}
    plain["log"]["trackers"] = []
    return check_settings(Recipe, plain, f"the tiny twin of {recipe.name}")


def _keep(plain: dict[str, Any], own: dict[str, Any], key: str) -> None:
    """Give a twin the recipe's own value under a dotted key, where it is nothing that the twin makes itself."""
    *sections, last = key.split(".")
    if sections[:1] == ["model"] or key in _MADE:
        LOG.warning("the tiny twin makes its own %s: --set %s says nothing to it", key, key)
        return
    for section in sections:
        plain, own = plain[section], own[section]
    plain[last] = own[last]


def _shrink_trained(trained: dict[str, Any]) -> None:
    """Limit adapters to rank 4, with the same strength, and trained encoder blocks to one."""
    lora = trained["lora"] or {"rank": 1, "alpha": 1.0, "encoder_blocks": 0}
    rank = min(lora["rank"], 4)
    lora |= {"alpha": lora["alpha"] * rank / lora["rank"], "rank": rank}
    for blocks in (trained, lora):
        blocks["encoder_blocks"] = min(blocks["encoder_blocks"], 1)


def _shrink_model(model: dict[str, Any], recipe: Recipe, folder: Path, architecture: dict[str, Any]) -> None:
    if recipe.model.encoder is not None:
        model["encoder"] = _toy_encoder(recipe.model.encoder).model_dump(mode="json")
    model["language_model"] |= {"source": str(folder / "language_model"), "revision": None, "quantize": None}
    model["language_model"]["architecture"] = architecture
    resampler = recipe.model.resampler
    model["resampler"] = resampler | {"depth": 2, "heads": 2, "dim_head": 8}
    model["resampler"]["num_latents"] = min(resampler.get("num_latents", 64), 8)
    model["cross_attention"] |= {"heads": 2, "dim_head": 8, "gate": _GATE}
    if recipe.model.start is not None:
        model["start"] = str(folder / "start.safetensors")
