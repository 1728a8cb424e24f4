"""The experts of a mixture for a few tokens: each token reads only the bits of its chosen experts.

Two launches, whose grids do not depend on device results: one for the gated inner products, and one for the
outputs, which are added in the order in which the experts were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.launch import chains, has_ptx
from adamas_kernels.triton.plane_product import (
    LANES,
    Tiling,
    forms,
    product_of_chunks,
    takes_integers,
    tiling,
    words,
)
from adamas_kernels.triton.planes import PlaneWeight


@dataclass(frozen=True)
class Gate:
    """A gated unit, gate * sigmoid(slope * gate) * (other + shift), of clipped numbers: gates to at most
    limit, others to [-limit, limit]. The defaults give SwiGLU.
    """

    limit: float = math.inf
    slope: float = 1.0
    shift: float = 0.0

    def __call__(self, inner: Tensor) -> Tensor:
        """The same in torch, for alternating gates and others, [..., 2 n]: [..., n]."""
        gate, other = inner[..., ::2].clamp(max=self.limit), inner[..., 1::2].clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.slope * gate) * (other + self.shift)


Product = Callable[[PlaneWeight, Tensor | None, Gate | None], Tensor]


@dataclass(frozen=True)
class Experts:
    """The experts of a layer.

    gate_up: one weight, with one expert's rows after the other's, alternating between gates and others; or
    two weights of different kinds, of gates and of the others. down: with the rows of all outputs. Biases:
    [count, rows] in the same order. gate: maps alternating gates and others to gated numbers.
    """

    count: int
    gate_up: Sequence[PlaneWeight]
    down: PlaneWeight
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    gate: Gate | Callable[[Tensor], Tensor]

    @property
    def fused(self) -> Gate | None:
        """The gate if it is fused with the products, else None."""
        return self.gate if isinstance(self.gate, Gate) and len(self.gate_up) == 1 else None

    def inner(self, product: Product, of: Tensor) -> Tensor:
        """The gated numbers, [..., columns of down]. product: of one of `gate_up`, its bias, and the gate to
        fuse, if any. of: the expert of each result, int [...].
        """
        if len(self.gate_up) == 1:
            fused = self.fused
            found = product(self.gate_up[0], self.gate_up_bias, fused)
            return found if fused is not None else self.gate(found).contiguous()
        found = torch.stack([product(part, None, None) for part in self.gate_up], -1).flatten(-2)
        bias = self.gate_up_bias
        return self.gate(found if bias is None else found + bias[of].to(found.dtype)).contiguous()


@triton.jit
def let_through(gate, other, limit, slope, shift):
    """See `Gate`."""
    gate, other = tl.minimum(gate, limit), tl.minimum(tl.maximum(other, -limit), limit)
    return gate / (1 + tl.exp(-slope * gate)) * (other + shift)


@triton.jit(do_not_specialize=["choices"])
def chosen_kernel(
    x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, bias_ptr, chosen_ptr, out_ptr,
    rows, choices, limit, slope, shift,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr, BRAIN: tl.constexpr, BIAS: tl.constexpr,
    GATED: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, WHOLE: tl.constexpr, INTEGERS: tl.constexpr,
    FAST: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (ROWS of an expert's rows, a choice of a token): out[choice, n] = expert[n] . x + bias[n].

    GATED: rows alternate between gates and others, and each pair gives one gated output.
    """
    if CHAINED:
        gdc_launch_dependents()  # the next launch still waits for the end of this one
        gdc_wait()
    pair = tl.program_id(1)
    expert = tl.load(chosen_ptr + pair).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = (expert * rows + tl.minimum(n, rows - 1))[:, None]
    x_row = x_ptr + (pair // choices).to(tl.int64) * (CHUNKS * (16 if WHOLE else 32))
    total = tl.zeros((ROWS, GROUP), tl.float32)
    for begin in tl.range(0, CHUNKS, GROUP):
        chunk = (begin + tl.arange(0, GROUP))[None, :]
        total += product_of_chunks(
            x_row, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, row, chunk, chunk < CHUNKS, False,
            CHUNKS, HIGH, HALVES, MINIMUM, UNITS, LESS, TABLE, BRAIN, ROWS, GROUP, INTEGERS, False, WHOLE,
            FAST, False,
        )  # fmt: skip
    result = tl.sum(total, axis=1)
    if BIAS:
        result += tl.load(bias_ptr + expert * rows + tl.minimum(n, rows - 1)).to(tl.float32)
    if GATED:
        gate, other = tl.split(tl.reshape(result, (ROWS // 2, 2)))
        result = let_through(gate, other, limit, slope, shift)
        outputs = rows // 2
        n = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    else:
        outputs = rows
    place = out_ptr + pair.to(tl.int64) * outputs + n
    tl.store(place, result.to(out_ptr.dtype.element_ty), mask=n < outputs)


@triton.jit
def added_kernel(
    x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, bias_ptr, chosen_ptr, share_ptr, out_ptr,
    rows,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr, BRAIN: tl.constexpr, BIAS: tl.constexpr,
    CHOICES: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, WHOLE: tl.constexpr,
    INTEGERS: tl.constexpr, FAST: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (ROWS outputs, a token): out[n] = sum over its choices of share * (expert[n] . x + bias[n]).

    The rows of a token's experts are treated as one row of CHOICES * CHUNKS chunks.
    """
    if CHAINED:
        gdc_launch_dependents()  # the next launch still waits for the end of this one
        gdc_wait()
    first = tl.program_id(1).to(tl.int64) * CHOICES  # of the token's choices
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = tl.minimum(n, rows - 1)[:, None]
    total = tl.zeros((ROWS, GROUP), tl.float32)
    for begin in tl.range(0, CHOICES * CHUNKS, GROUP):
        place = begin + tl.arange(0, GROUP)
        there = place < CHOICES * CHUNKS
        choice = first + place // CHUNKS
        expert = tl.load(chosen_ptr + choice, mask=there, other=0).to(tl.int64)
        share = tl.load(share_ptr + choice, mask=there, other=0.0)
        x_row = x_ptr + (choice * (CHUNKS * (16 if WHOLE else 32)))[None, :, None]
        found = product_of_chunks(
            x_row, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, expert[None, :] * rows + here,
            (place % CHUNKS)[None, :], there[None, :], False, CHUNKS, HIGH, HALVES, MINIMUM, UNITS, LESS,
            TABLE, BRAIN, ROWS, GROUP, INTEGERS, False, WHOLE, FAST, False,
        )  # fmt: skip
        total += share[None, :] * found
    result = tl.sum(total, axis=1)
    if BIAS:
        for at in tl.static_range(CHOICES):
            line = bias_ptr + tl.load(chosen_ptr + first + at).to(tl.int64) * rows
            bias = tl.load(line + tl.minimum(n, rows - 1)).to(tl.float32)
            result += tl.load(share_ptr + first + at) * bias
    place = out_ptr + tl.program_id(1).to(tl.int64) * rows + n
    tl.store(place, result.to(out_ptr.dtype.element_ty), mask=n < rows)


def add_chosen(
    x: Tensor, experts: Experts, chosen: Tensor, shares: Tensor, chained: bool | None = None
) -> Tensor:
    """The sum of each token's chosen experts times their shares, [tokens, hidden] in x's dtype.

    x: [tokens, hidden]. chosen: int [tokens, choices]. shares: [tokens, choices].
    """
    chained = chains(x.device) if chained is None else chained
    x, chosen, shares = x.contiguous(), chosen.contiguous(), shares.float().contiguous()

    def product(weight: PlaneWeight, bias: Tensor | None, gate: Gate | None) -> Tensor:
        return _products(x, experts.count, weight, bias, chosen, gate, chained)

    inner = experts.inner(product, chosen)
    return _added(inner, experts, chosen, shares, chained)


def _products(
    x: Tensor,
    count: int,
    weight: PlaneWeight,
    bias: Tensor | None,
    chosen: Tensor,
    gate: Gate | None,
    chained: bool,
) -> Tensor:
    """Products of each token with its experts' parts of a weight, [tokens, choices, rows]."""
    rows = weight.rows // count
    out = x.new_empty(*chosen.shape, rows if gate is None else rows // 2)
    tiles = tiling(rows * chosen.numel(), weight.chunks)
    each = max(2, tiles.rows * tiles.beside)  # at least a gate and its other
    used = Gate() if gate is None else gate
    chosen_kernel[(triton.cdiv(rows, each), chosen.numel())](
        *_operands(x, weight, bias), chosen, out, rows, chosen.shape[1], used.limit, used.slope, used.shift,
        **forms(weight), BIAS=bias is not None, GATED=gate is not None, ROWS=each,
        **_ways(x, weight, tiles, chained),
    )  # fmt: skip
    return out


def _added(inner: Tensor, experts: Experts, chosen: Tensor, shares: Tensor, chained: bool) -> Tensor:
    """The outputs, summed over choices. inner: [tokens, choices, columns of down]."""
    weight, bias = experts.down, experts.down_bias
    tokens, choices = chosen.shape
    rows = weight.rows // experts.count
    out = inner.new_empty(tokens, rows)
    tiles = tiling(rows * tokens, choices * weight.chunks)
    each = tiles.rows * tiles.beside
    added_kernel[(triton.cdiv(rows, each), tokens)](
        *_operands(inner, weight, bias), chosen, shares, out, rows,
        **forms(weight), BIAS=bias is not None, CHOICES=choices, ROWS=each,
        **_ways(inner, weight, tiles, chained),
    )  # fmt: skip
    return out


def _operands(x: Tensor, weight: PlaneWeight, bias: Tensor | None) -> tuple[Tensor, ...]:
    x = x.view(torch.int32) if _whole(x) else x
    return x, weight.low, *words(weight), x if bias is None else bias


def _ways(x: Tensor, weight: PlaneWeight, tiles: Tiling, chained: bool) -> dict[str, Any]:
    """Constants and launch options of such a kernel."""
    chain: dict[str, Any] = {"launch_pdl": True} if chained else {}
    return {
        "GROUP": tiles.sharing * LANES,
        "WHOLE": _whole(x),
        "INTEGERS": takes_integers(x.dtype, weight),
        "FAST": has_ptx(),
        "CHAINED": chained,
        "num_warps": tiles.sharing * tiles.beside,
        **chain,
    }


def _whole(x: Tensor) -> bool:
    """Whether two numbers can be read at once."""
    return x.dtype == torch.bfloat16 and x.data_ptr() % 16 == 0
