"""One token, or a few, in one call of compiled functions, on a CPU; see `describe.py` for the models that
have them. All others go through transformers' forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from adamas_kernels.contract import NewTokens, SparseSettings
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.layer import FULL, SLIDING
from adamas_cli.cache.mode import Mode
from adamas_cli.engine.interface import Pass, under_way
from adamas_cli.engine.steps.describe import SPLIT, NoCompiledFormError, body_of, describe, rotation_kinds

if TYPE_CHECKING:
    from adamas_kernels.contract import AnyCache, TokenDecoder

    from adamas_cli.engine.model import Model


class Entry(NamedTuple):
    """New tokens of one cache, and how they attend."""

    cache: KVCache
    tokens: Sequence[int]
    mode: Mode


def compiled_obstacle(model: Model, cache: KVCache) -> str | None:
    """Why a model does not decode in compiled steps, in a few words; None where it does."""
    try:
        CompiledSteps(model, cache.kinds)
    except NoCompiledFormError as reason:
        return str(reason)
    return None


class CompiledSteps:
    """The steps of one model with packed weights, for one cache or several together."""

    def __init__(self, model: Model, kinds: set[str]) -> None:
        """kinds: the caches' layer kinds. Raises NoCompiledFormError."""
        if model.ranks is not None:
            raise NoCompiledFormError(SPLIT)
        if model.device.type != "cpu":
            raise NoCompiledFormError(f"the model is on {model.device.type}")
        if not kinds <= {FULL, SLIDING}:
            raise NoCompiledFormError("some layers keep their own attention")
        weights = describe(model)
        self._decoder: TokenDecoder = model.module.get_output_embeddings().backend.decoder(weights)
        self._rotary = body_of(model.module).rotary_emb
        self._kinds = rotation_kinds(model.module, model.config)
        rope = getattr(model.config, "rope_parameters", None) or {}
        self._axes = (3, 1, 1) if "mrope_section" in rope else (1, 1)  # time, height and width of pictures
        self._parts = [_half_of(self._rotation(kind, _PROBED)[0][0]) for kind in self._kinds]

    def step(self, *entries: Entry) -> Tensor:
        """Append tokens to each cache; returns the logits after each, float32 [n, vocabulary], in this order,
        valid until the next step.
        """
        logits = self._decoder.step([self._new_tokens(entry) for entry in entries])
        for cache, tokens, mode in entries:
            cache.count(len(tokens), mode)
            cache.advance(len(tokens), mode)
        return logits

    def most(self, cache: KVCache) -> int:
        """How many tokens of a cache the next step may take at most, so that each is computed as if alone."""
        return self._decoder.most(cache.get_seq_length())

    def _new_tokens(self, entry: Entry) -> NewTokens:
        """The decoder's view of a cache, after making room in it."""
        cache, tokens, mode = entry
        new = len(tokens)
        cache.make_room(new)
        length = cache.get_seq_length()
        first = cache.extent.position(length)
        positions = torch.arange(first, first + new)
        with under_way(Pass(cache, mode)):
            rotations = [
                (part(cos), part(sin))
                for part, kind in zip(self._parts, self._kinds, strict=True)
                for cos, sin in (self._rotation(kind, positions),)
            ]
        tally = mode.tally if mode.sparse is not None else None
        return NewTokens(
            tokens,
            length,
            rotations,
            [_as_it_attends(layer, mode) for layer in cache.kept],
            mode.sparse.settings if mode.sparse else SparseSettings(),
            None if tally is None else tally.of_step(new),
        )

    def _rotation(self, kind: str, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The model's cosines and sines for positions, int64 [n], as [n, ...]; text has the same on every
        axis.
        """
        placed = positions.expand(*self._axes[:-1], -1)
        cos, sin = self._rotary(_FLOAT, placed, *([kind] if kind else []))
        return cos.reshape(-1, *cos.shape[-2:])[0], sin.reshape(-1, *sin.shape[-2:])[0]


_FLOAT = torch.zeros(1)  # asks the rotation for float32
_PROBED = torch.ones(1, dtype=torch.int64)  # a position where frequencies differ


def _as_it_attends(layer: Any, mode: Mode) -> AnyCache:
    """A layer's buffers, with room for more tokens, which the caller writes and then counts."""
    coded: AnyCache | None = layer.coded_for(mode) if isinstance(layer, FullLayer) else None
    return layer.uncoded() if coded is None else coded


def _half_of(cos: Tensor) -> Callable[[Tensor], Tensor]:
    """How to get one number per coordinate pair from what a model makes for a position: some models repeat
    them all, some each of them, some none.
    """
    half = len(cos) // 2
    if torch.equal(cos[:half], cos[half:]):
        return lambda x: x[..., :half]
    if torch.equal(cos[::2], cos[1::2]):
        return lambda x: x[..., ::2]
    return lambda x: x
