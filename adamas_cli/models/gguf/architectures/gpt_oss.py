"""OpenAI's gpt-oss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known, Place
from adamas_cli.models.gguf.architectures.rules import computed, expert_fields, renamed, windows
from adamas_cli.models.gguf.keys import Keys

if TYPE_CHECKING:
    from adamas_cli.models.gguf.stored import Stored


def _interleaved(leaf: str) -> Any:
    """Gate and up projections of all experts, with alternating outputs; weights are [inputs, outputs]."""

    def recipe(place: Place) -> Stored:
        import torch

        from adamas_cli.models.gguf.stored import stored

        gate, up = (place(f"ffn_{name}_exps", leaf).numbers() for name in ("gate", "up"))
        both = torch.stack((gate, up), 2).flatten(1, 2)
        return stored(both.transpose(1, 2) if leaf == "weight" else both)

    return recipe


def _fields(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    fields = {**expert_fields(keys, "num_local_experts"), "attention_bias": True}
    rope = {**common["rope_parameters"], "truncate": False}
    width = keys.get("expert_feed_forward_length", common["intermediate_size"])
    slides = windows(keys, common["num_hidden_layers"], period=2)
    return {**fields, **slides, "rope_parameters": rope, "intermediate_size": width}


ARCHITECTURES: Known = {
    "gpt-oss": Architecture(
        "gpt_oss",
        _fields,
        {
            **LAYER,
            "post_attention_layernorm": "post_attention_norm",
            "self_attn.sinks": renamed("attn_sinks", "weight"),
            "mlp.router": "ffn_gate_inp",
            "mlp.experts.gate_up_proj": _interleaved("weight"),
            "mlp.experts.gate_up_proj_bias": _interleaved("bias"),
            "mlp.experts.down_proj": computed("ffn_down_exps", lambda weight: weight.transpose(1, 2)),
            "mlp.experts.down_proj_bias": renamed("ffn_down_exps", "bias"),
        },
    )
}
