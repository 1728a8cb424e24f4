"""Parts of full attention to some of the tokens each, and their merge by log-sum-exp (flash decoding,
https://pytorch.org/blog/flash-decoding/).

A part has, for one query, its highest score in powers of two, the sum of its weights relative to it, and the
sum of values so weighted.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from adamas_kernels.softmax import Softmax
from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.packed_rows import turn

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))
FACTS = tl.constexpr(2)  # numbers before the vector of a part: highest score, weight


@triton.jit
def scaled(product, scale, cap, CAPPED: tl.constexpr):
    """Scores as exponents of two, from products of queries and keys, see `scales_of`."""
    score = product * scale
    if CAPPED:
        score = cap - 2 * cap / (tl.exp2(score) + 1)
    return score


@triton.jit
def store_columns(part, row_real, weighted, column):
    """Write some columns of the weighted sums of queries, whose parts begin at the pointers part [ROWS]."""
    tl.store(part[:, None] + FACTS + column[None, :], weighted, mask=row_real[:, None])


@triton.jit
def store_facts(part, row_real, highest, weight):
    """Write the highest scores and weights of queries, whose parts begin at the pointers part [ROWS]."""
    tl.store(part, highest, mask=row_real)
    tl.store(part + 1, weight, mask=row_real)


@triton.jit
def store_part(part, row_real, highest, weight, weighted, column):
    """Write the parts of queries at the pointers part [ROWS]."""
    store_facts(part, row_real, highest, weight)
    store_columns(part, row_real, weighted, column)


def scales_of(scaling: float, softmax: Softmax) -> tuple[float, float]:
    """The factor and the cap for `scaled`: c tanh(x / c) is c - 2 c / (e^(2 x / c) + 1)."""
    if not softmax.softcap:
        return scaling * LOG2_E.value, 0.0
    return 2 * scaling / softmax.softcap * LOG2_E.value, softmax.softcap * LOG2_E.value


@triton.jit
def join_kernel(
    part_ptr, out_ptr, lse_ptr, sink_ptr, splits,
    HEADS: tl.constexpr, NEW: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr, SPLITS: tl.constexpr,
    SINKS: tl.constexpr, CHAINED: tl.constexpr, PACKED: tl.constexpr, LOG_TURNED: tl.constexpr,
):  # fmt: skip
    """Join the parts of one query and, with SINKS, the learned sink of its head; program (query). CHAINED:
    started before the previous launch ended. PACKED: turn the output back.
    """
    row = tl.program_id(0)
    split, column = tl.arange(0, SPLITS), tl.arange(0, D_V_PAD)
    there = split < splits
    part = part_ptr + (row.to(tl.int64) * splits + split) * (D_V_PAD + FACTS)
    if CHAINED:
        gdc_wait()
    highest = tl.load(part, mask=there, other=LOWEST)
    top = tl.max(highest, axis=0)
    sink = top
    if SINKS:
        sink = tl.load(sink_ptr + row // NEW % HEADS).to(tl.float32) * LOG2_E
        top = tl.maximum(top, sink)
    fade = tl.exp2(highest - top)
    weight = tl.sum(tl.load(part + 1, mask=there, other=0.0) * fade, axis=0)
    if SINKS:
        weight += tl.exp2(sink - top)
    weighted = tl.load(part[:, None] + FACTS + column[None, :], mask=there[:, None], other=0.0)
    out = tl.sum(weighted * fade[:, None], axis=0) / weight
    if PACKED:
        out = tl.reshape(turn(tl.reshape(out, (1, D_V_PAD)), 1, D_V_PAD, LOG_TURNED), (D_V_PAD,))
    tl.store(out_ptr + row * D_V + column, out.to(out_ptr.dtype.element_ty), mask=column < D_V)
    tl.store(lse_ptr + row, top * LN_2 + tl.log(weight))
