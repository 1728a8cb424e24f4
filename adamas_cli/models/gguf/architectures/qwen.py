"""Qwen 2 to 3.5."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known, Names
from adamas_cli.models.gguf.architectures.rules import dense_or_experts, expert_fields, shared_expert
from adamas_cli.models.gguf.keys import Keys

_SHARED: Names = {**shared_expert("mlp.shared_expert"), "mlp.shared_expert_gate": "ffn_gate_inp_shexp"}


def _qwen2(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    keys.get("rope.dimension_sections")  # of images; text has the same position in all of them
    return {"use_sliding_window": False}


def _qwen3(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return _qwen2(keys, common) | {"attention_bias": keys.has("blk.0.attn_q.bias")}


def _qwen2_moe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        **_qwen2(keys, common),
        **expert_fields(keys),
        "shared_expert_intermediate_size": keys.get(
            "expert_shared_feed_forward_length", common["intermediate_size"]
        ),
        "norm_topk_prob": keys.get("expert_weights_norm", False),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen3_moe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        **_qwen3(keys, common),
        **expert_fields(keys),
        "norm_topk_prob": keys.get("expert_weights_norm", True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


ARCHITECTURES: Known = {
    "qwen2": Architecture("qwen2", _qwen2, {**LAYER}),
    "qwen2vl": Architecture("qwen2", _qwen2, {**LAYER}),
    "qwen2moe": Architecture("qwen2_moe", _qwen2_moe, dense_or_experts(_SHARED)),
    "qwen3": Architecture("qwen3", _qwen3, {**LAYER}),
    "qwen3vl": Architecture("qwen3", _qwen3, {**LAYER}),
    "qwen3moe": Architecture("qwen3_moe", _qwen3_moe, dense_or_experts({})),
    "qwen3vlmoe": Architecture("qwen3_moe", _qwen3_moe, dense_or_experts({})),
}
