"""How a GGUF file rotates positions, as transformers' `rope_parameters`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.keys import Keys

FREQUENCIES = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
DEFAULT_BASE = 10000.0  # the default
_LLAMA3_BANDS = (1.0, 4.0)  # low and high frequency factors of every model with this scaling
_TOLERANCE = 1e-4  # of a factor: float32 arithmetic on both sides


def rope_parameters(keys: Keys, head_dim: int, factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """Parameters shared by all layers. head_dim: numbers of a head. factors: from those tensors among
    FREQUENCIES, SHORT and LONG that the file has.
    """
    rotated = keys.get("rope.dimension_count", head_dim)
    base = keys.get("rope.freq_base", DEFAULT_BASE)
    if keys.get("rope.freq_base_swa", base) != base:
        raise ModelUnavailableError("its layers with windows turn positions at another rate")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if rotated != head_dim:
        rope["partial_rotary_factor"] = rotated / head_dim
    rope |= scaling(keys)
    if factors and rope["rope_type"] != "default":
        raise ModelUnavailableError("it scales positions twice, by keys and by tensors")
    context = keys.need("context_length")
    if LONG in factors:
        original = keys.get("rope.scaling.original_context_length", context)
        attention = keys.get("rope.scaling.attn_factor", 1.0)
        rope |= by_factors(factors.get(SHORT, factors[LONG]), factors[LONG], original, attention)
    elif FREQUENCIES in factors:
        rope |= _by_frequency(factors[FREQUENCIES], rope["rope_theta"], rotated, context)
    return rope


def scaling(keys: Keys) -> dict[str, Any]:
    """The fields given by the keys `rope.scaling.*`; none if they scale nothing."""
    kind = keys.get("rope.scaling.type", "none")
    factor = keys.get("rope.scaling.factor", 1.0)
    if kind == "linear" and factor != 1:
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        if kind not in ("none", "linear", "longrope"):
            raise ModelUnavailableError(f"it scales positions by an unknown method, {kind!r}")
        return {}
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.get(
            "rope.scaling.original_context_length", keys.need("context_length")
        ),
    }
    optional = {
        "beta_fast": "rope.scaling.yarn_beta_fast",
        "beta_slow": "rope.scaling.yarn_beta_slow",
        "attention_factor": "rope.scaling.yarn_attn_factor",
    }
    return found | {field: keys.get(key) for field, key in optional.items() if keys.get(key) is not None}


def _by_frequency(factors: list[float], base: float, rotated: int, context: int) -> dict[str, Any]:
    """Scaling that divides each frequency by a factor. If the factors are Llama 3's, it is expressed as that,
    since the rotation is then known before a step; otherwise by the factors themselves.
    """
    if all(math.isclose(factor, 1.0, rel_tol=_TOLERANCE) for factor in factors):
        return {}
    low, high = _LLAMA3_BANDS
    for original in (2**power for power in range(5, 21)):
        expected = _llama3_factors(base, rotated, max(factors), original)
        if all(math.isclose(*pair, rel_tol=_TOLERANCE) for pair in zip(expected, factors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": round(max(factors), 4),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    return by_factors(factors, factors, context, 1.0)


def by_factors(
    short: list[float], long: list[float], original: int, attention_factor: float
) -> dict[str, Any]:
    """Scaling by given factors, with different ones beyond the original training context."""
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "factor": 1.0,
        "attention_factor": attention_factor,
        "original_max_position_embeddings": original,
    }


def _llama3_factors(base: float, rotated: int, factor: float, original: int) -> list[float]:
    """The factors by which Llama 3's scaling divides the frequencies."""
    low, high = _LLAMA3_BANDS
    factors = []
    for pair in range(0, rotated, 2):
        turns = original / (2 * math.pi * base ** (pair / rotated))  # in the original context
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(factor)
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
