"""GLM 4 and 4.5."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known, Names
from adamas_cli.models.gguf.architectures.rules import (
    SIGMOID,
    dense_or_experts,
    renamed,
    require_gating,
    routed_fields,
    shared_expert,
)
from adamas_cli.models.gguf.keys import Keys

_GLM4: Names = {
    **LAYER,
    "mlp.gate_up_proj": "ffn_up",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
}
_GLM4_MOE: Names = dense_or_experts(
    {
        "post_attention_layernorm": "post_attention_norm",
        "mlp.gate.e_score_correction_bias": renamed("exp_probs_b", "bias"),
        **shared_expert("mlp.shared_experts"),
    }
)


def _glm4(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": keys.has("blk.0.attn_q.bias")}


def _glm4_moe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    require_gating(keys, SIGMOID)
    return {
        **routed_fields(keys),
        **_glm4(keys, common),
        "use_qk_norm": keys.has("blk.0.attn_q_norm.weight"),
    }


ARCHITECTURES: Known = {
    "glm4": Architecture("glm4", _glm4, _GLM4),
    "glm4moe": Architecture("glm4_moe", _glm4_moe, _GLM4_MOE),
}
