"""One pass on two tokens proves that all gated blocks are handed the scans, and what is refused at loading."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from neuroflamingo.model.media_probe import prove_media
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo_preprocessing.errors import ModelError
from tests.tiny import VOCAB, WIDTH, fill_by_rule, tiny_batch, tiny_language_model, tiny_model, tiny_tokenizer

RESAMPLER = {"dim": WIDTH, "depth": 1, "num_latents": 3, "heads": 2, "dim_head": 8}
_SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3}
STATE_SPACE: dict[str, dict[str, Any]] = {
    "mamba": {},
    "falcon_mamba": {},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
}


def assemble(language_model: PreTrainedModel) -> tuple[Any, Any]:
    return NeuroFlamingo.assemble(None, language_model, tiny_tokenizer(), resampler=RESAMPLER, gate=0.5)


@pytest.mark.parametrize("family", STATE_SPACE)
def test_families_that_drop_the_keyword_in_silence_see_the_scan(family):
    language_model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**_SIZES, **STATE_SPACE[family]))
    fill_by_rule(language_model)
    model, processor = assemble(language_model)
    model.eval()
    batch, other = tiny_batch(processor), tiny_batch(processor, seed=1)
    assert (model(**batch).logits - model(**other).logits).abs().max() > 1e-3
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    for part in (model.perceiver, *model.gated_blocks.values()):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


class Elsewhere(PreTrainedModel):
    """A causal language model that transformers does not ship, with a forward of its own."""

    config_class = LlamaConfig
    config: LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    def hidden(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x).tanh()
        return x

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=self.head(self.hidden(self.embed(input_ids))))


class HandsOn(Elsewhere):
    """It hands the media to its layers."""

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.embed(input_ids)
        for block in self.blocks:
            x = x + block(x, media=kwargs["media"]).tanh()
        return CausalLMOutputWithPast(logits=self.head(x))


class HandsOnToSome(Elsewhere):
    """A hybrid: every second layer gets the keyword."""

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.embed(input_ids)
        for number, block in enumerate(self.blocks):
            x = x + block(x, **({"media": kwargs.get("media")} if number % 2 else {})).tanh()
        return CausalLMOutputWithPast(logits=self.head(x))


class LeavesOneOut(Elsewhere):
    """Its second layer is used in training only, say."""

    def hidden(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.blocks[2](self.blocks[0](x))


class OtherAxes(Elsewhere):
    """Its layers read `[text, batch, width]`."""

    def hidden(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().hidden(x.transpose(0, 1)).transpose(0, 1)


def elsewhere(kind: type[Elsewhere]) -> Elsewhere:
    model = kind(LlamaConfig(**_SIZES, num_attention_heads=4))
    fill_by_rule(model)
    return model


@pytest.mark.parametrize(("kind", "keyword"), [(Elsewhere, False), (HandsOn, True), (HandsOnToSome, False)])
def test_classes_from_outside_transformers_take_the_way_that_works(kind, keyword):
    model, processor = assemble(elsewhere(kind))
    assert model._keyword is keyword
    model.eval()
    batch, other = tiny_batch(processor), tiny_batch(processor, seed=1)
    seen, otherwise = (model(**b, use_cache=False).logits for b in (batch, other))
    assert (seen - otherwise).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "why"), [(LeavesOneOut, "not layers 1"), (OtherAxes, r"shape \[2, 1, 32\], not \[1, 2, 32\]")]
)
def test_a_model_whose_blocks_would_never_see_a_scan_is_refused_with_the_reason(kind, why):
    with pytest.raises(ModelError, match="would never see a scan") as caught:
        assemble(elsewhere(kind))
    assert caught.value.exit_code == 65
    assert re.search(why, str(caught.value)), str(caught.value)


def test_the_probe_changes_nothing():
    language_model = tiny_language_model("llama", attention_dropout=0.5).train()
    model, _ = assemble(language_model)
    model.train()
    modes = [module.training for module in model.modules()]
    values = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    state = torch.get_rng_state()
    logits = prove_media(model)
    assert logits is not None and logits.shape[:2] == (1, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(values[name], now) for name, now in [*model.named_parameters(), *model.named_buffers()])
    assert all(p.grad is None for p in model.parameters())


def test_the_probe_runs_two_tokens_through_the_language_model_and_no_encoder(monkeypatch):
    """What it costs: one pass of two tokens where the keyword arrives, two where it gets lost."""
    seen: list[tuple[int, ...]] = []
    for family, passes in (("llama", 1), ("gptj", 2)):
        model, _ = tiny_model(family)
        model.lang_encoder.get_input_embeddings().register_forward_hook(
            lambda module, given, out: seen.append(tuple(given[0].shape))
        )
        seen.clear()
        prove_media(model)
        assert seen == [(1, 2)] * passes


def test_a_model_without_memory_is_not_run():
    with torch.device("meta"):
        model, _ = assemble(
            AutoModelForCausalLM.from_config(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4))
        )
    assert prove_media(model) is None


# ---- at loading


def saved(folder, family: str = "llama"):
    model, processor = tiny_model(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def test_the_way_is_found_again_at_loading(tmp_path):
    for family in ("llama", "bloom"):
        model, _ = saved(tmp_path / family, family)
        assert NeuroFlamingo.from_pretrained(tmp_path / family)._keyword is model._keyword


@pytest.mark.parametrize("name", ["lang_encoder.model.norm.weight", "perceiver.latents", "lang_encoder.lm_head.weight"])
def test_a_tensor_that_is_not_finite_is_refused_by_its_name(tmp_path, name):
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"does not compute numbers[^$]*{name}"):
        NeuroFlamingo.from_pretrained(tmp_path)
