"""The shipped recipes: every one loads, and is built at full size on the meta device with the published shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroflamingo.recipe.read import load_recipe
from neuroflamingo_encoders import encoder_card
from tests.neuroflamingo.recipe.shipped_recipes import RECIPES, full_size
from tests.neuroflamingo.training.small_runs import trained_names

NEW = 2  # <|endofchunk|> and <image>; and a padding token, where the language model has none

# language model's weights as published, its width, rows that are added, gated blocks
PUBLISHED = {
    "openflamingo-3b": (1_311_213_568, 2048, 0, 24),  # MPT-1B's without its norms on queries and keys
    "openflamingo-4b": (2_775_864_320, 2560, 0, 16),
    "openflamingo-9b": (6_649_286_656, 4096, 0, 8),
    "multimodal-gpt-lora": (6_738_415_616, 4096, 2 * (NEW + 1), 8),  # with a head of its own
    "medpix-clinqa-siglip": (2_506_172_416, 2048, NEW, 9),
    "siglip-qwen2-lora": (7_615_616_512, 3584, 0, 7),
    "brainiac-qwen": (1_543_714_304, 1536, 0, 7),
    "brainlm-llama": (1_235_814_400, 2048, NEW + 1, 8),
    "neurostorm-qwen": (494_032_768, 896, 0, 12),
}


def test_all_recipes_are_there_and_load() -> None:
    assert set(RECIPES) == set(PUBLISHED)
    for name, path in RECIPES.items():
        assert load_recipe(path).name == name


@pytest.mark.parametrize("path", RECIPES.values(), ids=list(RECIPES))
def test_a_recipe_begins_with_its_purpose_and_the_commands_that_run_it(path: Path) -> None:
    comment = path.read_text().split("\nname:")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    first, *rest = comment.splitlines()
    assert len(first) > 20 and "neuroflamingo" not in first
    for option in ("", " --dry-run", " --tiny"):
        assert f"neuroflamingo train configs/{path.name}{option}" in "\n".join(rest)


def gated_block(width: int, visual: int, inner: int = 512) -> int:
    attention = 2 * width + 2 * inner * width + 2 * inner * visual
    return attention + 2 * width + 8 * width * width + 2  # feed-forward and its norm, two gates


def resampler(visual: int, latents: int, depth: int = 6, inner: int = 512) -> int:
    layer = 4 * visual + 4 * inner * visual + 2 * visual + 8 * visual * visual
    return latents * visual + depth * layer + 2 * visual


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_has_the_published_shapes(name: str) -> None:
    recipe, model = full_size(name)
    count, width, added, blocks = PUBLISHED[name]
    sizes = {key: p.numel() for key, p in model.named_parameters() if ".lora_" not in key}
    gated = {key: size for key, size in sizes.items() if ".gated_cross_attn_layer." in key}
    text = sum(size for key, size in sizes.items() if key.startswith("lang_encoder.") and key not in gated)
    assert text == count + added * width
    encoder = recipe.model.encoder
    assert encoder is not None and model.encoder is not None
    card = encoder_card(encoder.name, **encoder.options)
    assert sum(p.numel() for p in model.encoder.parameters()) == card.cost.parameters
    every = recipe.model.cross_attention.every
    assert list(model.gated_blocks) == list(range(every - 1, blocks * every, every))
    assert sum(gated.values()) == blocks * gated_block(width, card.output.width)
    latents = recipe.model.resampler.get("num_latents", 64)
    assert sum(p.numel() for p in model.perceiver.parameters()) == resampler(card.output.width, latents)


def test_multimodal_gpts_branches_are_those_of_the_published_table() -> None:
    """At LLaMA-7B's width: names and shapes of all branches, and nothing else trains."""
    _, model = full_size("multimodal-gpt-lora")
    table = {
        "gated_cross_attn_layer.attn.to_q": ((16, 4096), (512, 16)),
        "gated_cross_attn_layer.attn.to_kv": ((16, 1024), (1024, 16)),
        "gated_cross_attn_layer.attn.to_out": ((16, 512), (4096, 16)),
        "gated_cross_attn_layer.ff.1": ((16, 4096), (16384, 16)),
        "gated_cross_attn_layer.ff.3": ((16, 16384), (4096, 16)),
    }
    own = {f"decoder_layer.self_attn.{letter}_proj": ((16, 4096), (4096, 16)) for letter in "qkvo"}
    expected = {}
    for layer in range(32):
        for module, shapes in (own | (table if layer % 4 == 3 else {})).items():
            for part, shape in zip("AB", shapes, strict=True):
                expected[f"lang_encoder.model.layers.{layer}.{module}.lora_{part}.default.weight"] = shape
    found = {name: tuple(p.shape) for name, p in model.named_parameters() if ".lora_" in name}
    assert found == expected and len(found) == 2 * (32 * 4 + 8 * 5)
    assert set(trained_names(model)) == set(expected)


def test_of_paligemmas_language_model_only_the_attention_trains() -> None:
    _, model = full_size("medpix-clinqa-siglip")
    own = [name for name in trained_names(model) if ".decoder_layer." in name]
    assert len(own) == 18 * 4 and all(".self_attn." in name for name in own)
    assert not any(name.startswith("encoder.") for name in trained_names(model))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("openflamingo")])
def test_openflamingo_trains_resampler_gated_blocks_and_two_new_rows(name: str) -> None:
    _, model = full_size(name)
    added = (".gated_cross_attn_layer.", "perceiver.")
    others = [key for key in trained_names(model) if not any(part in key for part in added)]
    shapes = [tuple(p.shape) for key, p in model.named_parameters() if key in others]
    assert all(rows == NEW and width == PUBLISHED[name][1] for rows, width in shapes) and shapes
