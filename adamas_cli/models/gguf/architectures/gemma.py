"""Gemma 1 to 4."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.architectures.architecture import ENDS, LAYER, Architecture, Known, Names, Recipe
from adamas_cli.models.gguf.architectures.rules import less_one, windows
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.keys import Keys
from adamas_cli.models.gguf.rope import DEFAULT_BASE, FREQUENCIES, scaling

_ENDS: Names = {**ENDS, "model.norm": less_one("output_norm")}
_NORMS: Names = {
    "input_layernorm": less_one("attn_norm"),
    "post_attention_layernorm": less_one("post_attention_norm"),
    "pre_feedforward_layernorm": less_one("ffn_norm"),
    "post_feedforward_layernorm": less_one("post_ffw_norm"),
    "self_attn.q_norm": less_one("attn_q_norm"),
    "self_attn.k_norm": less_one("attn_k_norm"),
}
# The largest model of a generation scales queries by a head's share of the hidden size, not by the length of
# its keys; llama.cpp identifies it by its number of layers.
_LAYERS_OF_GEMMA2_27B, _LAYERS_OF_GEMMA3_27B = 46, 62


def _query_scalar(common: dict[str, Any], largest: int) -> int:
    if common["num_hidden_layers"] == largest:
        return int(common["hidden_size"] // common["num_attention_heads"])
    return int(common["head_dim"])


def _gemma2(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        **windows(keys, common["num_hidden_layers"], period=2),
        "query_pre_attn_scalar": _query_scalar(common, _LAYERS_OF_GEMMA2_27B),
        "attn_logit_softcapping": keys.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.get("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        **windows(keys, common["num_hidden_layers"], period=6),
        "query_pre_attn_scalar": _query_scalar(common, _LAYERS_OF_GEMMA3_27B),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
        "rope_parameters": _by_layer(keys),
    }


def _by_layer(keys: Keys) -> dict[str, Any]:
    base = keys.get("rope.freq_base", 1_000_000.0)
    return {
        "full_attention": {"rope_type": "default", "rope_theta": base, **scaling(keys)},
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": keys.get("rope.freq_base_swa", DEFAULT_BASE),
        },
    }


def _per_layer_inputs(keys: Keys) -> dict[str, Any]:
    return {
        "hidden_size_per_layer_input": keys.get("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": keys.rows.get("per_layer_token_embd.weight", 0),
        "num_kv_shared_layers": keys.get("attention.shared_kv_layers", 0),
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
    }


def _gemma3n(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    layers = common["num_hidden_layers"]
    cuts = keys.each("activation_sparsity_scale", layers, -math.inf)
    return {
        **windows(keys, layers, period=5),
        **_per_layer_inputs(keys),
        "intermediate_size": keys.each("feed_forward_length", layers),
        "laurel_rank": keys.rows.get("blk.0.laurel_l.weight"),
        "altup_num_inputs": keys.need("altup.num_inputs"),
        "altup_active_idx": keys.get("altup.active_idx", 0),
        # Files store the normal distribution's quantile for the share of zeros.
        "activation_sparsity_pattern": [round(NormalDist().cdf(cut), 6) for cut in cuts],
        "rope_parameters": _by_layer(keys),
    }


def _gemma4(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    layers = common["num_hidden_layers"]
    rope = _by_layer(keys)
    if rope["full_attention"]["rope_type"] != "default":
        raise ModelUnavailableError("it scales positions in a way unknown for its architecture")
    keys.get("rope.dimension_count")
    if keys.get("rope.dimension_count_swa", keys.get("attention.key_length_swa")) != keys.get(
        "attention.key_length_swa"
    ):
        raise ModelUnavailableError("it rotates a part of each head")
    widths = keys.each("feed_forward_length", layers)
    slides = windows(keys, layers, period=6)
    heads = keys.each("attention.head_count_kv", layers)
    of_kind = dict(zip(slides["layer_types"], heads, strict=True))
    full, sliding = keys.get("attention.key_length"), keys.get("attention.key_length_swa")
    if keys.get("attention.value_length_swa", sliding) != sliding:
        raise ModelUnavailableError("its values have another length than its keys")
    return {
        **slides,
        **_per_layer_inputs(keys),
        "intermediate_size": min(widths),
        "use_double_wide_mlp": max(widths) == 2 * min(widths),
        "head_dim": sliding,
        "global_head_dim": full,
        "num_key_value_heads": of_kind.get("sliding_attention", heads[0]),
        "num_global_key_value_heads": of_kind.get("full_attention", heads[0]),
        "attention_k_eq_v": not all(
            keys.has(f"blk.{layer}.attn_v.weight")
            for layer, kind in enumerate(slides["layer_types"])
            if kind == "full_attention" and keys.has(f"blk.{layer}.attn_k.weight")
        ),
        "rope_parameters": rope,
    }


def _gemma4_rope(file: GgufFile) -> Architecture:
    """Full layers use only the first frequencies of a head; files divide the rest by a number so large that
    these do not rotate.
    """

    def fields(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
        found = _gemma4(keys, common)
        factors = file.tensor(FREQUENCIES).numbers() if FREQUENCIES in file.entries else None
        turning = 1.0 if factors is None else (factors == 1).float().mean().item()
        found["rope_parameters"]["full_attention"] |= {
            "rope_type": "proportional",
            "partial_rotary_factor": turning,
        }
        return found

    return Architecture("gemma4_text", fields, _GEMMA4, _GEMMA4_ENDS, rotates=False, unused=_SHARED)


def _stacked(name: str, index: int) -> Recipe:
    return lambda place: place(name).part(index, index + 1)


_PLAIN_NORMS: Names = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_PER_LAYER: Names = {
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
}
_PER_LAYER_ENDS: Names = {
    **ENDS,
    "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_model_projection": "per_layer_model_proj",
    "model.per_layer_projection_norm": "per_layer_proj_norm",
}
_GEMMA3N: Names = {
    **LAYER,
    **_PLAIN_NORMS,
    **_PER_LAYER,
    "altup.correct_output_scale": "altup_correct_scale",
    "altup.correction_coefs": "altup_correct_coef",
    "altup.prediction_coefs": "altup_predict_coef",
    "altup.modality_router": "altup_router",
    "altup.router_norm": "altup_router_norm",
    "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r",
    "laurel.post_laurel_norm": "laurel_post_norm",
}
_GEMMA3N_ENDS: Names = {
    **_PER_LAYER_ENDS,
    **{f"model.altup_projections.{index}": _stacked("altup_proj", index) for index in range(8)},
    **{
        f"model.altup_unembed_projections.{index}": _stacked("altup_unembd_proj", index) for index in range(8)
    },
}
_GEMMA4: Names = {**LAYER, **_PLAIN_NORMS, **_PER_LAYER, "layer_scalar": "layer_output_scale"}
_GEMMA4_ENDS = _PER_LAYER_ENDS
_SHARED = (r"blk\.\d+\.attn_(k|v|k_norm)\.weight",)  # of layers that use an earlier layer's

ARCHITECTURES: Known = {
    "gemma3n": Architecture("gemma3n_text", _gemma3n, _GEMMA3N, _GEMMA3N_ENDS, rotates=False, unused=_SHARED),
    "gemma4": _gemma4_rope,
    "gemma": Architecture(
        "gemma",
        layer={**LAYER, **_NORMS, "post_attention_layernorm": less_one("ffn_norm")},
        ends=_ENDS,
    ),
    "gemma2": Architecture("gemma2", _gemma2, {**LAYER, **_NORMS}, _ENDS),
    "gemma3": Architecture("gemma3_text", _gemma3, {**LAYER, **_NORMS}, _ENDS, rotates=False),
}
