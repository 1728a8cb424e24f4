"""Checks that the numbers of a config make sense, before weights load and in plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from adamas_cli.models.rotary import factor_lists, ropes

Get = Callable[[str], Any]

# Upper limits of fields; far beyond any existing model, and small enough to build in less than hours.
_MOST_LAYERS, _MOST_WIDTH, _MOST_TOKENS = 1 << 12, 1 << 24, 1 << 40
_WIDTHS = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "vocab_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "kv_lora_rank", "q_lora_rank", "num_experts", "num_local_experts",
    "n_routed_experts",
)  # fmt: skip
_TOKENS = ("max_position_embeddings", "sliding_window", "original_max_position_embeddings")
MOST: dict[str, int] = {
    "num_hidden_layers": _MOST_LAYERS,
    **dict.fromkeys(_WIDTHS, _MOST_WIDTH),
    **dict.fromkeys(_TOKENS, _MOST_TOKENS),
}
# Counts that may be zero.
_MAY_BE_ZERO = {
    "moe_intermediate_size", "kv_lora_rank", "q_lora_rank", "num_experts",
    "num_local_experts", "n_routed_experts", "sliding_window",
}  # fmt: skip
# Numbers that must be positive if a config has them.
_POSITIVE = (
    "rope_theta", "rope_local_base_freq", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon",
    "attn_logit_softcapping", "final_logit_softcapping", "partial_rotary_factor",
)  # fmt: skip
_POSITIVE_IN_ROPES = (
    "rope_theta", "factor", "partial_rotary_factor", "low_freq_factor", "high_freq_factor", "beta_fast",
    "beta_slow", "original_max_position_embeddings",
)  # fmt: skip
_CHOOSING = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def require_sense(get: Get) -> None:
    """Check the fields of a text model's config. Raises TypeError and ValueError, with field and value, for
    impossible ones.
    """
    for name, most in MOST.items():
        for found in _each(get(name)):
            require_count(name, found, most, least=0 if name in _MAY_BE_ZERO else 1)
    for name in _POSITIVE:
        _require_positive(name, get(name))
    for rope in ropes(get):
        _require_scaling(rope)
        for name in _POSITIVE_IN_ROPES:
            _require_positive(name, rope.get(name))
    for name, factors, expected in factor_lists(get):
        _require_factors(name, factors, expected)
    _require_kinds(get)
    _require_experts(get)
    _require_activation(get)
    _require_padding(get)


def require_count(name: str, found: Any, most: int = _MOST_TOKENS, least: int = 0) -> int:
    """A field that counts something. Raises TypeError and ValueError for an invalid one."""
    if isinstance(found, bool) or not isinstance(found, int):
        raise TypeError(f"`{name}` is {found!r}")
    if not least <= found <= most:
        raise ValueError(f"`{name}` is {found}")
    return found


def is_usual(config: Mapping[str, Any]) -> bool:
    """Whether the fields of a Llama-like config file are ones that transformers accepts; for others,
    transformers is asked.
    """
    of_types = all(isinstance(config[name], kinds) for name, kinds in _TYPES.items() if name in config)
    scalings = [config.get(name) for name in ("rope_parameters", "rope_scaling")]
    if not of_types or not all(rope is None or isinstance(rope, Mapping) for rope in scalings):
        return False
    for rope in filter(None, scalings):
        needed = _NEEDED.get(str(rope.get("rope_type", rope.get("type", "default"))))
        if needed is None or not all(isinstance(rope.get(name), int | float) for name in needed):
            return False
    heads, hidden, width = (config.get(name) for name in ("num_attention_heads", "hidden_size", "head_dim"))
    if not (isinstance(heads, int) and isinstance(hidden, int) and heads > 0):
        return False
    return hidden % heads == 0 and (width or hidden // heads) % 2 == 0


# Types that transformers accepts for fields of Llama-like models, and the fields that each kind of scaling
# needs.
_TYPES: dict[str, tuple[type, ...]] = {
    "tie_word_embeddings": (bool,),
    "attention_bias": (bool,),
    "mlp_bias": (bool,),
    "use_cache": (bool,),
    "rms_norm_eps": (int, float),
    "hidden_act": (str,),
    "num_hidden_layers": (int,),
    "head_dim": (int, type(None)),
    "bos_token_id": (int, type(None)),
    "eos_token_id": (int, type(None)),
    "pad_token_id": (int, type(None)),
    "rope_theta": (int, float),
}
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}

_OTHER_SCALINGS = frozenset({"longrope", "su", "mrope"})  # other names in files


def _each(value: Any) -> Iterator[Any]:
    """A field's value, or its per-layer values, without missing ones."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return (one for one in values if one is not None)


