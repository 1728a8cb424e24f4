"""A loaded model as timelines use it: told once, for its life, how to attend and compute."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self

import torch
from adamas_kernels.dispatch import load, obstacle
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.geometry import head_dim
from adamas_cli.cache.mode import Mode
from adamas_cli.cache.placement import placement_on
from adamas_cli.engine.attention import unserved_reason
from adamas_cli.engine.fused import fuse
from adamas_cli.engine.interface import Pass, install, under_way
from adamas_cli.engine.rotation import foresee
from adamas_cli.models.rotary import rotation_of

if TYPE_CHECKING:
    from adamas_kernels.contract import Backend

    from adamas_cli.models import LoadedModel


_NAME = "adamas_model"  # of transformers' module, under which it is remembered


class Model:
    """A model with what all timelines over it share.

    module: transformers' model; config: of its text part; unserved: why Adamas does not serve its attention,
    or None where it does; dense: what attends fully from one token at a length that lies on the device, where
    something does; placement: of keys and values; is_fused: whether it computes by Triton's kernels;
    rotation: how positions turn, as far as that goes by the length of a text.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.module = loaded.model
        self.device: torch.device = self.module.device
        self.config = self.module.config.get_text_config()
        self.unserved = unserved_reason(self.config)
        self.placement = placement_on(self.device)
        self.is_fused = obstacle("triton", self.device) is None
        self.dense: Backend | None = None
        if self.unserved is None:
            self.dense = load("triton") if self.is_fused else None
            install(self.module)
        if self.is_fused:
            fuse(self.module)
        self.rotation = rotation_of(lambda name: getattr(self.config, name, None))
        if self.rotation.scalings:
            foresee(self.module)
        self._last_only = "logits_to_keep" in inspect.signature(self.module.forward).parameters

    @classmethod
    def of(cls, loaded: LoadedModel) -> Self:
        """The one for these weights, made at the first call. It lives as long as they do."""
        module: Any = loaded.model
        known: Self | None = module.__dict__.get(_NAME)
        if known is None or known.device != module.device:
            known = module.__dict__[_NAME] = cls(loaded)
        return known

    @property
    def attention_share(self) -> float:
        """Arithmetic of one query-key pair over that of a token's matrix products: 4 L H D / 2 parameters."""
        config = self.config
        pair = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim(config)
        embedding = config.vocab_size * config.hidden_size
        return pair / (2 * max(1, self._parameters() - embedding))

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
        [vocabulary], or after every one, [n, vocabulary]. positions: int64 [1, n] on the device, where they
        are not to come from the host.
        """
        cache.make_room(len(tokens))
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._last_only and not every else {}
        if positions is not None:
            extra["position_ids"] = positions
        with under_way(Pass(cache, mode)):
            output = self.module(tokens.unsqueeze(0), past_key_values=cache, use_cache=True, **extra)
        cache.advance(len(tokens), mode)
        return output.logits[0] if every else output.logits[0, -1]

    def _parameters(self) -> int:
        """Numbers in its weights, those in few bits included."""
        few = sum(getattr(module, "weight_count", 0) for module in self.module.modules())
        return few + sum(x.numel() for x in self.module.parameters())
