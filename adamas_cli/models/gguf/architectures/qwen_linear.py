"""Qwen 3 Next and 3.5: every fourth layer has full attention, the others linear attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adamas_cli.models.gguf.architectures.architecture import (
    ENDS,
    LAYER,
    Architecture,
    Known,
    Names,
    Place,
    Recipe,
)
from adamas_cli.models.gguf.architectures.rules import (
    dense_or_experts,
    expert_fields,
    less_one,
    renamed,
    shared_expert,
)
from adamas_cli.models.gguf.keys import Keys

if TYPE_CHECKING:
    from torch import Tensor

    from adamas_cli.models.gguf.stored import Stored

KEY_HEADS, VALUE_HEADS = "linear_num_key_heads", "linear_num_value_heads"
KEY_DIM, VALUE_DIM = "linear_key_head_dim", "linear_value_head_dim"


def _fields(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    layers = common["num_hidden_layers"]
    sections = keys.get("rope.dimension_sections")
    every = keys.get("full_attention_interval", 4)
    recurrent = keys.get("attention.recurrent_layers") or [
        (layer + 1) % every != 0 for layer in range(layers)
    ]
    heads = keys.need("ssm.time_step_rank")
    rope = dict(common["rope_parameters"])
    if sections:
        rope |= {"mrope_section": sections[:3], "mrope_interleaved": True}
    return {
        "layer_types": ["linear_attention" if linear else "full_attention" for linear in recurrent[:layers]],
        "linear_conv_kernel_dim": keys.need("ssm.conv_kernel"),
        KEY_DIM: keys.need("ssm.state_size"),
        KEY_HEADS: keys.need("ssm.group_count"),
        VALUE_HEADS: heads,
        VALUE_DIM: keys.need("ssm.inner_size") // heads,
        "attention_bias": keys.has(f"blk.{layers - 1}.attn_q.bias"),
        "rope_parameters": rope,
    }


def _mixture(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        **_fields(keys, common),
        **expert_fields(keys),
        "shared_expert_intermediate_size": keys.need("expert_shared_feed_forward_length"),
        "norm_topk_prob": keys.get("expert_weights_norm", True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _by_key_heads(place: Place) -> Stored:
    """One matrix of queries, keys, values and gates, grouped by key head; files store them separately."""
    import torch

    from adamas_cli.models.gguf.stored import joined

    if place.has("ssm_in"):
        return place("ssm_in")
    both = joined([place("attn_qkv"), place("attn_gate")])
    heads, config = place.config[KEY_HEADS], place.config
    of_keys, of_values = heads * config[KEY_DIM], config[VALUE_HEADS] * config[VALUE_DIM]
    parts = torch.arange(both.shape[0]).split([of_keys, of_keys, of_values, of_values])
    return both.pick(torch.cat([part.view(heads, -1) for part in parts], 1).flatten())


def _grouped(places: Tensor, config: Any, width: int) -> Tensor:
    """Reorder value heads: transformers sorts them by key head, files by their number within it."""
    return places.view(-1, config[KEY_HEADS], width).transpose(0, 1).flatten()


def _values(name: str, width: str | None, leaf: str | None = None) -> Recipe:
    """A tensor whose last part belongs to values. width: the config field with the size per head,
    None for 1.
    """

    def recipe(place: Place) -> Stored:
        import torch

        stored, config = place(name, leaf), place.config
        each = config[width] if width else 1
        rows = torch.arange(stored.shape[0])
        first = len(rows) - config[VALUE_HEADS] * each
        return stored.pick(torch.cat((rows[:first], _grouped(rows[first:], config, each))))

    return recipe


def _values_in(name: str) -> Recipe:
    """A weight whose inputs are values."""

    def recipe(place: Place) -> Stored:
        import torch

        stored, config = place(name), place.config
        columns = _grouped(torch.arange(stored.shape[1]), config, config[VALUE_DIM])
        return stored.pick_columns(columns)

    return recipe


def _decay(reorder: bool) -> Callable[[Place], Stored]:
    """The logarithm of minus the decay, for each value head."""

    def recipe(place: Place) -> Stored:
        import torch

        from adamas_cli.models.gguf.stored import stored

        decay = torch.log(-place.bare("ssm_a").numbers().flatten())
        return stored(_grouped(decay, place.config, 1) if reorder else decay)

    return recipe


_NORMS: Names = {
    "input_layernorm": less_one("attn_norm"),
    "post_attention_layernorm": less_one("post_attention_norm"),
    "self_attn.q_norm": less_one("attn_q_norm"),
    "self_attn.k_norm": less_one("attn_k_norm"),
    "linear_attn.norm": "ssm_norm",
}
_NEXT: Names = {
    **_NORMS,
    "linear_attn.dt_bias": renamed("ssm_dt", "bias"),
    "linear_attn.A_log": _decay(reorder=False),
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.in_proj_qkvz": _by_key_heads,
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.out_proj": "ssm_out",
}
_LATER: Names = {
    **_NORMS,
    "linear_attn.dt_bias": _values("ssm_dt", None, "bias"),
    "linear_attn.A_log": _decay(reorder=True),
    "linear_attn.conv1d": _values("ssm_conv1d", VALUE_DIM),
    "linear_attn.in_proj_qkv": _values("attn_qkv", VALUE_DIM),
    "linear_attn.in_proj_z": _values("attn_gate", VALUE_DIM),
    "linear_attn.in_proj_a": _values("ssm_alpha", None),
    "linear_attn.in_proj_b": _values("ssm_beta", None),
    "linear_attn.out_proj": _values_in("ssm_out"),
}
_EXPERTS: Names = {**shared_expert("mlp.shared_expert"), "mlp.shared_expert_gate": "ffn_gate_inp_shexp"}
_ENDS: Names = {**ENDS, "model.norm": less_one("output_norm")}

ARCHITECTURES: Known = {
    "qwen3next": Architecture("qwen3_next", _mixture, dense_or_experts({**_NEXT, **_EXPERTS}), _ENDS),
    "qwen35": Architecture("qwen3_5_text", _fields, {**LAYER, **_LATER}, _ENDS),
    "qwen35moe": Architecture("qwen3_5_moe_text", _mixture, dense_or_experts({**_LATER, **_EXPERTS}), _ENDS),
}
