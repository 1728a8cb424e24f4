"""NVIDIA's Nemotron and TII's Falcon H1, both with or without state spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adamas_cli.models.gguf.architectures.architecture import ENDS, LAYER, Architecture, Known, Names, Place
from adamas_cli.models.gguf.architectures.mamba import mamba2
from adamas_cli.models.gguf.architectures.rules import (
    SIGMOID,
    less_one,
    renamed,
    require_gating,
    routed_fields,
)
from adamas_cli.models.gguf.keys import Keys

if TYPE_CHECKING:
    from adamas_cli.models.gguf.stored import Stored


def _nemotron(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {"norm_eps": common["layer_norm_eps"], "attention_bias": False, "mlp_bias": False}


_EXPERT_KEYS = (
    "expert_count",
    "expert_used_count",
    "expert_group_count",
    "expert_group_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_shared_count",
    "expert_weights_norm",
    "expert_weights_scale",
)
_ATTENTION: Names = {f"mixer.{name}_proj": f"attn_{name}" for name in "qkv"} | {"mixer.o_proj": "attn_output"}
_MLP: Names = {"mixer.up_proj": "ffn_up", "mixer.down_proj": "ffn_down"}


def _nemotron_h(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    def kind(layer: int) -> str:
        if keys.has(f"blk.{layer}.ssm_in.weight"):
            return "mamba"
        return "attention" if keys.has(f"blk.{layer}.attn_q.weight") else "mlp"

    inner, heads = keys.need("ssm.inner_size"), keys.need("ssm.time_step_rank")
    for name in _EXPERT_KEYS:
        keys.get(name)  # some converters write keys that this kind does not use
    return {
        "layers_block_type": [kind(layer) for layer in range(common["num_hidden_layers"])],
        "layer_norm_epsilon": common.get("rms_norm_eps", common.get("layer_norm_eps")),
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // heads,
        "ssm_state_size": keys.need("ssm.state_size"),
        "n_groups": keys.need("ssm.group_count"),
        "conv_kernel": keys.need("ssm.conv_kernel"),
        "expand": inner // common["hidden_size"],
    }


def _nemotron_h_moe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    require_gating(keys, SIGMOID)
    fields = _nemotron_h(keys, common)
    kinds = fields["layers_block_type"]
    return {
        **fields,
        **routed_fields(keys),
        "layers_block_type": ["moe" if kind == "mlp" else kind for kind in kinds],
        "moe_shared_expert_intermediate_size": keys.get("expert_shared_feed_forward_length"),
        "moe_latent_size": keys.get("moe_latent_size") or None,
    }


# Files have the multipliers applied to their weights.
_MULTIPLIERS: dict[str, Any] = {
    "embedding_multiplier": 1.0,
    "lm_head_multiplier": 1.0,
    "attention_in_multiplier": 1.0,
    "attention_out_multiplier": 1.0,
    "key_multiplier": 1.0,
    "ssm_in_multiplier": 1.0,
    "ssm_out_multiplier": 1.0,
    "mlp_multipliers": [1.0] * 2,
    "ssm_multipliers": [1.0] * 5,
}


def _falcon_h1(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    inner, heads = keys.need("ssm.inner_size"), keys.need("ssm.time_step_rank")
    return _MULTIPLIERS | {
        "mamba_d_ssm": inner,
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_d_state": keys.need("ssm.state_size"),
        "mamba_n_groups": keys.need("ssm.group_count"),
        "mamba_d_conv": keys.need("ssm.conv_kernel"),
        "mamba_rms_norm": keys.has("blk.0.ssm_norm.weight"),
    }


def _bare_norm(place: Place) -> Stored:
    return place("ffn_norm") if place.has("ffn_norm") else place.bare("ffn_norm")


_NEMOTRON_H: Names = {"norm": "attn_norm", **mamba2("mixer"), **_ATTENTION, **_MLP}
_NEMOTRON_H_ENDS: Names = {
    "model.embeddings": "token_embd",
    "model.norm_f": "output_norm",
    "lm_head": "output",
}

ARCHITECTURES: Known = {
    "nemotron_h_moe": Architecture(
        "nemotron_h",
        _nemotron_h_moe,
        {
            **_NEMOTRON_H,
            "mixer.gate": "ffn_gate_inp",
            "mixer.gate.e_score_correction_bias": renamed("exp_probs_b", "bias"),
            "mixer.experts.up_proj": "ffn_up_exps",
            "mixer.experts.down_proj": "ffn_down_exps",
            "mixer.shared_experts.up_proj": "ffn_up_shexp",
            "mixer.shared_experts.down_proj": "ffn_down_shexp",
            "mixer.fc1_latent_proj": "ffn_latent_down",
            "mixer.fc2_latent_proj": "ffn_latent_up",
        },
        _NEMOTRON_H_ENDS,
    ),
    "falcon-h1": Architecture(
        "falcon_h1",
        _falcon_h1,
        {
            **LAYER,
            **mamba2("mamba"),
            "feed_forward.gate_proj": "ffn_gate",
            "feed_forward.up_proj": "ffn_up",
            "feed_forward.down_proj": "ffn_down",
            "pre_ff_layernorm": _bare_norm,
        },
        {**ENDS, "model.final_layernorm": "output_norm"},
    ),
    "nemotron": Architecture(
        "nemotron",
        _nemotron,
        {
            **LAYER,
            "input_layernorm": less_one("attn_norm"),
            "post_attention_layernorm": less_one("ffn_norm"),
        },
        {**ENDS, "model.norm": less_one("output_norm")},
    ),
    "nemotron_h": Architecture(
        "nemotron_h",
        _nemotron_h,
        _NEMOTRON_H,
        _NEMOTRON_H_ENDS,
    ),
}
