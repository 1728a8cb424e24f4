"""Models from before Llama: GPT-2, GPT-NeoX, BLOOM, Falcon, MPT, StableLM and StarCoder 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known, Names, Place, Recipe
from adamas_cli.models.gguf.architectures.rules import computed
from adamas_cli.models.gguf.keys import Keys

if TYPE_CHECKING:
    from adamas_cli.models.gguf.stored import Stored


def _grouped(place: Place) -> Stored:
    """One matrix of queries, keys and values, ordered by group of heads: each group's queries, key
    and value.
    """
    import torch

    fused, groups = place("attn_qkv"), place.config["num_key_value_heads"]
    rows = torch.arange(fused.shape[0])
    width = place.config["hidden_size"] // place.config["num_attention_heads"]
    queries, keys, values = rows.split([place.config["num_attention_heads"] * width] + [groups * width] * 2)
    parts = [part.view(groups, -1) for part in (queries, keys, values)]
    return fused.pick(torch.cat(parts, 1).flatten())


def _transposed(name: str) -> Recipe:
    """A weight stored as [inputs, outputs], or a bias."""
    return computed(name, lambda numbers: numbers.t() if numbers.dim() == 2 else numbers)


def _gpt2(_keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        "n_embd": common["hidden_size"],
        "n_layer": common["num_hidden_layers"],
        "n_head": common["num_attention_heads"],
        "n_positions": common["max_position_embeddings"],
        "n_inner": common["intermediate_size"],
        "layer_norm_epsilon": common["layer_norm_eps"],
    }


def _gpt_neox(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        "use_parallel_residual": keys.get("use_parallel_residual", True),
        "attention_bias": keys.has("blk.0.attn_qkv.bias"),
    }


def _bloom(_keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        "n_layer": common["num_hidden_layers"],
        "n_head": common["num_attention_heads"],
        "layer_norm_epsilon": common["layer_norm_eps"],
    }


def _falcon(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    groups = common["num_key_value_heads"]
    return {
        "new_decoder_architecture": keys.has("blk.0.attn_norm_2.weight"),
        "num_kv_heads": groups,
        "multi_query": groups == 1,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "layer_norm_epsilon": common["layer_norm_eps"],
        "ffn_hidden_size": common["intermediate_size"],
    }


def _mpt(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    alibi = keys.get("attention.max_alibi_bias", 0.0)
    return {
        "d_model": common["hidden_size"],
        "n_heads": common["num_attention_heads"],
        "n_layers": common["num_hidden_layers"],
        "max_seq_len": common["max_position_embeddings"],
        "expansion_ratio": common["intermediate_size"] // common["hidden_size"],
        "layer_norm_epsilon": common["layer_norm_eps"],
        "attn_config": {
            "alibi": alibi > 0,
            "alibi_bias_max": int(alibi) or 8,
            "clip_qkv": keys.get("attention.clamp_kqv") or None,
        },
    }


def _stablelm(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    parallel = keys.get("use_parallel_residual", False)
    return {
        "use_qkv_bias": keys.has("blk.0.attn_q.bias"),
        "use_parallel_residual": parallel and not keys.has("blk.0.ffn_norm.weight"),
        "qk_layernorm": keys.has("blk.0.attn_q_norm.weight"),
    }


def _starcoder2(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        "norm_epsilon": common["layer_norm_eps"],
        "use_bias": keys.has("blk.0.attn_q.bias"),
        "sliding_window": keys.get("attention.sliding_window") or None,
    }


_GPT2: Names = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": _transposed("attn_qkv"),
    "attn.c_proj": _transposed("attn_output"),
    "mlp.c_fc": _transposed("ffn_up"),
    "mlp.c_proj": _transposed("ffn_down"),
}
_FOUR: Names = {
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_BY_ATTENTION: Names = {"self_attention.query_key_value": _grouped, "self_attention.dense": "attn_output"}
_MPT: Names = {
    "norm_1": "attn_norm",
    "norm_2": "ffn_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.out_proj": "attn_output",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}
_TRANSFORMER: Names = {"transformer.ln_f": "output_norm", "lm_head": "output"}
_FALCON_ENDS: Names = {**_TRANSFORMER, "transformer.word_embeddings": "token_embd"}

ARCHITECTURES: Known = {
    "gpt2": Architecture(
        "gpt2",
        _gpt2,
        _GPT2,
        {**_TRANSFORMER, "transformer.wte": "token_embd", "transformer.wpe": "position_embd"},
        "transformer.h.",
    ),
    "gptneox": Architecture(
        "gpt_neox",
        _gpt_neox,
        {**_FOUR, "attention.query_key_value": _grouped, "attention.dense": "attn_output"},
        {"gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm", "lm_head": "output"},
        "gpt_neox.layers.",
    ),
    "bloom": Architecture(
        "bloom",
        _bloom,
        {**_FOUR, **_BY_ATTENTION},
        {**_FALCON_ENDS, "transformer.word_embeddings_layernorm": "token_embd_norm"},
        "transformer.h.",
    ),
    "falcon": Architecture(
        "falcon",
        _falcon,
        {**_FOUR, **_BY_ATTENTION, "ln_attn": "attn_norm_2", "ln_mlp": "attn_norm"},
        _FALCON_ENDS,
        "transformer.h.",
        without=("head_dim",),
    ),
    "mpt": Architecture(
        "mpt",
        _mpt,
        _MPT,
        {"transformer.wte": "token_embd", "transformer.norm_f": "output_norm", "lm_head": "output"},
        "transformer.blocks.",
    ),
    "stablelm": Architecture("stablelm", _stablelm, {**LAYER}),
    "starcoder2": Architecture(
        "starcoder2", _starcoder2, {**LAYER, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    ),
}
