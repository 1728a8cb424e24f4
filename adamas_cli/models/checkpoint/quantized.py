"""Quantized weights as checkpoints store them, and the blocks that hold them.

Blocks hold each weight exactly, except for their float16 parts: scales, and what is added to the scaled
codes. Scales have a relative error of at most 2 ^ -11; scales in float16, and nearly all in bfloat16, are
exact. With 4 bits the minimum is added, off by at most 1/136 of the step between two codes. With 8 bits the
middle is added, off by at most 1/16, and exact if zero points are in the middle. Weights that blocks cannot
hold, such as groups that are not multiples of 32 inputs, become plain numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from gguf.quants import MXFP4
from torch import Tensor

from adamas_cli.models.gguf.stored import Stored, stored

BLOCK = 32  # inputs
PRECISION = 2.0**-11  # relative to the largest scale: the error allowed to float16
FLOAT8_UNIT = 256  # F8 has scales of 256ths


class Quantized(Protocol):
    """A weight [rows, columns]."""

    def numbers(self) -> Tensor:
        """Its numbers as float32, with columns in the order of the layer's inputs."""

    def stored(self) -> Stored:
        """The weight in blocks, or as plain numbers if blocks cannot hold it."""


@dataclass(frozen=True)
class Integers:
    """weight[o, i] = scales[o, g] * codes[o, i] + minimums[o, g], g the group of column i.

    codes: uint8 [rows, columns], of `bits` bits; scales, minimums: float32 [rows, groups]. order: the input
    of each column; None if they are in order.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    minimums: Tensor
    order: Tensor | None = None

    def numbers(self) -> Tensor:
        """See `Quantized`."""
        groups = self.codes.unflatten(1, (self.scales.shape[1], -1)) * self.scales.unsqueeze(2)
        numbers = groups.add_(self.minimums.unsqueeze(2)).flatten(1)
        return numbers if self.order is None else numbers[:, self.order.argsort()]

    def stored(self) -> Stored:
        """See `Quantized`."""
        small, centre = self.bits <= 4, 1 << self.bits - 1
        middles = self.minimums + centre * self.scales
        centred = not bool(middles.any())
        added = None if centred else self.minimums if small else middles
        parts = [_halves(x, self.codes) for x in (self.scales, added) if x is not None]
        floats = [part for part in parts if part is not None]
        if len(floats) < len(parts):
            return stored(self.numbers())
        if small:
            kind, shift = ("Q4_0", 8 - centre) if centred else ("Q4_1", 0)
        else:
            kind, shift = "Q8_0" if centred else "Q8_M", -centre
        codes = (self.codes + shift % 256).unflatten(1, (-1, BLOCK))
        return _blocks(kind, [*floats, _nibbles(codes) if small else codes], self.order)


@dataclass(frozen=True)
class Floats:
    """weight[o, i] = scales[o, g] * codes[o, i], codes float8_e4m3fn [rows, columns], scales float32."""

    codes: Tensor
    scales: Tensor

    def numbers(self) -> Tensor:
        """See `Quantized`."""
        groups = self.codes.float().unflatten(1, (self.scales.shape[1], -1))
        return groups.mul_(self.scales.unsqueeze(2)).flatten(1)

    def stored(self) -> Stored:
        """See `Quantized`."""
        scales = _halves(self.scales * FLOAT8_UNIT, self.codes)
        if scales is None:
            return stored(self.numbers())
        codes = self.codes.view(torch.uint8).unflatten(1, (-1, BLOCK))
        return _blocks("F8", [scales, codes], None)


@dataclass(frozen=True)
class Microfloats:
    """Floats of 4 bits (E2M1), with a shared power of two (E8M0) per 32 inputs, as in OCP's MXFP4.

    codes: uint8 [rows, columns]; powers: uint8 [rows, columns / 32].
    """

    codes: Tensor
    powers: Tensor

    def numbers(self) -> Tensor:
        """See `Quantized`."""
        doubled = torch.tensor(MXFP4.kvalues, dtype=torch.float32, device=self.codes.device)
        groups = doubled[self.codes.long()].unflatten(1, (-1, BLOCK))
        return groups.ldexp_(self.powers.unsqueeze(2).int() - 128).flatten(1)

    def stored(self) -> Stored:
        """See `Quantized`."""
        codes = self.codes.unflatten(1, (-1, BLOCK))
        return _blocks("MXFP4", [self.powers.unsqueeze(2), _nibbles(codes)], None)


def _halves(groups: Tensor, codes: Tensor) -> Tensor | None:
    """Groups [rows, groups] as bytes of float16 for each block, uint8 [rows, blocks, 2]; None if groups are
    not whole blocks, or float16 cannot represent the numbers.
    """
    size, rest = divmod(codes.shape[1], groups.shape[1])
    halves = groups.half()
    missed = (halves.float() - groups).abs().amax() > PRECISION * groups.abs().amax()
    if size % BLOCK or rest or bool(missed) or not bool(halves.isfinite().all()):
        return None
    return halves.repeat_interleave(size // BLOCK, 1).unsqueeze(2).view(torch.uint8)


def _nibbles(codes: Tensor) -> Tensor:
    """Codes of 4 bits [rows, blocks, 32] in GGUF's layout: the second half in the upper bits."""
    return codes[..., :16] | codes[..., 16:] << 4


def _blocks(kind: str, parts: list[Tensor], order: Tensor | None) -> Stored:
    """Parts of blocks, uint8 [rows, blocks, bytes], side by side."""
    data = torch.cat(parts, 2)
    return Stored(kind, data.flatten(), (data.shape[0], data.shape[1] * BLOCK), order)
