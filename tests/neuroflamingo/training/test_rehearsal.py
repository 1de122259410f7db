"""`train --dry-run` stops at what the training would stop at, counts what that counts, and writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuroflamingo.cli import main
from neuroflamingo.data.batches import TrainingBatches
from neuroflamingo.model.summary import group_lines, parameter_rows
from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.find import find_config
from neuroflamingo.recipe.read import load_any_recipe, load_recipe
from neuroflamingo.training.assembly import build
from neuroflamingo.training.rehearsal import rehearse
from neuroflamingo.training.run import train
from tests.neuroflamingo.training.small_runs import write_language_model, write_samples
from tests.tiny import WIDTH

Values = dict[str, Any]
EMBEDDED_TEXT = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 2048,
    "vocab_size": 752,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples and a language model."""
    folder = tmp_path_factory.mktemp("parts")
    write_samples(folder / "data")
    write_samples(folder / "data", 4, 100, "validation.jsonl")
    write_language_model(folder / "lm")
    return folder


@pytest.fixture
def here(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Values:
    """A recipe that trains, in the working directory with all that it names."""
    shutil.copytree(parts, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return {
        "name": "trial",
        "model": {
            "token_width": WIDTH,
            "language_model": {"source": "lm"},
            "resampler": {"depth": 1, "num_latents": 4, "heads": 2, "dim_head": 8},
            "cross_attention": {"heads": 2, "dim_head": 8},
        },
        "data": {"source": "data", "train": ["train.jsonl"], "validation": ["validation.jsonl"], "max_tokens": 24},
        "optim": {"steps": 1, "batch": 2},
        "run": {"precision": "fp32"},
        "validation": {"write": 0},
    }


def run(values: Values, *words: str) -> int:
    Path("trial.yaml").write_text(yaml.safe_dump(values))
    return main(["train", "trial.yaml", "--quiet", *words])


def tree() -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path().rglob("*")}


def no_language_model(values: Values) -> None:
    values["model"]["language_model"] = {"source": "nobody/nothing", "architecture": {"model_type": "llama"}}


def cut_weights(values: Values) -> None:
    file = Path("lm/model.safetensors")
    file.write_bytes(file.read_bytes()[:-100])


def another_architecture(values: Values) -> None:
    config = json.loads(Path("lm/config.json").read_text())
    Path("lm/config.json").write_text(json.dumps(config | {"intermediate_size": 52}))


def no_tokenizer(values: Values) -> None:
    values["model"]["language_model"]["tokenizer"] = "nowhere"


def no_start(values: Values) -> None:
    values["model"]["start"] = "tiny-t1"


def start_of_another_size(values: Values) -> None:
    values["model"]["start"] = "tiny-t1w"


def no_manifest(values: Values) -> None:
    values["data"]["train"] = ["trian.jsonl"]


def no_data(values: Values) -> None:
    values["data"]["source"] = "nowhere"


def no_scan(values: Values) -> None:
    Path("data/4.npy").unlink()


def scan_of_another_width(values: Values) -> None:
    import numpy as np

    for file in Path("data").glob("*.npy"):
        np.save(file, np.zeros((7, WIDTH + 1), np.float32))


def no_store(values: Values) -> None:
    values["data"]["tokens"] = "store"


def leak(values: Values) -> None:
    values["data"]["validation"] = ["train.jsonl"]


def no_kind(values: Values) -> None:
    values["data"]["mix"] = {"pairs": 0, "text": 0}


def no_template(values: Values) -> None:
    values["data"]["template"] = "chat"


def no_tracker(values: Values) -> None:
    values["log"] = {"trackers": ["comet_ml"]}


def half_precision(values: Values) -> None:
    values["model"]["language_model"]["dtype"] = "bfloat16"


def no_pattern(values: Values) -> None:
    values["trained"] = {"patterns": ["nothing_at_all"]}


def a_folder_that_is_no_run(values: Values) -> None:
    Path("runs/trial").mkdir(parents=True)
    Path("runs/trial/mine.txt").write_text("mine")


def a_file_for_a_folder(values: Values) -> None:
    Path("runs").write_text("a file")


def run_of_another_recipe(values: Values) -> None:
    assert run(values | {"seed": 5}) == 0


def no_encoder_weights(values: Values) -> None:
    del values["model"]["token_width"]
    values["model"]["encoder"] = {"name": "vit3d", "weights": "mine.safetensors"}


FAULTS = [
    no_language_model,
    cut_weights,
    another_architecture,
    no_tokenizer,
    no_start,
    start_of_another_size,
    no_manifest,
    no_data,
    no_scan,
    scan_of_another_width,
    no_store,
    leak,
    no_kind,
    no_template,
    no_tracker,
    half_precision,
    no_pattern,
    a_folder_that_is_no_run,
    a_file_for_a_folder,
    run_of_another_recipe,
    no_encoder_weights,
]


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_it_stops_at_what_the_training_would_stop_at(
    here: Values, spoil: Callable[[Values], None], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(here)
    Path("trial.yaml").write_text(yaml.safe_dump(here))
    before = tree()
    capsys.readouterr()
    code = main(["train", "trial.yaml", "--quiet", "--dry-run"])
    said = capsys.readouterr().err.partition("error: ")[2]
    assert tree() == before
    assert code not in (0, 70)
    assert run(here) == code
    assert said and said.startswith(capsys.readouterr().err.partition("error: ")[2])


def test_all_faults_are_told_and_what_can_be_counted_is(here: Values, capsys: pytest.CaptureFixture[str]) -> None:
    no_start(here)
    no_manifest(here)
    assert run(here, "--dry-run") == 66
    said = capsys.readouterr()
    assert said.err.count("error: ") == 2 and "did you mean tiny-t1w?" in said.err
    assert "# parameters" in said.out and "# memory" in said.out and "samples are not counted" in said.out


def test_it_counts_what_the_training_counts(here: Values, capsys: pytest.CaptureFixture[str]) -> None:
    here["data"] |= {"too_long": "drop", "max_tokens": 5, "drop_duplicates": True}
    here["trained"] = {"lora": {"rank": 2, "targets": ["q_proj"]}}
    assert run(here, "--dry-run") == 0
    out = capsys.readouterr().out
    recipe = load_recipe("trial.yaml")
    model, processor = build(recipe)
    batches = TrainingBatches.open(recipe, model, processor)
    assert batches.dropped and "\n".join(group_lines(parameter_rows(model))) in out
    for kind in ("pairs", "text"):
        samples = batches.by_kind[kind]
        assert f"{kind}: {len(samples):,} samples" in out or not samples
        learnt = sum(batches.sequence(one).learnt for one in samples) / max(1, len(samples))
        assert f", {learnt:.0f} of them learnt" in out or not samples
    assert f"validation: {len(batches.held_out)} samples" in out


def test_it_tells_where_a_run_would_go_on(here: Values, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(here) == 0
    capsys.readouterr()
    assert run(here, "--dry-run") == 0
    assert "is finished" in capsys.readouterr().out
    shutil.rmtree("runs/trial/model")
    before = tree().keys()
    assert run(here, "--dry-run") == 0
    assert "would resume at step 1" in capsys.readouterr().out and tree().keys() == before
    state = next(Path("runs/trial/checkpoints").glob("step-*/weights.safetensors"))
    state.write_bytes(state.read_bytes()[:-8])
    assert run(here, "--dry-run") == 65 and run(here) == 65


def test_an_embedded_model_is_a_start_by_its_name(here: Values, capsys: pytest.CaptureFixture[str]) -> None:
    here["model"] = {
        "encoder": {"name": "tiny-t1w-cnn"},
        "language_model": {"tokenizer": "tiny-t1w", "architecture": EMBEDDED_TEXT},
        "resampler": {"depth": 2, "num_latents": 32},
        "start": "tiny-t1w",
    }
    turns = [[{"role": "user", "text": str(n)}, {"role": "assistant", "text": "Normal"}] for n in range(4)]
    lines = [json.dumps({"id": str(number), "kind": "text", "turns": turns[number]}) for number in range(4)]
    Path("data/train.jsonl").write_text("\n".join(lines))
    here["data"] |= {"validation": []}
    assert run(here, "--dry-run") == 0
    out = capsys.readouterr().out
    model, _ = build(load_recipe("trial.yaml"))
    assert "\n".join(group_lines(parameter_rows(model))) in out
    assert "new tokens" not in out and "144,384" in out
    embedded = build(load_recipe("trial.yaml", ["model.start=null"]))[0]
    assert not embedded.perceiver.latents.equal(model.perceiver.latents)


def test_a_twin_is_counted_with_what_was_set(here: Values, capsys: pytest.CaptureFixture[str]) -> None:
    here["model"]["language_model"] = {"architecture": EMBEDDED_TEXT}
    before = tree() | {"trial.yaml": 0}
    assert run(here, "--dry-run", "--tiny", "--set", "optim.steps=3") == 0
    out = capsys.readouterr().out
    assert "3 optimiser steps" in out and "16 samples" in out and tree().keys() == before.keys()


@pytest.mark.slow
def test_stages_are_described_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bare = [word for key in ("heads", "validation_heads", "outlines") for word in ("--set", f"paint.{key}=null")]
    assert main(["train", "tiny-t1w", "--dry-run", *bare]) == 0
    out, recipe = capsys.readouterr().out, load_any_recipe(find_config("tiny-t1w"))
    assert isinstance(recipe, EmbeddedRecipe)
    drawn = recipe.encoder.optim.steps * recipe.encoder.optim.batch * recipe.encoder.optim.accumulate
    assert "4,261,832" in out and f"{drawn:,} samples drawn" in out  # the weights of the embedded model's encoder
    spoilt = [*bare, "--set", "encoder.start=nowhere", "--set", "log.trackers=[comet_ml]"]
    codes = [main(["train", "tiny-t1w", *spoilt, *more]) for more in (["--dry-run"], [])]
    assert codes == [78, 78] and not list(tmp_path.iterdir())
    assert capsys.readouterr().err.count("error: ") == 3
    assert main(["train", "tiny-t1w", "--dry-run", "--resume", "step-1"]) == 78


def test_the_function_is_the_verb(here: Values) -> None:
    Path("trial.yaml").write_text(yaml.safe_dump(here))
    found = rehearse("trial.yaml", ["optim.steps=2"], world=2)
    assert not found.faults and "2 optimiser steps" in found.text and "on each of 2 devices (ddp)" in found.text
    assert [fault.exit_code for fault in rehearse("trial.yaml", ["optim.batch=3"], world=2).faults] == [78]
    assert train("trial.yaml", ["optim.steps=2"], quiet=True).is_dir()
