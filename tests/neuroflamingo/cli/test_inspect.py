"""`inspect`: the tree of a model or a recipe with its branches, and every parameter, frozen or trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from neuroflamingo.cli import main

RECIPE = {
    "name": "trial",
    "model": {
        "token_width": 1024,
        "cross_attention": {"every": 4},
        "language_model": {
            "architecture": {
                "model_type": "llama",
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            },
            "dtype": "bfloat16",
        },
    },
    "data": {"train": ["train.jsonl"]},
    "optim": {"steps": 10},
    "trained": {"parts": ["gated_blocks"], "lora": {"rank": 16, "targets": ["q_proj", "to_q"]}},
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def test_a_recipe_of_seven_billion_weights_with_its_branches(recipe_file: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", recipe_file]) == 0
    text = capsys.readouterr().out
    assert "lora_A" in text and ".weight  16 x 4096  trained" in text and ".weight  4096 x 4096\n" in text
    assert "lora_magnitude_vector" not in text
    assert text.rstrip().splitlines()[-1].startswith("7,9")


def test_every_parameter_and_counts_by_group(recipe_file: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", recipe_file, "--frozen", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    groups = listed["groups"]
    branches = 32 * (16 * 4096 * 2) + 8 * (16 * 4096 + 512 * 16)
    assert groups["lora"] == {"trained": branches, "frozen": 0}
    assert groups["resampler"]["trained"] == 0 < groups["resampler"]["frozen"]
    assert groups["gated_blocks"]["frozen"] == 0 < groups["gated_blocks"]["trained"]
    total = sum(sum(count.values()) for count in groups.values())
    assert total == sum(1 if not row["shape"] else _product(row["shape"]) for row in listed["parameters"])
    for row in listed["parameters"]:
        assert row["dtype"] == ("float32" if row["trained"] else "bfloat16"), row
    assert main(["inspect", recipe_file, "--frozen"]) == 0
    lines = capsys.readouterr().out.splitlines()
    down = "lang_encoder.model.layers.0.decoder_layer.self_attn.q_proj.lora_A.default.weight  16 x 4096"
    assert f"trained  {down}" in lines
    assert "frozen   perceiver.latents  64 x 1024" in lines
    assert lines[-1].split()[0] == "all" and lines[-1].split()[1:] == [
        f"{sum(count[state] for count in groups.values()):,}" for state in ("trained", "frozen")
    ]


def _product(shape: list[int]) -> int:
    number = 1
    for size in shape:
        number *= size
    return number


def test_overrides_and_what_cannot_be_inspected(recipe_file: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", recipe_file, "--frozen", "--json", "--set", "trained.lora.rank=8"]) == 0
    shapes = {row["name"]: row["shape"] for row in json.loads(capsys.readouterr().out)["parameters"]}
    assert [8, 4096] in shapes.values() and [16, 4096] not in shapes.values()
    assert main(["inspect", recipe_file, "--set", "trained.lora.targets=[qkv]"]) == 78
    assert "qkv matches nothing" in capsys.readouterr().err
    assert main(["inspect", "configs/tiny-t1w.yaml"]) == 78
    assert "neuroflamingo inspect tiny-t1w" in capsys.readouterr().err
    assert main(["inspect", "tiny-t1w", "--set", "a.b=1"]) == 2
    assert main(["inspect", "no-such-model"]) == 66


def test_a_models_parameters(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "tiny-t1w", "--frozen"]) == 0
    text = capsys.readouterr().out
    assert "gated blocks" in text and "frozen   encoder." in text


def test_where_each_layer_would_lie(capsys: pytest.CaptureFixture) -> None:
    room = ["--max-memory", "cpu=8MB", "--max-memory", "disk=1GB", "--device", "cpu"]
    assert main(["inspect", "tiny-t1w", "--device-map", "auto", *room, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    places, held = found["hf_device_map"], found["held"]
    assert places["encoder"] == places["perceiver"] == "cpu" and "disk" in places.values()
    assert places.keys() == found["bytes"].keys()
    assert held["cpu"] + held["disk"] == sum(found["bytes"].values())
    assert 1 < sum(found["bytes"].values()) / (4 * 10_318_096) < 1.1, "float32, and some buffers"
    assert main(["inspect", "tiny-t1w", "--device-map", "auto", *room]) == 0
    text = capsys.readouterr().out
    assert "lang_encoder.model.layers.3" in text and "all on disk" in text and "all on cpu" in text


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["tiny-t1w", "--max-memory", "cpu=1GB"], "are for --device-map"),
        (["tiny-t1w", "--device-map", "auto", "--max-memory", "1GB"], "is not an assignment"),
        (["tiny-t1w", "--device-map", "everywhere"], "unknown device map"),
        (["brainiac-qwen", "--device-map", "auto"], "brainiac-qwen"),
    ],
)
def test_places_that_cannot_be_told(words: list[str], seen: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", *words]) != 0
    assert seen in capsys.readouterr().err
