"""Hybrid models by their config fields: which layers are recurrent, and the size of a state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

FULL, SLIDING, HYBRID = "full_attention", "sliding_attention", "hybrid"
LINEAR, CONVOLUTION = "linear_attention", "conv"
RECURRENT = (LINEAR, CONVOLUTION)  # layers with a state of fixed size
STATELESS = ("mlp", "moe")
RECURRENT_BYTES = 4  # of a number in a recurrent state; convolution windows use the model's format

Get = Callable[[str], Any]

_LETTERS = {"M": LINEAR, "*": FULL, "-": "mlp", "E": "moe"}  # in Nemotron-H's pattern


def kinds_by_pattern(get: Get, layers: int) -> list[str] | None:
    """The kind of each layer for configs that give a rule for hybrids instead of a list; else None."""
    if pattern := get("hybrid_override_pattern"):
        return [_LETTERS.get(letter, letter) for letter in pattern]
    if get("mamba_d_ssm"):  # Falcon-H1: both in each layer
        return [HYBRID] * layers
    if interval := get("full_attention_interval"):
        return _where(layers, [index for index in range(layers) if (index + 1) % interval == 0])
    if period := get("attn_layer_period"):
        offset = get("attn_layer_offset") or 0
        return _where(layers, [index for index in range(layers) if index % period == offset])
    if (indices := get("attn_layer_indices")) is not None:
        return _where(layers, indices)
    if (indices := get("full_attn_idxs")) is not None:
        return _where(layers, indices, CONVOLUTION)
    numbered = (get("linear_attn_config") or {}).get("full_attn_layers")
    return None if numbered is None else _where(layers, [number - 1 for number in numbered])


def _where(layers: int, full: Sequence[int], other: str = LINEAR) -> list[str]:
    return [FULL if index in full else other for index in range(layers)]


@dataclass(frozen=True)
class StateSize:
    """Numbers in one layer's state: the recurrent part, and the window of its convolution."""

    recurrent: int = 0
    window: int = 0

    def bytes(self, item: int) -> int:
        """Bytes of one state; item: bytes of a number in the model's format."""
        return self.recurrent * RECURRENT_BYTES + self.window * item


NO_STATE = StateSize()

# Names of: heads, their width, the state's width, groups that share its projections, the convolution.
_STATE_SPACES = (
    ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv"),
    ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel"),
    ("n_mamba_heads", "mamba_headdim", "mamba_d_state", "mamba_ngroups", "mamba_d_conv"),
)


def state_size(get: Get) -> StateSize:
    """The state of one recurrent layer, if its kind is known; else of size 0."""
    for names in _STATE_SPACES:
        heads, width, state, groups, kernel = (get(name) for name in names)
        if heads and width and state:
            inner = heads * width
            return StateSize(inner * state, (inner + 2 * (groups or 1) * state) * (kernel or 1))
    if heads := get("linear_num_value_heads"):
        key, value = get("linear_key_head_dim"), get("linear_value_head_dim")
        channels = 2 * get("linear_num_key_heads") * key + heads * value
        return StateSize(heads * key * value, channels * get("linear_conv_kernel_dim"))
    if heads := get("linear_num_heads") or (get("linear_attn_config") or {}).get("num_heads"):
        others = get("linear_attn_config") or {}
        width = get("linear_head_dim") or others["head_dim"]
        kernel = get("linear_conv_kernel_dim") or others["short_conv_kernel_size"]
        return StateSize(heads * width**2, 3 * heads * width * kernel)
    if state := get("mamba_d_state"):  # Jamba's first kind of state spaces
        inner = get("mamba_expand") * get("hidden_size")
        return StateSize(inner * state, inner * get("mamba_d_conv"))
    if kernel := get("conv_L_cache"):
        return StateSize(0, get("hidden_size") * kernel)
    return NO_STATE
