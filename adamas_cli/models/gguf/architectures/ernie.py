"""Baidu's ERNIE 4.5 and Tencent's Hunyuan."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known, Names
from adamas_cli.models.gguf.architectures.rules import dense_or_experts, expert_fields, renamed, shared_expert
from adamas_cli.models.gguf.keys import Keys

_HUNYUAN: Names = {
    **LAYER,
    "self_attn.query_layernorm": "attn_q_norm",
    "self_attn.key_layernorm": "attn_k_norm",
}


def _ernie(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {"use_bias": keys.has("blk.0.attn_q.bias")}


def _ernie_moe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    fields = expert_fields(keys)
    layers = common["num_hidden_layers"]
    shared = keys.get("expert_shared_count", 0)
    keys.get("expert_shared_feed_forward_length")  # some converters write another number; the tensors decide
    return {
        **_ernie(keys, common),
        "moe_num_experts": fields["num_experts"],
        "moe_k": fields["num_experts_per_tok"],
        "moe_intermediate_size": fields["moe_intermediate_size"],
        "moe_num_shared_experts": shared,
        "moe_layer_start_index": keys.get("leading_dense_block_count", 0),
        "moe_layer_end_index": layers - 1,
        "moe_layer_interval": keys.get("interleave_moe_layer_step", 1),
    }


def _hunyuan(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": keys.has("blk.0.attn_q.bias")}


def _hunyuan_moe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    fields = expert_fields(keys)
    keys.get("expert_shared_count")
    keys.get("expert_shared_feed_forward_length")  # the same as the others'
    return {
        **_hunyuan(keys, common),
        "num_experts": fields["num_experts"],
        "moe_topk": fields["num_experts_per_tok"],
        "intermediate_size": fields["moe_intermediate_size"],
    }


ARCHITECTURES: Known = {
    "ernie4_5": Architecture("ernie4_5", _ernie, {**LAYER}),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe",
        _ernie_moe,
        dense_or_experts(
            {
                **shared_expert("mlp.shared_experts"),
                "mlp.gate.moe_statics.e_score_correction_bias": renamed("exp_probs_b", "bias"),
            }
        ),
    ),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", _hunyuan, _HUNYUAN),
    "hunyuan-moe": Architecture(
        "hunyuan_v1_moe",
        _hunyuan_moe,
        dense_or_experts({**_HUNYUAN, **shared_expert("mlp.shared_mlp")}, gate="mlp.gate.wg"),
    ),
}
