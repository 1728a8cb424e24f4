"""The operations in plain torch, straight from the specification: right on every device, and fast on none."""

from __future__ import annotations

from torch import Tensor

from adamas_kernels import reference
from adamas_kernels.contract import LayerCache, SparseSettings, check_step
from adamas_kernels.reference import Codebook
from adamas_kernels.torch.step import append, attend_newest


class TorchBackend:
    """Adamas in plain torch."""

    name = "torch"

    def encode_keys(self, keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
        """See `Backend.encode_keys`."""
        found, lengths = reference.encode_keys(keys, codebook)
        codes.copy_(found)
        scales.copy_(lengths)

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.decode_step`."""
        check_step(queries, keys, values, cache)
        return attend_newest(queries, append(keys, values, cache), scaling, settings, tally)
