"""The numbers of a weight in planes, in registers: what every kernel over such a weight reads first.

Codes become floats without a conversion: bits in the mantissa of a power of two are that power plus the code
(https://arxiv.org/abs/2211.10017). The power is taken off a sum later, once for many codes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.triton.planes import PlaneWeight

MANTISSA = 23  # bits of a float32's, above which its exponent begins
ONE = 127  # that exponent in 1.0
PLACE = 15  # of a pair's first code in the mantissa, where codes have four bits


@triton.jit
def shifted(word, left: tl.constexpr):
    """Shift to the left, or to the right where that is negative; bits that come in are not defined."""
    if left >= 0:
        return word << left
    else:
        return word >> -left


@triton.jit
def code_pair(
    low, high, table_ptr,
    PAIR: tl.constexpr, HIGH: tl.constexpr, PLACE: tl.constexpr, POWER: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """Codes 2 PAIR and 2 PAIR + 1 of each word, as float32, each plus its power of two; or what a table says that
    they mean. POWER: the bits of the first's power, whose mantissa has that code at PLACE.
    """
    if TABLE:
        first = tl.load(table_ptr + (shifted(low, -8 * PAIR) & 15))
        second = tl.load(table_ptr + (shifted(low, -8 * PAIR - 4) & 15))
        return first, second
    else:
        moved = shifted(low, PLACE - 8 * PAIR)
        first = (moved & (15 << PLACE)) | POWER
        second = (moved & (15 << (PLACE + 4))) | (POWER - (4 << 23))
        if HIGH > 0:
            # Where the higher bits of this pair's first code stand, see `planes._high`.
            begin: tl.constexpr = PAIR if HIGH == 1 else 8 * PAIR if HIGH == 4 else 8 * (PAIR // 2) + PAIR % 2 * 2
            mask: tl.constexpr = (1 << HIGH) - 1
            above = shifted(high.to(tl.int32), PLACE + 4 - begin)
            first = first | (above & (mask << (PLACE + 4)))
            second = second | (above & (mask << (PLACE + 8)))
        return first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True)


@triton.jit
def turned(chunk, PAIR: tl.constexpr):
    """Which eight numbers of a chunk the pairs of codes PAIR of its words are, see planes.py."""
    return PAIR ^ ((chunk >> 1) & 3)


@triton.jit
def scale_of(
    scale_ptr, unit_ptr, row, chunk, there,
    PART: tl.constexpr, HALVES: tl.constexpr, PARTS: tl.constexpr, CHUNKS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One of the numbers that each chunk has in the plane of scales, as float32; row: int64 [R, 1], chunk: [1,
    G].
    """
    # Whatever the format's size, one number a thread: the layout of the codes.
    place = tl.max_contiguous(scale_ptr + (row * CHUNKS + chunk) * PARTS + PART, [1, 1])
    scale = tl.load(place, mask=there, other=0.0).to(tl.float32)
    if UNITS:
        supers: tl.constexpr = CHUNKS // 8
        kinds: tl.constexpr = PARTS // HALVES  # scales, and minimums where there are any
        place = unit_ptr + (row * supers + chunk // 8) * kinds + PART // HALVES
        scale = scale * tl.load(tl.max_contiguous(place, [1, 1]), mask=there, other=0.0).to(tl.float32)
    return scale


def constants(weight: PlaneWeight) -> dict[str, int | bool]:
    """What a kernel over this weight is compiled for. LESS, LESS_SECOND: what is taken from the codes of each
    pair, the power and the kind's offset.
    """
    form = weight.form
    place = PLACE - form.high  # as low as leaves room for both codes
    first, second = 1 << (MANTISSA - place), 1 << (MANTISSA - place - 4)
    if form.table:
        first = second = 0
    return {
        "CHUNKS": weight.chunks,
        "HIGH": form.high,
        "HALVES": form.halves,
        "MINIMUM": form.minimum,
        "UNITS": form.units,
        "TABLE": form.table is not None,
        "PLACE": place,
        "POWER": (ONE + MANTISSA - place) << MANTISSA,
        "LESS": first + form.offset,
        "LESS_SECOND": second + form.offset,
    }


def planes(weight: PlaneWeight) -> tuple[Tensor, ...]:
    """The arguments of such a kernel: low, high, scales, units, table; any tensor where there is none."""
    found = weight.low, weight.high, weight.scales, weight.units, weight.table
    return tuple(weight.low if plane is None else plane for plane in found)
