"""NVIDIA's Nemotron and TII's Falcon H1, both with or without state spaces."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import ENDS, LAYER, Architecture
from adamas_cli.models.gguf.architectures.mamba import mamba2
from adamas_cli.models.gguf.architectures.rules import less_one
from adamas_cli.models.gguf.keys import Keys


def _nemotron(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {"norm_eps": common["layer_norm_eps"], "attention_bias": False, "mlp_bias": False}


_ATTENTION = {f"mixer.{name}_proj": f"attn_{name}" for name in "qkv"} | {"mixer.o_proj": "attn_output"}
_MLP = {"mixer.up_proj": "ffn_up", "mixer.down_proj": "ffn_down"}


def _nemotron_h(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    def kind(layer: int) -> str:
        if keys.has(f"blk.{layer}.ssm_in.weight"):
            return "mamba"
        return "attention" if keys.has(f"blk.{layer}.attn_q.weight") else "mlp"

    inner, heads = keys.need("ssm.inner_size"), keys.need("ssm.time_step_rank")
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


ARCHITECTURES = {
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
        {"norm": "attn_norm", **mamba2("mixer"), **_ATTENTION, **_MLP},
        {"model.embeddings": "token_embd", "model.norm_f": "output_norm", "lm_head": "output"},
    ),
}
