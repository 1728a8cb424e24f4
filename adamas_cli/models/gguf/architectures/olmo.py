"""OLMo 1 to 3 and OLMoE."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known, Names
from adamas_cli.models.gguf.architectures.rules import (
    ROTATED_BY_HALVES,
    dense_or_experts,
    expert_fields,
    windows,
)
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.keys import Keys
from adamas_cli.models.gguf.rope import DEFAULT_BASE, scaling

_POST_NORMS: Names = {
    **LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def _olmo(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {"clip_qkv": keys.get("attention.clamp_kqv"), "attention_bias": False}


def _olmoe(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    norm = keys.get("expert_weights_norm", False)
    width = keys.get("expert_feed_forward_length", common["intermediate_size"])
    return {
        **_olmo(keys, common),
        **expert_fields(keys),
        "norm_topk_prob": norm,
        "intermediate_size": width,
    }


def _olmo3(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    """Only layers without a window scale positions."""
    base = keys.get("rope.freq_base", DEFAULT_BASE)
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": base, **scaling(keys)},
        "sliding_attention": {"rope_type": "default", "rope_theta": keys.get("rope.freq_base_swa", base)},
    }
    slides = windows(keys, common["num_hidden_layers"], period=4)
    return {**slides, "attention_bias": False, "rope_parameters": rope}


_OLMO2 = Architecture("olmo2", layer=_POST_NORMS)
_OLMO3 = Architecture("olmo3", _olmo3, _POST_NORMS, rotates=False)


def _of_olmo2(file: GgufFile) -> Architecture:
    return _OLMO3 if file.keys.get("olmo2.attention.sliding_window") else _OLMO2


ARCHITECTURES: Known = {
    "olmo": Architecture("olmo", _olmo, {**LAYER, **ROTATED_BY_HALVES}),
    "olmo2": _of_olmo2,
    "olmoe": Architecture("olmoe", _olmoe, dense_or_experts({})),
}
