"""Recipes shared by several architectures, which undo what converters do to tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.architectures.architecture import LAYER, Names, Place, Recipe
from adamas_cli.models.gguf.keys import Keys

if TYPE_CHECKING:
    from adamas_cli.models.gguf.stored import Stored

QUERY_HEADS, KEY_HEADS = "num_attention_heads", "num_key_value_heads"


def rotated_by_halves(name: str, heads: str) -> Recipe:
    """Queries or keys whose rows a converter ordered for rotating neighbours; transformers rotates the halves
    of a head. heads: the config field that counts them.
    """

    def recipe(place: Place) -> Stored:
        import torch

        stored, count = place(name), place.config[heads]
        rows = torch.arange(stored.shape[0]).view(count, -1, 2)
        return stored.pick(rows.transpose(1, 2).flatten())

    return recipe


def less_one(name: str) -> Recipe:
    """A norm's weight without the 1 that converters add; transformers adds it itself."""

    def recipe(place: Place) -> Stored:
        from adamas_cli.models.gguf.stored import stored

        return stored(place(name).numbers() - (1 if place.leaf == "weight" else 0))

    return recipe


def or_zeros(name: str, length: str = "hidden_size") -> Recipe:
    """A layer whose bias is zero if the file has none. length: the config field with the number of its
    outputs.
    """

    def recipe(place: Place) -> Stored:
        import torch

        from adamas_cli.models.gguf.stored import stored

        if place.leaf == "bias" and not place.has(name):
            return stored(torch.zeros(place.config[length]))
        return place(name)

    return recipe


def side_by_side(*names: str, axis: int = 0) -> Recipe:
    """Tensors that are one in transformers."""

    def recipe(place: Place) -> Stored:
        from adamas_cli.models.gguf.stored import joined

        return joined([place(name) for name in names], axis)

    return recipe


def computed(name: str, function: Callable[[Any], Any], leaf: str | None = None) -> Recipe:
    """A function of a tensor's numbers. leaf: the file's, if it differs from the parameter's."""

    def recipe(place: Place) -> Stored:
        from adamas_cli.models.gguf.stored import stored

        return stored(function(place(name, leaf).numbers()))

    return recipe


def renamed(name: str, leaf: str) -> Recipe:
    """A tensor with another leaf name."""
    return lambda place: place(name, leaf)


def whole(name: str) -> Recipe:
    """A tensor with exactly this name in the file, for all layers."""
    return lambda place: place.file.tensor(name)


def experts(module: str = "mlp.experts") -> Names:
    """Stacked experts."""
    return {
        f"{module}.gate_up_proj": side_by_side("ffn_gate_exps", "ffn_up_exps", axis=1),
        f"{module}.down_proj": "ffn_down_exps",
    }


def shared_expert(module: str) -> Names:
    """The expert that every token goes through."""
    return {
        f"{module}.gate_proj": "ffn_gate_shexp",
        f"{module}.up_proj": "ffn_up_shexp",
        f"{module}.down_proj": "ffn_down_shexp",
    }


def dense_or_experts(names: Names, gate: str = "mlp.gate") -> Names:
    """Names for models in which some layers have experts and others one wide MLP."""
    return {**LAYER, gate: "ffn_gate_inp", **experts(), **names}


ROTATED_BY_HALVES: Names = {
    "self_attn.q_proj": rotated_by_halves("attn_q", QUERY_HEADS),
    "self_attn.k_proj": rotated_by_halves("attn_k", KEY_HEADS),
}


def windows(keys: Keys, layers: int, period: int, full_is_last: bool = True) -> dict[str, Any]:
    """The fields about sliding windows: from the file's pattern for each layer, or the architecture's fixed
    period.
    """
    window = keys.get("attention.sliding_window")
    if not window:
        return {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    pattern = keys.get("attention.sliding_window_pattern", period)
    if not isinstance(pattern, list):
        last = pattern - 1 if full_is_last else 0
        pattern = [layer % pattern != last for layer in range(layers)]
    types = ["sliding_attention" if slides else "full_attention" for slides in pattern[:layers]]
    return {"sliding_window": window, "layer_types": types}


def expert_fields(keys: Keys, count: str = "num_experts") -> dict[str, Any]:
    """Fields of a mixture of experts. count: the config's name for the number of experts."""
    return {
        count: keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "moe_intermediate_size": keys.get(
            "expert_feed_forward_length", keys.number("feed_forward_length", 0)
        ),
    }


def routed_fields(keys: Keys) -> dict[str, Any]:
    """The same for models that choose experts like DeepSeek."""
    return {
        **expert_fields(keys, "n_routed_experts"),
        "n_shared_experts": keys.get("expert_shared_count", 0) or None,
        "first_k_dense_replace": keys.get("leading_dense_block_count", 0),
        "n_group": keys.get("expert_group_count", 0) or 1,
        "topk_group": keys.get("expert_group_used_count", 0) or 1,
        "routed_scaling_factor": keys.get("expert_weights_scale", 0) or 1.0,
        "norm_topk_prob": keys.get("expert_weights_norm", False),
    }


SOFTMAX, SIGMOID = 1, 2


def require_gating(keys: Keys, expected: int) -> None:
    """Raise ModelUnavailableError if a file weights experts by another function than its architecture."""
    found = keys.get("expert_gating_func", expected)
    if found not in (0, expected):
        raise ModelUnavailableError(f"it weights experts by function {found}, not {expected}")
