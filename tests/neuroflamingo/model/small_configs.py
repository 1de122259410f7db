"""A tiny config for any causal language model of transformers, by one rule: sizes are recognised by their names."""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.tiny import VOCAB

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LAYERS = 4  # hybrids repeat their kinds of layers every second to fourth layer
MOST = 30_000_000  # parameters; a config that the rule does not make tiny is not built

# The first pattern that a name matches in full decides.
_RULE: tuple[tuple[str, Any], ...] = (
    (r"(bos|eos|pad|sep|cls|unk|decoder_start)_token_id", None),  # see `_token`
    (r".*vocab_size(_per_layer_input)?|n_vocab", VOCAB),
    (
        r"num_(hidden_)?layers|n_layers?|num_blocks|num_decoder_layers|decoder_layers|n_layer|depth|encoder_layers",
        LAYERS,
    ),
    (
        r"(num_|n_)?(key_value|kv|global_key_value)_?heads?|num_kv_heads|num_key_value_groups|num_global_key_value_heads",
        2,
    ),
    (r"(mamba_|linear_num_|v_|k_|n_mamba_|num_)?(attention_)?heads|n_heads?|mamba_n_heads|n_mamba_heads", 4),
    (
        r".*num_(query_|attention_|attn_|linear_|value_|key_)*heads|linear_num_(key|value)_heads|decoder_attention_heads",
        4,
    ),
    (r"encoder_attention_heads|index_n_heads|conv_heads", 4),
    (r".*head_dim|d_kv|kv_channels|d_head|mamba_headdim|mamba_d_head", 8),
    (r"rotary_dim", 4),
    (r"hidden_size_per_layer_input|embedding_size_per_layer|laurel_rank", 8),
    (
        r"hidden_size|d_model|n_embd|dim|embed_dim|emb_dim|model_dim|word_embed_proj_dim|lru_width|embedding_size|width",
        32,
    ),
    (r"attention_hidden_size|mamba_d_ssm|mamba_intermediate_size|d_inner|qk_layernorm_dim|rwkv_hidden", 32),
    (r".*(intermediate_size|ffn_dim|n_inner|ffn_hidden_size|d_ff|inner_dim|hidden_dim|dff|mlp_dim|ffw_size)", 48),
    (r".*(num_local_experts|num_experts|n_routed_experts|moe_num_experts)", 4),
    (r".*(experts_per_tok(en)?|top_k_experts|moe_topk|moe_top_k|num_selected_experts|moe_k)", 2),
    (r"n_shared_experts|num_shared_experts|n_group|topk_group|moe_num_shared_experts|num_expert_group", 1),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|index_topk|.*_lora_dim|.*lora_rank", 8),
    (r"(qk|q)_(nope|rope|pe)_head_dim|v_head_dim|qk_rope_dim", 8),
    (r"(mamba_)?(d_state|state_size|ssm_state_size)", 8),
    (r"(mamba_)?chunk_size", 8),
    (r"(mamba_)?(n_groups|ngroups|num_groups)", 1),
    (r"time_step_rank|dt_rank|mamba_dt_rank", 4),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|max_sequence_length|context_length", 128),
    (r".*sliding_window(_size)?|window_size|attention_window_size|local_attention", 8),
    (r"num_kv_shared_layers|first_k_dense_replace|num_nextn_predict_layers|num_mtp_layers|layerdrop", 0),
    (r".*(attn|resid|embd|hidden|attention|activation|ffn|residual)_?(pdrop|dropout)(_prob)?|dropout|.*dropout.*", 0.0),
)


_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16}
# Sizes that hang together in a family's own way.
_BESIDE: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA2 | {"attn_layer_indices": [1, 3]},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "gemma4_text": {"head_dim": 8, "global_head_dim": 8},
    "gemma4_unified_text": {"head_dim": 8, "global_head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "cohere_compass_text": {"layer_types": ["full_attention"] * 4},
    "xlstm": {"hidden_size": 64, "qk_dim_factor": 1.0},
    "qwen4_exp_text": {
        "indexer_head_dim": 8,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "granitemoehybrid": _MAMBA2 | {"layer_types": ["mamba", "attention"] * 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba": {"attention_head_dim": 16, "attention_hidden_size": 64},
    "zaya": {"num_experts_per_tok": 1},
    "longcat_flash": {"v_head_dim": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "head_dim": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "ministral": {"head_dim": 8},
    "whisper": {"begin_suppress_tokens": None, "suppress_tokens": None},
    "reformer": {"is_decoder": True},
}


def small_config(family: str) -> PretrainedConfig:
    """A config of a family with everything small that the rule knows."""
    return _small(CONFIG_MAPPING[family])


def _small(kind: Any) -> Any:
    names = {name for base in kind.__mro__ if base is not object for name in _arguments(base)}
    default = kind()
    values = {name: _value(name, _default(default, name)) for name in sorted(names)}
    values = {name: value for name, value in values.items() if value is not _KEEP}
    if "is_decoder" in names:
        values["is_decoder"] = True
    heads, groups = (_default(default, name) for name in ("num_attention_heads", "num_key_value_heads"))
    if "num_key_value_heads" in values and groups == heads:  # every head has its own keys
        values["num_key_value_heads"] = values["num_attention_heads"]
    for name in getattr(kind, "sub_configs", None) or {}:
        own = _default(default, name)
        if own is not None:
            values[name] = _small(type(own)).to_dict()
    layers = _default(default, "num_hidden_layers") or 0
    for name in names:
        listed = _default(default, name)
        if isinstance(listed, list | tuple) and layers and len(listed) == layers:
            values[name] = _of_every_kind(list(listed))
    return kind(**values | _BESIDE.get(kind.model_type, {}))


def _default(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except RuntimeError:  # it differs between layers
        return None


_KEEP = object()


def _arguments(kind: Any) -> set[str]:
    own = set(getattr(kind, "__annotations__", {}))
    with contextlib.suppress(TypeError, ValueError):  # it has no signature
        own |= set(inspect.signature(kind.__init__).parameters)
    return {name for name in own if not name.startswith("_")} - {"self", "kwargs", "args", "model_type"}


def _value(name: str, default: Any) -> Any:
    for pattern, small in _RULE:
        if re.fullmatch(pattern, name):
            if name.endswith("_token_id"):
                return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}.get(name, _KEEP)
            if default is None or isinstance(default, bool) or not isinstance(default, int | float):
                return _KEEP
            return type(default)(small)
    return _KEEP


def _of_every_kind(values: list[Any]) -> list[Any]:
    """Four members, with each kind among them at least once."""
    try:
        kinds = list(dict.fromkeys(values))[:LAYERS]
    except TypeError:
        return values[:LAYERS]
    return sorted((kinds * LAYERS)[:LAYERS], key=values.index) if len(kinds) > 1 else values[:LAYERS]


def small_language_model(family: str) -> Any:
    """The bare language model of a family, random, in eval mode.

    Raises:
        ValueError: the rule does not make it tiny.
    """
    config = small_config(family)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()
