"""The 2-bit codes of one layer's keys, and their codebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from adamas_kernels.contract import DenseCache, LayerCache, fit_codebook, sampled
from adamas_kernels.hot import HotRows
from adamas_kernels.reference import Codebook
from torch import Tensor

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.forkable import codes_beside, forked
from adamas_cli.cache.mode import Sparse

REFIT = 2  # refit at this multiple of the tokens a codebook was fitted to


@dataclass(frozen=True)
class CodesMark:
    """The codebook at some length, None before the first, and how many tokens it was fitted to."""

    codebook: Codebook | None
    fitted: int


def coded(kept: DenseCache, codes: Tensor, scales: Tensor, codebook: Codebook) -> LayerCache:
    """A layer's buffers with codes; the layer must have a sum of values."""
    assert kept.value_sum is not None
    return LayerCache(
        kept.keys, kept.values, codes, scales, kept.value_sum, codebook, kept.length, kept.centre
    )


class Codes:
    """The codes of keys in another buffer; a sixteenth of their size.

    layer: the layer as the kernels take it, once something is encoded.
    """

    def __init__(self, sparse: Sparse, extent: Extent) -> None:
        self.sparse = sparse
        self.layer: LayerCache | None = None
        self.encoded = 0  # tokens encoded with its codebook
        self.fitted = 0  # tokens that the codebook was fitted to
        self._extent = extent

    def encode(
        self, kept: DenseCache, keys: Callable[[slice], Tensor], power: Tensor, tokens: int, capacity: int
    ) -> None:
        """Encode the first `tokens` tokens, as far as they have no codes. kept: the layer's buffers; keys: of
        some tokens, [B, K, n, D], unpacked; power: of its queries, float32 [B, K, D]; capacity: tokens to
        make room for.

        The codebook is fitted to all keys so far, and again once there are REFIT times as many: keys at later
        positions have another mean (docs/accuracy.md).
        """
        if self.layer is None or tokens >= REFIT * self.fitted:
            codebook = fit_codebook(keys(sampled(tokens)), power, self.sparse.settings)
            if self.layer is None:
                self.layer = coded(kept, *codes_beside(kept.keys, capacity), codebook)
            self._use(codebook, tokens)
        new = slice(self.encoded, tokens)
        if new.start < new.stop:
            self.sparse.backend.encode_keys(
                keys(new),
                self.layer.codebook,
                self.layer.codes[:, :, new],
                self.layer.scales[:, :, new],
            )
            self.encoded = tokens

    def keep_chosen(self, chosen: int, steps: int) -> None:
        """Keep copies of the tokens that `steps` steps choose, on the device. chosen: by one step for a KV
        head, at most.
        """
        layer = self.layer
        if layer is not None and layer.hot is None:
            device, capacity = layer.codes.device, layer.capacity
            layer.hot = HotRows.beside(layer.keys, layer.values, device, capacity, chosen, steps)

    def forget_chosen(self) -> None:
        """Forget these copies: tokens may be others now."""
        if self.layer is not None and self.layer.hot is not None:
            self.layer.hot.forget()

    def forget_fitting(self, sparse: Sparse) -> None:
        """Use other settings from now on: the next `encode` fits a codebook to all keys and encodes them."""
        self.sparse, self.fitted = sparse, 0

    def follow(self, keys: Tensor, values: Tensor) -> None:
        """Use these buffers of keys and values from now on."""
        if self.layer is not None:
            self.layer.keys, self.layer.values = keys, values

    def widen(self, capacity: int) -> None:
        """Make room for this many tokens, in larger buffers."""
        if self.layer is None:
            return
        codes, scales = codes_beside(self.layer.keys, capacity)
        seen = slice(0, self.encoded)
        codes[:, :, seen] = self.layer.codes[:, :, seen]
        scales[:, :, seen] = self.layer.scales[:, :, seen]
        self.layer.codes, self.layer.scales, self.layer.hot = codes, scales, None
        self._extent.version += 1

    def mark(self) -> CodesMark:
        """What `rewind` needs to return to this point."""
        return CodesMark(None if self.layer is None else self.layer.codebook, self.fitted)

    def rewind(self, mark: CodesMark, tokens: int) -> None:
        """Forget every token since `mark`, when there were this many."""
        self.fitted = mark.fitted
        if self.layer is None:
            return
        self.forget_chosen()
        if mark.codebook is None:
            self.layer, self.encoded = None, 0
            self._extent.version += 1
        elif self.layer.codebook is mark.codebook:
            self.encoded = min(self.encoded, tokens)
        else:
            self._use(mark.codebook, mark.fitted)

    def truncate(self, tokens: int) -> None:
        """Forget all but the first tokens; their codes stay."""
        self.forget_chosen()
        self.encoded = min(self.encoded, tokens)

    def copy_of(self, other: Codes, kept: DenseCache, capacity: int) -> None:
        """Copy the state of `other`, for keys in these buffers."""
        if other.layer is None:
            return
        codes, scales = forked(other.layer.codes), forked(other.layer.scales)
        if codes is None or scales is None:
            codes, scales = codes_beside(kept.keys, capacity)
            seen = slice(0, other.encoded)
            codes[:, :, seen] = other.layer.codes[:, :, seen]
            scales[:, :, seen] = other.layer.scales[:, :, seen]
        self.layer = coded(kept, codes, scales, other.layer.codebook)  # the codebook is read-only
        self.encoded, self.fitted = other.encoded, other.fitted

    def spare_of(self, other: Codes, kept: DenseCache, capacity: int) -> None:
        """Codes of this many tokens, all zero, by the codebook of `other`, for keys in these buffers."""
        if other.layer is not None:
            codes, scales = codes_beside(kept.keys, capacity)
            self.layer = coded(kept, codes.zero_(), scales.zero_(), other.layer.codebook)

    def parts(self, tokens: int) -> dict[str, Tensor]:
        """Copies of all codes, [K, W, n], with their scales, [K, n], and the codebook; empty if it was not
        fitted to exactly these tokens.
        """
        if self.layer is None or self.fitted != tokens:
            return {}
        layer, seen = self.layer, slice(0, tokens)
        book = {field.name: getattr(layer.codebook, field.name)[0] for field in fields(Codebook)}
        codes = {"codes": layer.codes[0, :, seen].transpose(1, 2), "scales": layer.scales[0, :, seen]}
        # Copies, because refitting a codebook rewrites all codes in place.
        return {
            name: part.clone(memory_format=torch.contiguous_format) for name, part in (codes | book).items()
        }

    def restored(self, parts: Mapping[str, Tensor], kept: DenseCache, tokens: int, capacity: int) -> None:
        """These, as returned by `parts`, become the codes of all tokens, this many."""
        codes, scales = codes_beside(kept.keys, capacity)
        codes[0, :, :tokens] = parts["codes"].transpose(1, 2)
        scales[0, :, :tokens] = parts["scales"]
        book = Codebook(*(parts[field.name].unsqueeze(0) for field in fields(Codebook)))
        self.layer = coded(kept, codes, scales, book)
        self.fitted = self.encoded = tokens
        self._extent.version += 1

    def _use(self, codebook: Codebook, fitted: int) -> None:
        """Switch to a codebook that no token is encoded with yet."""
        assert self.layer is not None
        self.layer.codebook = codebook
        self.fitted, self.encoded = fitted, 0
        self._extent.version += 1
