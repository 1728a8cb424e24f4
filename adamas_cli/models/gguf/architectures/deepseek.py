"""DeepSeek 2 and 3, and models that attend or choose experts like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known, Names, Place
from adamas_cli.models.gguf.architectures.rules import (
    SIGMOID,
    SOFTMAX,
    dense_or_experts,
    renamed,
    require_gating,
    routed_fields,
    shared_expert,
)
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.keys import Keys

if TYPE_CHECKING:
    from adamas_cli.models.gguf.stored import Stored


def _keys_and_values(place: Place) -> Stored:
    """The matrix that makes keys and values from the latent. Some files have one for each instead, for
    multiplying queries with the latent itself.
    """
    import torch

    from adamas_cli.models.gguf.stored import stored

    if place.has("attn_kv_b"):
        return place("attn_kv_b")
    keys = place("attn_k_b").numbers().transpose(1, 2)  # [heads, key, latent]
    values = place("attn_v_b").numbers()  # [heads, value, latent]
    return stored(torch.cat((keys, values), 1).flatten(0, 1))


_LATENT: Names = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": _keys_and_values,
}
_ROUTED: Names = {
    **shared_expert("mlp.shared_experts"),
    "mlp.gate.e_score_correction_bias": renamed("exp_probs_b", "bias"),
}


def _latent(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    key = keys.get("attention.key_length_mla") or keys.need("attention.key_length")
    value = keys.get("attention.value_length_mla") or keys.get("attention.value_length", key)
    rotated = keys.need("rope.dimension_count")
    rope = common["rope_parameters"] | {"partial_rotary_factor": 1.0}
    if rope["rope_type"] == "yarn" and (multiplier := keys.get("rope.scaling.yarn_log_multiplier")):
        rope |= {"mscale": round(multiplier * 10, 6), "mscale_all_dim": round(multiplier * 10, 6)}
    return {
        "q_lora_rank": keys.get("attention.q_lora_rank"),
        "kv_lora_rank": keys.need("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": value,
        "head_dim": rotated,
        "num_key_value_heads": common["num_attention_heads"],
        "rope_parameters": rope,
        "attention_bias": False,
    }


def _deepseek3(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    require_gating(keys, SIGMOID)
    return {**_latent(keys, common), **routed_fields(keys), "rope_interleave": True}


def _deepseek2(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    require_gating(keys, SOFTMAX)
    fields = {**_latent(keys, common), **routed_fields(keys)}
    return fields | {"topk_method": "group_limited_greedy" if fields["n_group"] > 1 else "greedy"}


def _minicpm3(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    """Scales are those of the only such model; llama.cpp has them as constants, too."""
    return {
        **_latent(keys, {**common}),
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
        "v_head_dim": common["hidden_size"] // common["num_attention_heads"],
    }


def _dots1(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    require_gating(keys, SIGMOID)
    return {**routed_fields(keys), "attention_bias": False, **_full(common)}


def _full(common: dict[str, Any]) -> dict[str, Any]:
    return {"sliding_window": None, "layer_types": ["full_attention"] * common["num_hidden_layers"]}


_DEEPSEEK2 = Architecture("deepseek_v2", _deepseek2, dense_or_experts({**_LATENT, **_ROUTED}))
_DEEPSEEK3 = Architecture("deepseek_v3", _deepseek3, dense_or_experts({**_LATENT, **_ROUTED}))


def _of_deepseek2(file: GgufFile) -> Architecture:
    """Both versions share one name in GGUF; version 3 corrects the choice of its experts."""
    corrects = any(name.endswith(".exp_probs_b.bias") for name in file.entries)
    return _DEEPSEEK3 if corrects else _DEEPSEEK2


ARCHITECTURES: Known = {
    "deepseek2": _of_deepseek2,
    "minicpm3": Architecture("minicpm3", _minicpm3, {**LAYER, **_LATENT}),
    "dots1": Architecture("dots1", _dots1, dense_or_experts(_ROUTED)),
}
