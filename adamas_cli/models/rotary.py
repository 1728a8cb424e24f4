"""Rotary scaling that depends on text length. The rotation of positions must be known before the first token
is read, since keys rotated in different ways cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Get = Callable[[str], Any]
BY_LENGTH = ("longrope", "dynamic")  # kinds of scaling; all others rotate positions the same at any length
_ALSO_LONGROPE = ("su", "yarn")  # older names in files of Phi 3
# With dynamic scaling, lengths that rotate alike end at multiples of this share of the original context. If
# every token counted, no kept document would serve another question.
_DYNAMIC_STEPS = 4


@dataclass(frozen=True)
class LengthScaling:
    """Scaling of one kind. original: tokens of the context up to which positions rotate as first trained."""

    kind: str
    original: int

    def reach(self, tokens: int) -> int:
        """The length that represents all lengths with the same rotation; 0 within the original context."""
        if tokens <= self.original:
            return 0
        if self.kind == "longrope":
            return self.original + 1
        step = max(1, self.original // _DYNAMIC_STEPS)
        return -(-tokens // step) * step


@dataclass(frozen=True)
class Rotation:
    """How a model's positions rotate, as far as that depends on text length."""

    scalings: tuple[LengthScaling, ...] = ()

    def reach(self, tokens: int) -> int | None:
        """See `LengthScaling.reach`; None if positions rotate the same at any length."""
        return max((scaling.reach(tokens) for scaling in self.scalings), default=None)

    def line(self, tokens: int) -> str | None:
        """One line about a text of this length; None if there is nothing to choose."""
        if not self.scalings:
            return None
        original = max(scaling.original for scaling in self.scalings)
        reach = self.reach(tokens)
        kind = self.scalings[0].kind
        if not reach:
            return f"{kind} positions: short factors, for up to {original:,} tokens"
        how = "long factors" if kind == "longrope" else f"factors for {reach:,} tokens"
        return f"{kind} positions: {how}, beyond {original:,} tokens"


def rotation_of(get: Get) -> Rotation:
    """The rotation in a text model's config. get: a field by name, None if absent."""
    found = {
        LengthScaling(kind, original)
        for rope in ropes(get)
        if (kind := _kind(rope, get)) in BY_LENGTH and (original := _original(kind, rope, get))
        if not _is_alike(rope)
    }
    return Rotation(tuple(sorted(found, key=lambda scaling: (scaling.kind, scaling.original))))


def context_of(get: Get) -> int | None:
    """A text model's maximum tokens: those of its config, times the factor by which it scales beyond its
    original context, if the config gives that context. None if it does not say.
    """
    stated = get("max_position_embeddings")
    if not isinstance(stated, int):
        return None
    scaled = [
        int(rope["factor"] * original)
        for rope in ropes(get)
        if _kind(rope, get) in ("dynamic", "yarn")
        and isinstance(rope.get("factor"), int | float)
        and (original := _original(_kind(rope, get), rope, get))
    ]
    return max([stated, *scaled])


def factor_lists(get: Get) -> Iterator[tuple[str, Any, int]]:
    """longrope's lists of factors: the name, the value found, and the expected length."""
    for rope in ropes(get):
        if _kind(rope, get) == "longrope":
            dim = get("qk_rope_head_dim") or get("head_dim")
            if not dim and not (get("hidden_size") and get("num_attention_heads")):
                return  # the config uses other names
            dim = dim or get("hidden_size") // get("num_attention_heads")
            share = rope.get("partial_rotary_factor") or get("partial_rotary_factor") or 1.0
            for name in ("short_factor", "long_factor"):
                yield name, rope.get(name), int(dim * share) // 2


def ropes(get: Get) -> Iterator[Mapping[str, Any]]:
    """The scaling of all layers, or of each kind of layer; old files' spelling included."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = get(name)
        if isinstance(rope, Mapping):
            yield rope
            yield from (value for value in rope.values() if isinstance(value, Mapping))


def _is_alike(rope: Mapping[str, Any]) -> bool:
    """Whether short and long texts have the same factors, as in some GGUF files."""
    pairs = [(rope.get(f"short_{name}"), rope.get(f"long_{name}")) for name in ("factor", "mscale")]
    return pairs[0][0] is not None and all(short == long for short, long in pairs)


def _kind(rope: Mapping[str, Any], get: Get) -> str:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in _ALSO_LONGROPE and str(get("model_type")).startswith("phi3"):
        return "longrope"
    return "longrope" if kind == "su" else str(kind)


def _original(kind: str, rope: Mapping[str, Any], get: Get) -> int | None:
    if kind == "dynamic":  # transformers counts from the config's own context
        return get("max_position_embeddings")
    given = get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    return given or get("max_position_embeddings")
