"""Tiny language models and NeuroFlamingos for tests: weights filled by rule, so that any machine gets the same ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.processor import NeuroFlamingoProcessor

VOCAB, WIDTH, TOKENS = 64, 16, 7
WORDS = 61  # plus <|endofchunk|>, <image>, <PAD> fill the vocabulary

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_WINDOW = {"sliding_window": 4}

# model_type -> config: positional, learnt, rotary and ALiBi positions; tied and untied heads; sliding windows; parallel
# blocks; layers that take keywords and layers that do not.
FAMILIES: dict[str, dict[str, Any]] = {
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "llama": _LLAMA,
    "gpt_neox": {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | {"head_dim": 8},
    "gemma2": _LLAMA | _WINDOW | {"head_dim": 8},
    "gemma3_text": _LLAMA | _WINDOW | {"head_dim": 8},
    "mistral": _LLAMA | _WINDOW,
    "phi": _LLAMA,
    "phi3": _LLAMA | {"pad_token_id": 0},
    "smollm3": _LLAMA | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "olmo2": _LLAMA,
    "biogpt": {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"},
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "mixtral": _LLAMA | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "granite": _LLAMA,
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "max_position_embeddings": 64,
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "codegen": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
}


@torch.no_grad()
def fill_by_rule(module: nn.Module, *, scale: float = 0.5) -> None:
    """Give every parameter values that depend on its name and place only; norms stay near 1, gates get 0.5."""
    for name, parameter in module.named_parameters():
        index = torch.arange(parameter.numel(), dtype=torch.float64)
        phase = sum(map(ord, name)) % 97
        wave = (torch.sin(index * 1.6180339887 + phase) + torch.sin(index * index * 0.7071 + phase)).reshape(
            parameter.shape
        )
        if name.endswith("_gate"):
            wave = torch.full_like(wave, 0.5)
        elif parameter.ndim == 1:
            wave = wave * 0.05 + (1.0 if name.endswith("weight") else 0.0)
        elif "latents" not in name:
            wave = wave * scale / math.sqrt(parameter.shape[-1]) * 1.5
        parameter.copy_(wave.to(parameter.dtype))


def tiny_language_model(family: str = "llama", **changes: Any) -> PreTrainedModel:
    """A bare language model of a family, in eval mode."""
    config = CONFIG_MAPPING[family](**{"vocab_size": VOCAB, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config)
    fill_by_rule(model)
    model.generation_config.eos_token_id = None
    return model.eval()


def tiny_tokenizer(words: int = WORDS) -> PreTrainedTokenizerFast:
    """Words `w0` to `w60`, separated by spaces."""
    vocabulary = {f"w{number}": number for number in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")


def tiny_model(
    family: str = "llama", *, encoder: nn.Module | None = None, changes: dict[str, Any] | None = None, **how: Any
) -> tuple[NeuroFlamingo, NeuroFlamingoProcessor]:
    """A fused model with open gates, filled by rule, in eval mode."""
    settings: dict[str, Any] = {
        "resampler": {"dim": WIDTH, "depth": 2, "num_latents": 5, "heads": 2, "dim_head": 8},
        "heads": 2,
        "dim_head": 8,
    }
    language_model = tiny_language_model(family, **(changes or {}))
    model, processor = NeuroFlamingo.assemble(encoder, language_model, tiny_tokenizer(), **(settings | how))
    fill_by_rule(model.perceiver)
    for _, block in model.gated_blocks.items():
        fill_by_rule(block)
    model.generation_config.eos_token_id = None
    return model.eval(), processor


def tiny_scans(rows: int = 2, scans: int = 2, seed: int = 0) -> Tensor:
    """Ready tokens `[batch scan token width]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, scans, TOKENS, WIDTH, generator=generator)


def tiny_batch(processor: NeuroFlamingoProcessor, seed: int = 0, padding_side: str = "left") -> dict[str, Tensor]:
    """Two rows: two scans with text before the first one, and, padded, one scan."""
    tokens = tiny_scans(seed=seed)
    texts = ["w5 w6 <image> w1 w2 w3 <image> w4 w7", "w8 <image> w9 w10"]
    rows = [[tokens[0, 0], tokens[0, 1]], [tokens[1, 0]]]
    return dict(processor(texts, scan_tokens=rows, padding_side=padding_side))
