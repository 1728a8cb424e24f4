"""The four-way byte product: how a word of four codes meets a word of four int8 query coordinates.

Every form gives the same integers. `available_forms` lists those that this CPU runs, the fastest first.
"""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from adamas_kernels.cpu.features import FEATURES
from adamas_kernels.cpu.lanes import I32, INTS, LANES, WORDS, splat_value


class Avx512Vnni(NamedTuple):
    """VPDPBUSD on 512 bits."""


class AvxVnni(NamedTuple):
    """VPDPBUSD on 256 bits."""


class Plain(NamedTuple):
    """Ordinary multiplications."""


Form = Avx512Vnni | AvxVnni | Plain


def _byte_product(builder, lanes, total, codes, query):
    """AVX-512's or AVX's VPDPBUSD over `lanes` words."""
    vector = ir.VectorType(I32, lanes)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
    return builder.call(function, [total, codes, query])


def _two_byte_products(builder, *args):
    """The same with 256-bit registers, in two halves."""
    half = LANES // 2
    order = ir.VectorType(I32, half)
    parts = []
    for at in (0, half):
        lanes = ir.Constant(order, list(range(at, at + half)))
        parts.append(_byte_product(builder, half, *(builder.shuffle_vector(x, x, lanes) for x in args)))
    return builder.shuffle_vector(*parts, ir.Constant(WORDS, list(range(LANES))))


def _multiplications(builder, total, codes, query):
    """The same on any CPU: one multiplication for each byte, of factors that LLVM sees to be short."""

    def every(number):
        return splat_value(builder, ir.Constant(I32, number))

    for byte in range(4):
        code = builder.and_(builder.lshr(codes, every(8 * byte)), every(3))
        factor = builder.ashr(builder.shl(query, every(24 - 8 * byte)), every(24))
        total = builder.add(total, builder.mul(code, factor))
    return total


@intrinsic
def dot4(typing_context, form, total, codes, query):
    """total + codes (bytes 0..3) times query (int8), lane by lane. The type of `form` chooses how."""
    chosen = form.instance_class

    def emit(context, builder, sig, args):
        if chosen is Avx512Vnni:
            return _byte_product(builder, LANES, *args[1:])
        if chosen is AvxVnni:
            return _two_byte_products(builder, *args[1:])
        return _multiplications(builder, *args[1:])

    return INTS(form, total, codes, query), emit


def available_forms() -> list[Form]:
    """The forms that this CPU runs."""
    forms: list[Form] = [Plain()]
    if "avxvnni" in FEATURES or {"avx512vnni", "avx512vl"} <= FEATURES:
        forms.insert(0, AvxVnni())
    if "avx512vnni" in FEATURES:
        forms.insert(0, Avx512Vnni())
    return forms
