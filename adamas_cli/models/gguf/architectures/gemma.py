"""Gemma 1 to 3."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import ENDS, LAYER, Architecture
from adamas_cli.models.gguf.architectures.rules import less_one, windows
from adamas_cli.models.gguf.keys import Keys
from adamas_cli.models.gguf.rope import DEFAULT_BASE, scaling

_ENDS = {**ENDS, "model.norm": less_one("output_norm")}
_NORMS = {
    "input_layernorm": less_one("attn_norm"),
    "post_attention_layernorm": less_one("post_attention_norm"),
    "pre_feedforward_layernorm": less_one("ffn_norm"),
    "post_feedforward_layernorm": less_one("post_ffw_norm"),
    "self_attn.q_norm": less_one("attn_q_norm"),
    "self_attn.k_norm": less_one("attn_k_norm"),
}
# Of the largest model of a generation, by its layers, queries are scaled by the width of a head's share of the
# hidden size, and not by the length of its keys; llama.cpp knows it by the same number.
_LAYERS_OF_GEMMA2_27B, _LAYERS_OF_GEMMA3_27B = 46, 62


def _query_scalar(common: dict[str, Any], largest: int) -> int:
    if common["num_hidden_layers"] == largest:
        return int(common["hidden_size"] // common["num_attention_heads"])
    return int(common["head_dim"])


def _gemma2(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        **windows(keys, common["num_hidden_layers"], period=2),
        "query_pre_attn_scalar": _query_scalar(common, _LAYERS_OF_GEMMA2_27B),
        "attn_logit_softcapping": keys.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.get("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    full = {"rope_type": "default", "rope_theta": keys.get("rope.freq_base", 1_000_000.0), **scaling(keys)}
    sliding = {"rope_type": "default", "rope_theta": keys.get("rope.freq_base_swa", DEFAULT_BASE)}
    return {
        **windows(keys, common["num_hidden_layers"], period=6),
        "query_pre_attn_scalar": _query_scalar(common, _LAYERS_OF_GEMMA3_27B),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
    }


ARCHITECTURES = {
    "gemma": Architecture(
        "gemma",
        layer={**LAYER, **_NORMS, "post_attention_layernorm": less_one("ffn_norm")},
        ends=_ENDS,
    ),
    "gemma2": Architecture("gemma2", _gemma2, {**LAYER, **_NORMS}, _ENDS),
    "gemma3": Architecture("gemma3_text", _gemma3, {**LAYER, **_NORMS}, _ENDS),
}
