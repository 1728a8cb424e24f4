"""Phi 2 to 4 and Phi 3.5 MoE."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import ENDS, LAYER, Architecture, Known, Names
from adamas_cli.models.gguf.architectures.rules import expert_fields, experts
from adamas_cli.models.gguf.keys import Keys

_PHI2: Names = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_PHI3: Names = {**LAYER, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}


def _phi3(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    original = keys.get("rope.scaling.original_context_length", common["max_position_embeddings"])
    return {
        "sliding_window": keys.get("attention.sliding_window") or None,
        "original_max_position_embeddings": original,
    }


def _phimoe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    rope = dict(common["rope_parameters"])
    scale = rope.get("attention_factor", 1.0)
    if rope["rope_type"] == "longrope":
        rope |= {"short_mscale": scale, "long_mscale": scale}
    return {
        **_phi3(keys, common),
        **expert_fields(keys, "num_local_experts"),
        "rope_parameters": rope,
        "attention_bias": True,
        "lm_head_bias": keys.has("output.bias"),
    }


ARCHITECTURES: Known = {
    "phi2": Architecture("phi", layer=_PHI2, ends={**ENDS, "model.final_layernorm": "output_norm"}),
    "phi3": Architecture("phi3", _phi3, _PHI3),
    "phimoe": Architecture("phimoe", _phimoe, {**LAYER, "mlp.router": "ffn_gate_inp", **experts()}),
}
