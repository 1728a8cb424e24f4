"""IBM's Granite 3 and 4."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known, Names
from adamas_cli.models.gguf.architectures.mamba import mamba2
from adamas_cli.models.gguf.architectures.rules import (
    ROTATED_BY_HALVES,
    expert_fields,
    experts,
    or_zeros,
    side_by_side,
)
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.keys import Keys

_LAYER: Names = {**LAYER, **ROTATED_BY_HALVES, "self_attn.o_proj": or_zeros("attn_output")}
_SHARED: Names = {
    "shared_mlp.input_linear": side_by_side("ffn_gate_shexp", "ffn_up_shexp"),
    "shared_mlp.output_linear": "ffn_down_shexp",
}
_ROUTED: Names = {"block_sparse_moe.router": "ffn_gate_inp", **experts("block_sparse_moe.experts")}


def _granite(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        "embedding_multiplier": keys.get("embedding_scale", 1.0),
        "residual_multiplier": keys.get("residual_scale", 1.0),
        "logits_scaling": keys.get("logit_scale", 1.0),
        "attention_multiplier": keys.get("attention.scale", common["head_dim"] ** -0.5),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "mlp_bias": keys.has("blk.0.ffn_up.bias"),
    }


def _granite_moe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        **_granite(keys, common),
        **expert_fields(keys, "num_local_experts"),
        "shared_intermediate_size": keys.get("expert_shared_feed_forward_length", 0),
    }


def _granite_hybrid(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    """Layers without experts have only the shared one, under the names of a plain MLP."""
    layers = common["num_hidden_layers"]
    is_mixture = bool(keys.get("expert_count", 0))
    inner = keys.need("ssm.inner_size")
    heads = keys.need("ssm.time_step_rank")
    rotates = keys.get("rope.scaling.finetuned", True)
    return {
        **_granite(keys, common),
        **(expert_fields(keys, "num_local_experts") if is_mixture else {"num_local_experts": 0}),
        "shared_intermediate_size": keys.get(
            "expert_shared_feed_forward_length", common["intermediate_size"]
        ),
        "layer_types": [
            "attention" if keys.has(f"blk.{layer}.attn_q.weight") else "mamba" for layer in range(layers)
        ],
        "num_key_value_heads": _key_heads(keys, common),
        "position_embedding_type": "rope" if rotates else "nope",
        "mamba_d_conv": keys.need("ssm.conv_kernel"),
        "mamba_d_state": keys.need("ssm.state_size"),
        "mamba_n_groups": keys.need("ssm.group_count"),
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_expand": inner // common["hidden_size"],
    }


def _key_heads(keys: Keys, common: dict[str, Any]) -> int:
    """From the tensors: converters wrote 0 for all layers."""
    if common["num_key_value_heads"]:
        return int(common["num_key_value_heads"])
    rows = next(
        (rows for name, rows in keys.rows.items() if name.endswith(".attn_k.weight")), common["head_dim"]
    )
    return int(rows // common["head_dim"])


_DENSE_SHARED: Names = {
    "shared_mlp.input_linear": side_by_side("ffn_gate", "ffn_up"),
    "shared_mlp.output_linear": "ffn_down",
}
_MOE = Architecture("granitemoe", _granite_moe, {**_LAYER, **_ROUTED})
_MOE_SHARED = Architecture("granitemoeshared", _granite_moe, {**_LAYER, **_ROUTED, **_SHARED})
_HYBRID: Names = {**_LAYER, **mamba2("mamba")}


def _of_moe(file: GgufFile) -> Architecture:
    return _MOE_SHARED if "blk.0.ffn_up_shexp.weight" in file.entries else _MOE


def _of_hybrid(file: GgufFile) -> Architecture:
    if file.keys.get("granitehybrid.expert_count", 0):
        return Architecture("granitemoehybrid", _granite_hybrid, {**_HYBRID, **_ROUTED, **_SHARED})
    return Architecture("granitemoehybrid", _granite_hybrid, {**_HYBRID, **_DENSE_SHARED})


ARCHITECTURES: Known = {
    "granite": Architecture("granite", _granite, _LAYER),
    "granitemoe": _of_moe,
    "granitehybrid": _of_hybrid,
}
