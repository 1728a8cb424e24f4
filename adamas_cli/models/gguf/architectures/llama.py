"""Llama, and models that differ from it in few settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known, Names, Place, Recipe
from adamas_cli.models.gguf.architectures.rules import (
    ROTATED_BY_HALVES,
    expert_fields,
    experts,
    or_zeros,
    shared_expert,
)
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.keys import Keys

if TYPE_CHECKING:
    from adamas_cli.models.gguf.stored import Stored

# Only the larger Llama 4 has no norms of queries and keys. These norms have no weights, so llama.cpp
# identifies the model by the same number.
_EXPERTS_OF_MAVERICK = 128
_LAYER: Names = {**LAYER, **ROTATED_BY_HALVES, "self_attn.o_proj": or_zeros("attn_output")}


def _llama(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": keys.has("blk.0.attn_q.bias"), "mlp_bias": keys.has("blk.0.ffn_up.bias")}


def _mistral(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {"sliding_window": keys.get("attention.sliding_window") or None}


def _mixtral(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    width = keys.get("expert_feed_forward_length", common["intermediate_size"])
    fields = {**expert_fields(keys, "num_local_experts"), **_mistral(keys, common)}
    return fields | {"intermediate_size": width}


def _ministral(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    rope = dict(common["rope_parameters"])
    if (scale := keys.get("rope.scaling.yarn_log_multiplier")) is not None and scale:
        rope |= {"mscale": scale, "mscale_all_dim": scale}
    rope["llama_4_scaling_beta"] = keys.get("attention.temperature_scale", 0.0)
    rope.setdefault("original_max_position_embeddings", common["max_position_embeddings"])
    return {"rope_parameters": rope, "sliding_window": None}


def _minicpm(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return _llama(keys, common) | {
        "embedding_multiplier": keys.get("embedding_scale", 12.0),
        "residual_multiplier": keys.get("residual_scale", 1.4 / common["num_hidden_layers"] ** 0.5),
        "logits_scaling": keys.get("logit_scale", common["hidden_size"] / 256),
        "attention_multiplier": common["head_dim"] ** -0.5,
    }


def _smollm3(_keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    layers = common["num_hidden_layers"]
    return {
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)],
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * layers,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _arcee(_keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {"hidden_act": "relu2", "attention_bias": False, "mlp_bias": False}


def _seed_oss(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "attention_out_bias": keys.has("blk.0.attn_output.bias"),
        "mlp_bias": False,
    }


def _llama4(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    layers = common["num_hidden_layers"]
    step = keys.get("interleave_moe_layer_step", 1)
    chunk = keys.get("attention.chunk_size", 8192)
    with_rope = [int((layer + 1) % 4 != 0) for layer in range(layers)]
    return {
        **expert_fields(keys, "num_local_experts"),
        "intermediate_size": keys.get("expert_feed_forward_length", common["intermediate_size"]),
        "intermediate_size_mlp": common["intermediate_size"],
        "moe_layers": list(range(step - 1, layers, step)),
        "interleave_moe_layer_step": step,
        "no_rope_layers": with_rope,
        "attention_chunk_size": chunk,
        "layer_types": ["chunked_attention" if rope else "full_attention" for rope in with_rope],
        "use_qk_norm": keys.get("expert_count") != _EXPERTS_OF_MAVERICK,
        "attn_temperature_tuning": True,
        "attention_bias": False,
    }


def _inputs_first(*names: str) -> Recipe:
    """Experts' weights concatenated, as [inputs, outputs]."""

    def recipe(place: Place) -> Stored:
        import torch

        from adamas_cli.models.gguf.stored import stored

        return stored(torch.cat([place(name).numbers() for name in names], 1).transpose(1, 2))

    return recipe


LLAMA = Architecture("llama", _llama, _LAYER)
_MISTRAL = Architecture("mistral", _mistral, _LAYER)
_MIXTRAL = Architecture("mixtral", _mixtral, {**_LAYER, "mlp.gate": "ffn_gate_inp", **experts()})


def _of_llama(file: GgufFile) -> Architecture:
    if file.keys.get("llama.expert_count", 0):
        return _MIXTRAL
    return _MISTRAL if file.keys.get("llama.attention.sliding_window") else LLAMA


ARCHITECTURES: Known = {
    "llama": _of_llama,
    "internlm2": LLAMA,
    "minicpm": Architecture("granite", _minicpm, _LAYER),
    "mistral3": Architecture("ministral3", _ministral, _LAYER),
    "smollm3": Architecture("smollm3", _smollm3, _LAYER),
    "llama4": Architecture(
        "llama4_text",
        _llama4,
        {
            **LAYER,
            "feed_forward.gate_proj": "ffn_gate",
            "feed_forward.up_proj": "ffn_up",
            "feed_forward.down_proj": "ffn_down",
            "feed_forward.router": "ffn_gate_inp",
            **shared_expert("feed_forward.shared_expert"),
            "feed_forward.experts.gate_up_proj": _inputs_first("ffn_gate_exps", "ffn_up_exps"),
            "feed_forward.experts.down_proj": _inputs_first("ffn_down_exps"),
        },
    ),
    "arcee": Architecture("arcee", _arcee, _LAYER),
    "seed_oss": Architecture(
        "seed_oss", _seed_oss, {**LAYER, "post_attention_layernorm": "post_attention_norm"}
    ),
}
