"""A loaded model as timelines use it: set up once, for its life, to attend and compute."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from adamas_kernels.dispatch import load, obstacle
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.mode import READING, Mode
from adamas_cli.cache.placement import Allocated, placement_on
from adamas_cli.cache.sliding import SlidingLayer
from adamas_cli.engine.continuing import carry_on
from adamas_cli.engine.interface import Pass, install, under_way
from adamas_cli.engine.rotation import foresee
from adamas_cli.errors import AdamasError, ModelUnavailableError
from adamas_cli.models.configs import reason
from adamas_cli.models.families import RESTARTING
from adamas_cli.models.shape import shape_of_config
from adamas_cli.models.split import ranks_of
from adamas_cli.planning.decision import UnservedError

if TYPE_CHECKING:
    from adamas_kernels.contract import Backend

    from adamas_cli.models import LoadedModel


CACHE_NAMES = "past_key_values", "cache_params"  # the cache's name among a model's arguments
_NAME = "adamas_model"  # attribute of transformers' module that remembers it


class Model:
    """A model, with everything that all timelines over it share.

    module: transformers' model; config: of its text part; unserved: why Adamas does not serve its attention,
    or None; dense: the backend that attends fully from one token at a length on the device, if there is one;
    placement: of keys and values; is_fused: whether it computes with Triton's kernels; rotation: how
    positions rotate, as far as that depends on text length; restarts: whether a pass of several tokens after
    others must be taken one token at a time; takes_positions: whether it is told the tokens' positions;
    ranks: that share it, each with a part of its heads; shared: what its timelines made for all of them, by
    what it is.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.module = loaded.model
        self.ranks = ranks_of(self.module)
        self.device: torch.device = self.module.device
        self.config = self.module.config.get_text_config()
        self.shape = shape_of_config(self.config)
        self.unserved = self.shape.obstacle
        self.placement = placement_on(self.device)
        self.shared: dict[object, object] = {}
        self.is_fused = obstacle("triton", self.device) is None
        self.dense: Backend | None = None
        parameters = inspect.signature(self.module.forward).parameters
        self._last_only = "logits_to_keep" in parameters
        self.takes_positions = "position_ids" in parameters
        self.restarts = self.config.model_type in RESTARTING and not carry_on(self.module)
        self._cache_name = next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[0])
        if self.unserved is None:
            before = install(self.module)
            self.unserved = self._obstacle()
            if self.unserved is not None:
                self.module.set_attn_implementation(before)
        if self.is_fused:
            from adamas_cli.engine.fused import fuse  # imports Triton

            fuse(self.module)
            self.dense = load("triton") if self.unserved is None else None
        elif obstacle("cpu", self.device) is None:
            from adamas_cli.engine.fused_cpu import fuse_on_cpu

            fuse_on_cpu(self.module)
        self.rotation = self.shape.rotation
        if self.rotation.scalings:
            foresee(self.module)

    @classmethod
    def of(cls, loaded: LoadedModel) -> Self:
        """The instance for these weights, created at the first call. It lives as long as they do."""
        module: Any = loaded.model
        known: Self | None = module.__dict__.get(_NAME)
        if known is None or known.device != module.device:
            known = module.__dict__[_NAME] = cls(loaded)
        return known

    @property
    def attention_share(self) -> float:
        """Arithmetic of one query-key pair over that of a token's matrix products: 4 L H D / 2 parameters."""
        embedding = self.shape.vocabulary * self.shape.hidden
        return self.shape.pair_operations / (2 * max(1, self._parameters() - embedding))

    @torch.no_grad()
    def forward(
        self,
        tokens: Tensor,
        cache: KVCache,
        mode: Mode,
        *,
        every: bool = False,
        positions: Tensor | None = None,
    ) -> Tensor:
        """One pass of new tokens, int64 [n], which are appended to the cache: the logits after the last one,
        [vocabulary], or after each, [n, vocabulary]. positions: int64 [1, n] on the device; None to make them
        on the host.
        """
        if self.restarts and len(tokens) > 1 and cache.get_seq_length():
            return self._one_by_one(tokens, cache, mode, every=every)
        cache.make_room(len(tokens))
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._last_only and not every else {}
        if positions is None and self.takes_positions:  # not every model counts the tokens in the cache
            start = cache.extent.position(cache.get_seq_length())
            positions = torch.arange(start, start + len(tokens), device=self.device).unsqueeze(0)
        if positions is not None:
            extra["position_ids"] = positions
        extra[self._cache_name] = cache
        with under_way(Pass(cache, mode)):
            output = self.module(tokens.unsqueeze(0), use_cache=True, **extra)
        cache.advance(len(tokens), mode)
        return output.logits[0] if every else output.logits[0, -1]

    def _one_by_one(self, tokens: Tensor, cache: KVCache, mode: Mode, *, every: bool) -> Tensor:
        """`forward` of several tokens, each in a pass of its own."""
        *before, last = tokens.split(1)
        each = [self.forward(token, cache, replace(mode, encodes=False)) for token in before]
        each.append(self.forward(last, cache, mode))
        return torch.stack(each) if every else each[-1]

    def _obstacle(self) -> str | None:
        """Why the model's attention is not served, found by running one token through it; None if it is."""
        cache = KVCache.for_model(
            self.config, served=True, sparse=None, dense_layers=0, placement=Allocated(), device=self.device
        )
        try:
            self.forward(torch.zeros(1, dtype=torch.int64, device=self.device), cache, READING)
        except UnservedError as error:
            return error.reason
        except (AdamasError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a family's code may raise anything for text alone
            kind = self.config.model_type
            raise ModelUnavailableError(
                f"a model of type {kind} cannot answer: it fails on one token of text ({reason(error)})."
            ) from error
        lengths = {layer.length for layer in cache.kept if isinstance(layer, FullLayer | SlidingLayer)}
        if lengths <= {1}:
            return None
        if 0 in lengths:
            return "its attention does not go through transformers' interface"
        return "each of its layers attends several times to the same tokens"

    def _parameters(self) -> int:
        """Numbers in its weights, quantized ones included."""
        few = sum(getattr(module, "weight_count", 0) for module in self.module.modules())
        return few + sum(x.numel() for x in self.module.parameters())
