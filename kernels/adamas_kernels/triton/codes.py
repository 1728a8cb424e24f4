"""Reads the numbers of a weight in planes into registers; shared by all kernels over such weights."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.triton.planes import PlaneWeight


@triton.jit
def codes_of(low, high, SECOND: tl.constexpr, HIGH: tl.constexpr):
    """Four codes of each word, as the bytes of an int32: the first or the SECOND codes of its pairs.

    See `planes._high` for the positions of the higher bits.
    """
    codes = ((low >> 4) if SECOND else low) & 0x0F0F0F0F
    if HIGH == 1:
        bits = high.to(tl.int32) & 0xFF
        # Four copies of the byte without overlap, each with another bit at the fifth place of a byte.
        bits = ((bits >> 4) if SECOND else bits) * 0x10080402
        codes = codes | (bits & 0x10101010)
    if HIGH == 2:
        bits = high.to(tl.int32) & 0xFFFF
        bits = ((bits << 4) | (bits << 14)) if SECOND else (bits | (bits << 18))
        codes = codes | (bits & 0x30303030)
    if HIGH == 4:
        codes = codes | ((high if SECOND else (high << 4)) & -0x0F0F0F10)
    return codes


@triton.jit
def meaning_of(codes, table_ptr, PAIR: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr):
    """The unscaled value of the code in byte PAIR, as float32. TABLE: see `constants`."""
    code = (codes >> (8 * PAIR)) & 0xFF
    if TABLE == 1:
        return tl.load(table_ptr + code)
    if TABLE == 2:  # see `blocks.OWN`
        half = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
        return half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    # A code in the low mantissa bits of 2 ^ 23 gives 2 ^ 23 + code, faster than a conversion.
    return (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608 + LESS)


@triton.jit
def turned(chunk, PAIR: tl.constexpr):
    """Which eight numbers of a chunk the pairs PAIR of its words hold, see planes.py."""
    return PAIR ^ ((chunk >> 1) & 3)


@triton.jit
def scale_of(
    scale_ptr, unit_ptr, step, row, chunk, there,
    PART: tl.constexpr, HALVES: tl.constexpr, PARTS: tl.constexpr, CHUNKS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One of each chunk's numbers in the plane of scales, as float32; row: int64 [R, 1], chunk: [1, G].
    step: PARTS, but not constant, so that each thread loads one number, in the layout of the codes.
    """
    place = scale_ptr + (row * CHUNKS + chunk) * step + PART
    scale = tl.load(place, mask=there, other=0.0).to(tl.float32)
    if UNITS:
        supers: tl.constexpr = CHUNKS // 8
        kinds: tl.constexpr = PARTS // HALVES  # scales, and minimums if there are any
        place = unit_ptr + (row * supers + chunk // 8) * kinds + PART // HALVES
        scale = scale * tl.load(place, mask=there, other=0.0).to(tl.float32)
    return scale


def constants(weight: PlaneWeight) -> dict[str, int | bool]:
    """Compile-time constants of kernels over this weight. TABLE: 0 if codes are their own values, 1 if they
    index a table, 2 if they are 8-bit floats.
    """
    form = weight.form
    return {
        "CHUNKS": weight.chunks,
        "HIGH": form.high,
        "HALVES": form.halves,
        "MINIMUM": form.minimum,
        "UNITS": form.units,
        "LESS": form.offset,
        "TABLE": 2 if form.floats else int(form.table is not None),
    }


def planes(weight: PlaneWeight) -> tuple[Tensor | int, ...]:
    """The arguments of such a kernel: low, high, scales, units, table (any tensor for a missing one), and the
    step of the scales.
    """
    found = weight.low, weight.high, weight.scales, weight.units, weight.table
    return (*(weight.low if plane is None else plane for plane in found), weight.form.parts)
