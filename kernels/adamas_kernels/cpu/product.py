"""The four-way byte product of a word of four codes and a word of four int8 query coordinates.

Every form gives the same integers. `available_forms` lists the forms that this CPU runs, fastest first.
"""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from adamas_kernels.cpu.features import DOT_BYTES, FEATURES
from adamas_kernels.cpu.lanes import I32, INTS, LANES, splat_value


class Avx512Vnni(NamedTuple):
    """VPDPBUSD on 512 bits."""


class AvxVnni(NamedTuple):
    """VPDPBUSD on 256 bits."""


class Neon(NamedTuple):
    """SDOT on 128 bits."""


class Plain(NamedTuple):
    """Ordinary multiplications."""


Form = Avx512Vnni | AvxVnni | Neon | Plain


def _byte_product(builder, lanes, total, codes, query):
    """AVX-512's or AVX's VPDPBUSD over `lanes` words."""
    vector = ir.VectorType(I32, lanes)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
    return builder.call(function, [total, codes, query])


def _neon_byte_product(builder, lanes, total, codes, query):
    """NEON's SDOT over `lanes` words; codes are small enough to be signed bytes, too."""
    vector, in_bytes = ir.VectorType(I32, lanes), ir.VectorType(ir.IntType(8), 4 * lanes)
    name = f"llvm.aarch64.neon.sdot.v{lanes}i32.v{4 * lanes}i8"
    shape = ir.FunctionType(vector, [vector, in_bytes, in_bytes])
    function = cgutils.get_or_insert_function(builder.module, shape, name)
    return builder.call(function, [total, *(builder.bitcast(x, in_bytes) for x in (codes, query))])


def _in_parts(builder, product, lanes, *args):
    """The product in shorter registers, `lanes` words at a time."""
    order = ir.VectorType(I32, lanes)
    parts = []
    for at in range(0, LANES, lanes):
        chosen = ir.Constant(order, list(range(at, at + lanes)))
        parts.append(product(builder, lanes, *(builder.shuffle_vector(x, x, chosen) for x in args)))
    while len(parts) > 1:
        both = ir.Constant(ir.VectorType(I32, 2 * lanes), list(range(2 * lanes)))
        parts = [builder.shuffle_vector(a, b, both) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        lanes *= 2
    return parts[0]


def _multiplications(builder, total, codes, query):
    """The same on any CPU: one multiplication per byte, with factors that LLVM can prove to be short."""

    def every(number):
        return splat_value(builder, ir.Constant(I32, number))

    for byte in range(4):
        code = builder.and_(builder.lshr(codes, every(8 * byte)), every(3))
        factor = builder.ashr(builder.shl(query, every(24 - 8 * byte)), every(24))
        total = builder.add(total, builder.mul(code, factor))
    return total


@intrinsic
def dot4(typing_context, form, total, codes, query):
    """total + codes (bytes 0..3) times query (int8), lane by lane. The type of `form` selects the
    instruction.
    """
    chosen = form.instance_class

    def emit(context, builder, sig, args):
        if chosen is Avx512Vnni:
            return _byte_product(builder, LANES, *args[1:])
        if chosen is AvxVnni:
            return _in_parts(builder, _byte_product, 8, *args[1:])
        if chosen is Neon:
            return _in_parts(builder, _neon_byte_product, 4, *args[1:])
        return _multiplications(builder, *args[1:])

    return INTS(form, total, codes, query), emit


def available_forms() -> list[Form]:
    """The forms that this CPU runs, fastest first."""
    forms: list[Form] = [Plain()]
    if "avxvnni" in FEATURES or {"avx512vnni", "avx512vl"} <= FEATURES:
        forms.insert(0, AvxVnni())
    if DOT_BYTES:
        forms.insert(0, Neon())
    if "avx512vnni" in FEATURES:
        forms.insert(0, Avx512Vnni())
    return forms
