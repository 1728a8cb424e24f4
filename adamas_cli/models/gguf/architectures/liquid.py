"""Liquid's LFM 2, MiniMax M2, Apertus, AFM and Jais 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adamas_cli.models.gguf.architectures.architecture import ENDS, LAYER, Architecture, Known, Names, Place
from adamas_cli.models.gguf.architectures.rules import (
    SIGMOID,
    dense_or_experts,
    expert_fields,
    experts,
    renamed,
    require_gating,
    shared_expert,
    windows,
)
from adamas_cli.models.gguf.keys import Keys

if TYPE_CHECKING:
    from adamas_cli.models.gguf.architectures.architecture import Recipe
    from adamas_cli.models.gguf.stored import Stored

_LFM2: Names = {
    "conv.conv": "shortconv.conv",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "operator_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
}
_LFM2_MOE: Names = {
    **_LFM2,
    **experts("feed_forward.experts"),
    "feed_forward.gate": "ffn_gate_inp",
    "feed_forward.expert_bias": renamed("exp_probs_b", "bias"),
}
_LFM2_ENDS: Names = {**ENDS, "model.embedding_norm": "token_embd_norm"}
_XIELU = ("alpha_p", "alpha_n", "beta", "eps")


def _lfm2(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    heads = keys.each("attention.head_count_kv", common["num_hidden_layers"])
    return {
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "conv_L_cache": keys.need("shortconv.l_cache"),
        "norm_eps": common["rms_norm_eps"],
        "conv_bias": False,
        "block_auto_adjust_ff_dim": False,
    }


def _lfm2_moe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    require_gating(keys, SIGMOID)
    return {
        **_lfm2(keys, common),
        **expert_fields(keys),
        "num_dense_layers": keys.get("leading_dense_block_count", 0),
        "use_expert_bias": True,
        "norm_topk_prob": keys.get("expert_weights_norm", True),
        "routed_scaling_factor": keys.get("expert_weights_scale", 0) or 1.0,
    }


def _minimax_m2(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    require_gating(keys, SIGMOID)
    width = keys.get("expert_feed_forward_length", common["intermediate_size"])
    return {**expert_fields(keys, "num_local_experts"), "intermediate_size": width}


def _of_activation(name: str) -> Recipe:
    """A number of each layer's activation, which files store among their keys."""

    def recipe(place: Place) -> Stored:
        import torch

        from adamas_cli.models.gguf.stored import stored

        values = place.config["xielu"][name]
        assert place.layer is not None  # activations belong to layers
        return stored(torch.tensor([values[place.layer] if isinstance(values, list) else values]))

    return recipe


def _apertus(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: keys.outside(f"xielu.{name}") for name in _XIELU}
    return {"hidden_act": "xielu", "attention_bias": False, "mlp_bias": False, "xielu": numbers}


def _afmoe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    require_gating(keys, SIGMOID)
    return {
        **windows(keys, common["num_hidden_layers"], period=4),
        **expert_fields(keys),
        "num_shared_experts": keys.get("expert_shared_count", 0),
        "num_dense_layers": keys.get("leading_dense_block_count", 0),
        "route_scale": keys.get("expert_weights_scale", 1.0),
        "route_norm": keys.get("expert_weights_norm", True),
        "mup_enabled": True,
    }


def _jais2(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": keys.has("blk.0.attn_q.bias"), "mlp_bias": keys.has("blk.0.ffn_up.bias")}


ARCHITECTURES: Known = {
    "lfm2": Architecture("lfm2", _lfm2, _LFM2, _LFM2_ENDS),
    "lfm2moe": Architecture("lfm2_moe", _lfm2_moe, _LFM2_MOE, _LFM2_ENDS),
    "minimax-m2": Architecture(
        "minimax_m2",
        _minimax_m2,
        dense_or_experts({"mlp.e_score_correction_bias": renamed("exp_probs_b", "bias")}),
    ),
    "apertus": Architecture(
        "apertus",
        _apertus,
        {
            **LAYER,
            "attention_layernorm": "attn_norm",
            "feedforward_layernorm": "ffn_norm",
            **{f"mlp.act_fn.{name}": _of_activation(name) for name in _XIELU},
        },
    ),
    "afmoe": Architecture(
        "afmoe",
        _afmoe,
        dense_or_experts(
            {
                "post_attention_layernorm": "post_attention_norm",
                "pre_mlp_layernorm": "ffn_norm",
                "post_mlp_layernorm": "post_ffw_norm",
                "self_attn.gate_proj": "attn_gate",
                "mlp.expert_bias": renamed("exp_probs_b", "bias"),
                **shared_expert("mlp.shared_experts"),
            },
            gate="mlp.router.gate",
        ),
    ),
    "jais2": Architecture("jais2", _jais2, {**LAYER}),
}
