"""Multi-head latent attention: a token's latent and rotary part are kept, not the heads made from them.

One matrix makes the keys and values of all heads from a latent. For few queries it is cheaper to multiply the
queries by its key part: they then attend to the latents directly, as to one head whose values are the leading
coordinates of its keys. Their outputs are multiplied by the value part (DeepSeek-V2, appendix C,
https://arxiv.org/abs/2405.04434). Codes are of those keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from adamas_kernels.contract import Facts
from adamas_kernels.dispatch import serving
from adamas_kernels.softmax import Softmax
from torch import Tensor, nn

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.full import QUERY_STRIDE, FullLayer
from adamas_cli.cache.layer import LATENT
from adamas_cli.cache.mode import Mode, Sparse
from adamas_cli.cache.placement import Placement

EXPANDED_BYTES = 256 << 20  # of expanded keys and values held at a time


@dataclass(frozen=True)
class Expansion:
    """Makes heads from latents. keys: [H, D, R], without the rotary part; values: [H, V, R]."""

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, module: Any, latents: Tensor) -> Self:
        """The expansion of an attention module, in the format of latents [B, 1, N, R]. The module is asked
        once, because its weight may be packed.
        """
        known: Self | None = _KNOWN.get(module)
        if known is None or known.keys.dtype != latents.dtype or known.keys.device != latents.device:
            known = _KNOWN[module] = cls._made(module, latents)
        return known

    @classmethod
    def _made(cls, module: Any, latents: Tensor) -> Self:
        rank = latents.shape[-1]
        projection = module.kv_b_proj
        if type(projection) is nn.Linear and type(projection.weight.data) is Tensor:
            weight = projection.weight.detach()
        else:
            weight = projection(torch.eye(rank, dtype=latents.dtype, device=latents.device)).T
        by_head = weight.view(-1, module.qk_nope_head_dim + module.v_head_dim, rank)
        return cls(*by_head.split((module.qk_nope_head_dim, module.v_head_dim), 1))

    def pays(self, new: int) -> bool:
        """Whether making heads from all latents takes less arithmetic than this many latent-wide queries."""
        rank, made = self.keys.shape[2], self.keys.shape[1] + self.values.shape[1]
        return new * (2 * rank - made) > rank * made

    def of_queries(self, queries: Tensor) -> Tensor:
        """Queries [B, H, N, D + P], converted to attend to latents with P rotary coordinates: [B, H, N, R +
        P].
        """
        plain, rotary = queries.tensor_split((self.keys.shape[1],), -1)
        return torch.cat((plain @ self.keys, rotary), -1)

    def of_outputs(self, outputs: Tensor) -> Tensor:
        """Sums of latents [B, H, N, R], converted to sums of values: [B, H, N, V]."""
        return outputs @ self.values.transpose(1, 2)

    def heads(self, kept: Tensor, which: slice) -> tuple[Tensor, Tensor]:
        """Keys [B, h, S, D + P] and values [B, h, S, V] of some heads, from latents with rotary parts, [B, 1,
        S, R + P].
        """
        latents, rotary = kept.tensor_split((self.keys.shape[2],), -1)
        keys = latents @ self.keys[which].transpose(1, 2)
        values = latents @ self.values[which].transpose(1, 2)
        return torch.cat((keys, rotary.expand(-1, keys.shape[1], -1, -1)), -1), values


_KNOWN: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


class LatentLayer(FullLayer):
    """Latents of `rank` coordinates with their rotary parts, as the keys of one head whose values are the
    latents.
    """

    kind = LATENT
    streams = ("keys",)

    def __init__(self, rank: int, extent: Extent, placement: Placement, sparse: Sparse | None = None) -> None:
        super().__init__(extent, placement, sparse)
        self._rank = rank
        self._new: Tensor | None = None

    @property
    def stored_values(self) -> Tensor:
        """The latents within the buffer of keys, [B, 1, S, R]."""
        return self.stored_keys[..., : self._rank]

    def empty_fork(self, extent: Extent) -> LatentLayer:
        """See `FullLayer.empty_fork`."""
        sparse = None if self.codes is None else self.codes.sparse
        return LatentLayer(self._rank, extent, self._placement, sparse)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by transformers' models with latents [B, 1, N, R] and rotary parts [B, 1, N, P]. The heads
        that the model makes from the result are not used by `attend`.
        """
        self._new = torch.cat((key_states, value_states), -1)
        return key_states, value_states

    def attend(
        self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, scaling: float,
        softmax: Softmax, mode: Mode,
    ) -> Tensor:  # fmt: skip
        """See `Layer.attend`."""
        assert self._new is not None
        new, self._new = self._new, None
        latents = new[..., : self._rank]
        expansion = Expansion.of(module, latents)
        if mode.answers or not expansion.pays(queries.shape[2]):
            absorbed = expansion.of_queries(queries)
            # Triton has a kernel for latents, for one token; its others need heads that fit into registers.
            plain = mode if queries.shape[2] == 1 else replace(mode, dense=None)
            out = super().attend(module, absorbed, new, latents, scaling, softmax, plain)
            return expansion.of_outputs(out)
        if not self.is_initialized:
            self.lazy_initialization(new, latents)
        self._append(new, latents, self.uncoded())
        out = self._attend_to_heads(expansion, queries, scaling, softmax)
        self._observe(expansion.of_queries(queries[:, :, ::QUERY_STRIDE]), queries.shape[2])
        if mode.encodes:
            self.encode()
        return out

    def _attend_to_heads(
        self, expansion: Expansion, queries: Tensor, scaling: float, softmax: Softmax
    ) -> Tensor:
        """Causal attention of the newest tokens, queries [B, H, N, D + P], to heads made from all latents.

        Fused kernels need keys and values of one width, so the narrower ones are padded with zeros.
        """
        kept, narrow = self.stored_keys[:, :, : self.length], expansion.values.shape[1]
        width = max(queries.shape[-1], narrow)
        step = max(1, EXPANDED_BYTES // (kept.shape[0] * kept.shape[2] * 2 * width * kept.element_size()))
        outs = []
        for start in range(0, queries.shape[1], step):
            which = slice(start, start + step)
            parts = queries[:, which], *expansion.heads(kept, which)
            q, k, v = (F.pad(part, (0, width - part.shape[-1])) for part in parts)
            backend = serving("prefill", Facts.of(q, k, v))
            out, _ = backend.prefill(q, k, v, scaling, softmax=softmax.of_heads(which))
            outs.append(out[..., :narrow])
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)

    def open(self, empty: Mapping[str, Tensor], tokens: int) -> None:
        """See `Layer.open`."""
        super().open({**empty, "values": empty["keys"][..., : self._rank]}, tokens)
