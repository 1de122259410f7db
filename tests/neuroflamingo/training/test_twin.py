"""Tiny twins: the same recipe at toy size, on data whose words depend on the scans, trained by the same road."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import neuroflamingo
from neuroflamingo.data.filters import check_leaks, keep
from neuroflamingo.data.manifest import read_manifest
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.find import CONFIG_FOLDERS
from neuroflamingo.recipe.read import load_any_recipe, load_recipe
from neuroflamingo.recipe.schema import KINDS, Recipe
from neuroflamingo.training import train, twin
from neuroflamingo.training.assembly import build
from neuroflamingo.training.toy_data import PATTERNS, toy_samples, toy_tokenizer
from neuroflamingo.training.toy_scans import toy_ending, write_toy_scan
from neuroflamingo.training.twin import RELIANCE, tiny_stages, tiny_twin, toy_architecture
from neuroflamingo_encoders import build_encoder
from neuroflamingo_encoders.registry import encoder_card, load_dotted
from neuroflamingo_preprocessing.errors import ConfigError, OutputError
from neuroflamingo_preprocessing.preparation import prepare
from tests.neuroflamingo.recipe.shipped_recipes import RECIPES, full_size

QUICK = "openflamingo-3b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("twins")


def twin_of(name: str, folder: Path) -> tuple[Recipe, Recipe]:
    recipe = load_recipe(RECIPES[name])
    return recipe, tiny_twin(recipe, folder / name)


def encoder_of(recipe: Recipe):
    assert recipe.model.encoder is not None
    return build_encoder(recipe.model.encoder.name, tiny=True, **recipe.model.encoder.options)


def ends(targets: set[str]) -> set[str]:
    return {name.split(".lora_")[0].split(".layers.")[-1].partition(".")[2] for name in targets}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_twin_is_its_recipe_at_toy_size(name: str, folder: Path) -> None:
    recipe, twin = twin_of(name, folder)
    described, toy = recipe.model.language_model.architecture, twin.model.language_model.architecture
    assert described and toy and toy["model_type"] == described["model_type"]
    for key in ("use_parallel_residual", "tie_word_embeddings", "rope_parameters"):
        assert toy.get(key) == described.get(key)
    for section, keys in (
        ("data", ("template", "mix", "loss", "reduction", "max_scans", "pack", "too_long")),
        ("optim", ("schedule", "decay", "weight_decay", "clip_norm", "label_smoothing", "ema")),
        ("trained", ("parts", "patterns")),
    ):
        ours, theirs = getattr(recipe, section), getattr(twin, section)
        assert all(getattr(ours, key) == getattr(theirs, key) for key in keys)
    assert twin.run == recipe.run and twin.media_placement == recipe.media_placement
    lora, small = recipe.trained.lora, twin.trained.lora
    if lora is None or small is None:
        assert lora is small
    else:
        assert small.targets == lora.targets and small.alpha / small.rank == lora.alpha / lora.rank

    model, processor = build(twin)
    _, full = full_size(name)
    assert type(model.lang_encoder) is type(full.lang_encoder) and type(model.encoder) is type(full.encoder)
    branches = [{key for key, _ in m.named_parameters() if ".lora_" in key} for m in (model, full)]
    assert ends(branches[0]) == ends(branches[1])
    assert sum(p.numel() for p in model.parameters()) < 300_000 and model.gated_blocks
    assert all(block.attn_gate.item() != 0 for block in model.gated_blocks.values()), "a toy's gates are open"
    assert processor.card is not None and processor.card.name == full.encoder.card.name  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_twins_data_can_be_trained_on(name: str, folder: Path) -> None:
    recipe, twin = twin_of(name, folder)
    source = Path(twin.data.source)
    train_set = read_manifest([source / file for file in twin.data.train])
    held_out = read_manifest([source / file for file in twin.data.validation])
    assert {sample.kind for sample in train_set} == {kind for kind in KINDS if getattr(recipe.data.mix, kind)}
    assert len(keep(train_set)[0]) == len(train_set) and not check_leaks(train_set, held_out).nameless
    files = {Path(scan) for sample in (*train_set, *held_out) for scan in sample.scans}
    spec = encoder_of(twin).card.scan
    assert files and {file.name.endswith(toy_ending(spec)) for file in files} == {True}
    assert all(spec.accepts(prepare(file, spec).tensor.shape) for file in files)
    most = max(len(sample.scans) for sample in train_set)
    assert most == min(recipe.data.max_scans, 2), "several pictures a question, where the recipe allows them"


def test_what_is_said_follows_from_the_scan_alone(tmp_path: Path) -> None:
    for text, findings in PATTERNS:
        report = parse_report(text)
        assert report.findings == findings and report.coverage == 1.0
    for kind in KINDS[:3]:
        samples, patterns = toy_samples(kind, "train", 16, tmp_path, 4, ".nii")
        assert set(patterns) == {Path(name).name for sample in samples for name in sample.scans}
        for sample in samples:
            shown = [patterns[Path(name).name] for name in sample.scans]
            said = (sample.text or "") + " ".join(turn.text for turn in sample.turns)
            assert all(PATTERNS[pattern][0] in said for pattern in shown)
            if sample.findings is not None:
                assert sample.findings == PATTERNS[shown[0]][1]


def test_a_pattern_can_be_told_from_its_file_and_no_two_files_are_equal(tmp_path: Path) -> None:
    for name in ("brainiac-vitb", "clip-vit-l14", "swift"):
        spec = build_encoder(name, tiny=True).card.scan
        for pattern in range(len(PATTERNS)):
            files = [tmp_path / f"{version}{toy_ending(spec)}" for version in range(2)]
            for seed, file in enumerate(files):
                write_toy_scan(file, spec, pattern, seed)
            one, other = (np.squeeze(prepare(file, spec).tensor) for file in files)
            one = one[..., 0] if name == "swift" else one
            assert not np.array_equal(one, other)
            (x, y, z), far = one.shape, one.std() / 5
            if name == "clip-vit-l14":  # a head in the middle, and bright sides around it
                shown = (one[0, y // 2, z // 2], one[x // 2, 0, z // 2])
            else:
                shown = (one[: x // 2].mean() - one[x // 2 :].mean(), one[:, : y // 2].mean() - one[:, y // 2 :].mean())
            assert (shown[0] > far, shown[1] > far) == (bool(pattern & 1), bool(pattern & 2)), (
                name,
                pattern,
                shown,
                far,
            )


@pytest.mark.parametrize("begins", [False, True])
def test_the_tokenizer_reads_any_text(begins: bool, tmp_path: Path) -> None:
    samples, _ = toy_samples("instructions", "train", 8, tmp_path, 1, ".nii")
    tokenizer = toy_tokenizer(samples, begins=begins)
    text = "Größe: 12 mm – ¿normal? 正常\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (ids[0] == tokenizer.bos_token_id) is begins
    assert toy_tokenizer(samples, begins=begins).get_vocab() == tokenizer.get_vocab()
    talk = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    shown = tokenizer.apply_chat_template(talk, tokenize=False)
    assert shown == "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nB.<|im_end|>\n"


def test_sizes_shrink_and_switches_stay() -> None:
    toy = toy_architecture(
        {"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "x": True}
        | {"num_hidden_layers": 28},
        every=4,
        vocabulary=300,
    )
    assert toy["hidden_size"] == 32 and toy["num_attention_heads"] == 4 and toy["num_key_value_heads"] == 2
    assert toy["num_hidden_layers"] == 4 and toy["vocab_size"] == 300 and toy["x"] is True
    assert "n_layers" not in toy


def test_a_twin_that_is_there_is_used_and_one_of_another_recipe_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES[QUICK])
    twin = tiny_twin(recipe, tmp_path / "twin")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "twin").rglob("*")}
    assert tiny_twin(recipe, tmp_path / "twin") == twin
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "twin").rglob("*")} == times
    with pytest.raises(ConfigError, match="not the tiny twin of this recipe") as caught:
        tiny_twin(recipe.model_copy(update={"seed": 1}), tmp_path / "twin")
    assert caught.value.exit_code == 78
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="a folder without"):
        tiny_twin(recipe, tmp_path / "mine")


def test_the_same_recipe_gives_the_same_twin(tmp_path: Path) -> None:
    recipe, state = load_recipe(RECIPES[QUICK]), torch.get_rng_state()
    for name in "ab":
        tiny_twin(recipe, tmp_path / name)
    assert torch.equal(torch.get_rng_state(), state)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    files = [file for file in files if file.parts[:2] != ("data", "store")]  # its log and summary hold times
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_recipe_without_architecture_has_no_twin(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES[QUICK], ["model.language_model.source=here", "model.language_model.architecture=null"])
    with pytest.raises(ConfigError, match="cannot have a tiny twin"):
        tiny_twin(recipe, tmp_path / "twin")
    assert not list(tmp_path.iterdir())


def test_what_is_said_on_the_command_line_is_what_the_twin_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets = ["checkpoint.every=2", "validation.every=100", "optim.steps=7", "optim.lr=0.001", "data.source=elsewhere"]
    recipe = load_recipe(RECIPES[QUICK], sets)
    said = [one.partition("=")[0] for one in sets]
    twin = tiny_twin(recipe, tmp_path / "twin", said)
    assert (twin.checkpoint.every, twin.validation.every, twin.optim.steps, twin.optim.lr) == (2, 100, 7, 0.001)
    assert twin.data.source == str(tmp_path / "twin" / "data") and "makes its own data.source" in caplog.text
    assert tiny_twin(recipe, tmp_path / "twin").checkpoint.every == 4, "what nobody said, the toy decides"
    stages = load_any_recipe(CONFIG_FOLDERS[-1] / "tiny-t1w.yaml", ["encoder.optim.steps=5", "checkpoint.every=3"])
    assert isinstance(stages, EmbeddedRecipe)
    toy = tiny_stages(stages, ["encoder.optim.steps", "checkpoint.every"])
    assert (toy.encoder.optim.steps, toy.checkpoint.every, toy.fusion.optim.steps) == (5, 3, 2)


def test_nothing_is_left_of_a_twin_that_could_not_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(twin, "fsync_tree", full)
    with pytest.raises(OSError, match="No space"):
        tiny_twin(load_recipe(RECIPES[QUICK]), tmp_path / "twin")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        tiny_twin(load_recipe(RECIPES[QUICK]), tmp_path / "file" / "twin")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_twin_trains_and_lowers_its_loss(name: str, tmp_path: Path) -> None:
    path = train(RECIPES[name], folder=tmp_path / "run", tiny=True, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 3 and max(losses[1:]) < 0.9 * losses[0], losses
    assert lines[-1]["validation_reliance"] > RELIANCE, "what was learnt was learnt from the scans"
    model, processor = neuroflamingo.load(path, device="cpu")
    assert processor.card is not None
    card = encoder_card(processor.card.name, **dict(processor.card.options))
    assert type(model.encoder) is load_dotted(card.name, card.implementation)
    assert not any(".lora_" in key for key in model.state_dict()), "branches are merged"


@pytest.mark.slow
def test_the_twin_of_a_recipe_for_ready_tokens_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(RECIPES["openflamingo-3b"]).model_dump(mode="json")
    recipe["model"] |= {"encoder": None, "token_width": 16}
    (tmp_path / "ready.yaml").write_text(yaml.safe_dump(recipe))
    assert train("ready.yaml", ["optim.steps=2"], tiny=True, quiet=True).is_dir()


def test_an_architecture_that_leaves_its_sizes_out_is_shrunk_too() -> None:
    whole = twin._with_sizes({"model_type": "llama"})
    assert whole["hidden_size"] == 4096
    small = toy_architecture(whole, 4, 100)
    assert (small["hidden_size"], small["num_hidden_layers"], small["intermediate_size"]) == (32, 4, 64)
    assert twin._with_sizes(small) == small