def _require_positive(name: str, found: Any) -> None:
    if found is None or isinstance(found, Mapping):  # by kind of layer
        return
    for one in _each(found):
        if isinstance(one, bool) or not isinstance(one, int | float):
            raise TypeError(f"`{name}` is {one!r}")
        if not (math.isfinite(one) and one > 0):
            raise ValueError(f"`{name}` is {one}")


def _require_padding(get: Get) -> None:
    """The padding token must have a row of the embedding, which torch also counts from the end."""
    found, vocabulary = get("pad_token_id"), get("vocab_size")
    if isinstance(found, int) and isinstance(vocabulary, int) and not -vocabulary <= found < vocabulary:
        raise ValueError(f"`pad_token_id` is {found}, of {vocabulary} tokens")


def _require_factors(name: str, factors: Any, expected: int) -> None:
    """longrope's factors, one for each two coordinates that rotate."""
    if not isinstance(factors, Sequence) or isinstance(factors, str):
        raise TypeError(f"`{name}` is {factors!r}")
    if len(factors) != expected:
        raise ValueError(f"`{name}` has {len(factors)} numbers, and {expected} frequencies to divide")
    _require_positive(name, factors)


def _require_scaling(rope: Mapping[str, Any]) -> None:
    kind = rope.get("rope_type", rope.get("type"))
    if kind is None or kind in _NEEDED or kind in _OTHER_SCALINGS:
        return
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if kind not in ROPE_INIT_FUNCTIONS:
        raise ValueError(f"`rope_type` is {kind!r}")


def _require_kinds(get: Get) -> None:
    kinds, layers = get("layer_types"), get("num_hidden_layers")
    if kinds is None or not layers:
        return
    if not isinstance(kinds, Sequence) or not all(isinstance(kind, str) for kind in kinds):
        raise TypeError(f"`layer_types` is {kinds!r}")
    if len(kinds) != layers:
        raise ValueError(f"`layer_types` names {len(kinds)} layers, and `num_hidden_layers` is {layers}")


def _require_experts(get: Get) -> None:
    """A token must not choose more experts than there are."""
    experts = max((one for name in _EXPERTS for one in _each(get(name))), default=0)
    for name in _CHOOSING:
        for chosen in _each(get(name)):
            require_count(name, chosen)
            if experts and chosen > experts:
                raise ValueError(f"`{name}` is {chosen}, and there are {experts} experts")


# Used by most models; others are looked up in transformers, which takes seconds to import.
_USUAL_ACTIVATIONS = frozenset(
    {
        "silu",
        "swish",
        "gelu",
        "gelu_new",
        "gelu_fast",
        "gelu_pytorch_tanh",
        "relu",
        "relu2",
        "sigmoid",
        "tanh",
    }
)


def _require_activation(get: Get) -> None:
    for name in ("hidden_act", "hidden_activation", "activation_function"):
        found = get(name)
        if found is None or (isinstance(found, str) and found in _USUAL_ACTIVATIONS):
            continue
        if isinstance(found, str):
            from transformers.activations import ACT2FN

            if found in ACT2FN:
                continue
        raise ValueError(f"`{name}` is {found!r}")
