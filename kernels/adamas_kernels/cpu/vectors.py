"""Vectors of bytes in LLVM code: shuffles, table lookups, and products of four neighbours each, with the
instructions that this CPU has.

Every way gives the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from adamas_kernels.cpu.features import FEATURES
from adamas_kernels.cpu.lanes import I32

I8, I16 = ir.IntType(8), ir.IntType(16)


def in_order(builder: Any, vector: Any, order: Sequence[int]) -> Any:
    """Lanes of a vector in this order."""
    lanes = ir.Constant(ir.VectorType(I32, len(order)), list(order))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def part(builder: Any, vector: Any, first: int, count: int) -> Any:
    """`count` neighbouring lanes, from `first` on."""
    return in_order(builder, vector, range(first, first + count))


def joined(builder: Any, vectors: Sequence[Any]) -> Any:
    """Vectors of one type, a power of two of them, side by side."""
    while len(vectors) > 1:
        count = 2 * vectors[0].type.count
        lanes = ir.Constant(ir.VectorType(I32, count), list(range(count)))
        vectors = [
            builder.shuffle_vector(a, b, lanes) for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


def filled_up(builder: Any, vector: Any, count: int) -> Any:
    """The vector, padded with lanes of zeros to `count` in total."""
    have = vector.type.count
    if have == count:
        return vector
    zeros = ir.Constant(vector.type, [0] * have)
    lanes = ir.Constant(ir.VectorType(I32, count), [min(i, have) for i in range(count)])
    return builder.shuffle_vector(vector, zeros, lanes)


def call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    """Call one of LLVM's intrinsic functions."""
    shape = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, shape, name), arguments)


def _in_parts(builder: Any, width: int, emit: Callable[..., Any], *vectors: Any) -> Any:
    """What `emit` makes of each `width` lanes of the vectors, side by side."""
    count = vectors[0].type.count
    found = [
        emit(builder, *(part(builder, vector, first, width) for vector in vectors))
        for first in range(0, count, width)
    ]
    return joined(builder, found)


class Way(NamedTuple):
    """An operation on vectors of `width` bytes, for CPUs with these features, by LLVM's names."""

    features: set[str]
    width: int
    emit: Callable[..., Any]


def _by_best(ways: Sequence[Way], builder: Any, *vectors: Any) -> Any:
    """Use the first way that this CPU supports and that is not wider than the vectors."""
    count = vectors[0].type.count
    way = next(way for way in ways if way.features <= FEATURES and way.width <= count)
    return _in_parts(builder, way.width, way.emit, *vectors)


def _picks(name: str) -> Callable[..., Any]:
    return lambda builder, table, codes: call(builder, name, codes.type, table, codes)


def _pick_by_comparing(builder: Any, table: Any, codes: Any) -> Any:
    found = ir.Constant(codes.type, [0] * codes.type.count)
    for code in range(16):
        every = ir.Constant(codes.type, [code] * codes.type.count)
        value = in_order(builder, table, [code] * codes.type.count)
        found = builder.select(builder.icmp_unsigned("==", codes, every), value, found)
    return found


PICKING = (
    Way({"avx512bw"}, 64, _picks("llvm.x86.avx512.pshuf.b.512")),
    Way({"avx2"}, 32, _picks("llvm.x86.avx2.pshuf.b")),
    Way({"ssse3"}, 16, _picks("llvm.x86.ssse3.pshuf.b.128")),
    Way(set(), 16, _pick_by_comparing),
)


def pick_bytes(builder: Any, table: Sequence[int], codes: Any) -> Any:
    """Look up codes, 0 to 15, in a table of 16 int8."""
    count = codes.type.count
    values = ir.Constant(codes.type, [x & 255 for x in table] * (count // 16))
    return _by_best(PICKING, builder, values, codes)


def _dots(lanes: int) -> Callable[..., Any]:
    """VPDPBUSD."""
    words = ir.VectorType(I32, lanes)

    def emit(builder: Any, codes: Any, numbers: Any) -> Any:
        codes, numbers = builder.bitcast(codes, words), builder.bitcast(numbers, words)
        zeros = ir.Constant(words, [0] * lanes)
        return call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", words, zeros, codes, numbers)

    return emit


def _pairs(bytes_name: str, shorts_name: str) -> Callable[..., Any]:
    """PMADDUBSW and PMADDWD: sums of two products, which must fit in 16 bits, then of two such sums."""

    def emit(builder: Any, codes: Any, numbers: Any) -> Any:
        count = codes.type.count
        shorts = ir.VectorType(I16, count // 2)
        sums = call(builder, bytes_name, shorts, codes, numbers)
        ones = ir.Constant(shorts, [1] * (count // 2))
        return call(builder, shorts_name, ir.VectorType(I32, count // 4), sums, ones)

    return emit


def _signed_dots(builder: Any, codes: Any, numbers: Any) -> Any:
    """SDOT."""
    words = ir.VectorType(I32, 4)
    zeros = ir.Constant(words, [0] * 4)
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", words, zeros, codes, numbers)


def _multiplications(builder: Any, codes: Any, numbers: Any) -> Any:
    """One multiplication for each byte."""
    count = codes.type.count
    wide = ir.VectorType(I32, count)
    products = builder.mul(builder.sext(codes, wide), builder.sext(numbers, wide))
    for _ in range(2):
        count //= 2
        even, odd = (in_order(builder, products, range(at, 2 * count, 2)) for at in (0, 1))
        products = builder.add(even, odd)
    return products


# UNSIGNED needs unsigned first factors. SDOT and multiplications take any signs.
SIGNED = (
    Way({"dotprod"}, 16, _signed_dots),
    Way(set(), 16, _multiplications),
)
UNSIGNED = (
    Way({"avx512vnni"}, 64, _dots(16)),
    Way({"avx512vnni", "avx512vl"}, 32, _dots(8)),
    Way({"avxvnni"}, 32, _dots(8)),
    Way({"avx2"}, 32, _pairs("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd")),
    Way({"ssse3"}, 16, _pairs("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd")),
    *SIGNED,
)
MOVING_SIGNS = (
    Way({"avx512bw"}, 64, lambda builder, *pair: _move_signs(builder, *pair)),
    Way({"avx2"}, 32, _picks("llvm.x86.avx2.psign.b")),
    Way({"ssse3"}, 16, _picks("llvm.x86.ssse3.psign.b.128")),
)


def _move_signs(builder: Any, numbers: Any, codes: Any) -> Any:
    zeros = ir.Constant(codes.type, [0] * codes.type.count)
    return builder.select(builder.icmp_signed("<", codes, zeros), builder.sub(zeros, numbers), numbers)


HAS_SIGNED_DOTS = "dotprod" in FEATURES
HAS_DOTS = HAS_SIGNED_DOTS or not FEATURES.isdisjoint({"avx512vnni", "avxvnni"})
HAS_PAIRS = not HAS_DOTS and "avx2" in FEATURES
LARGEST_PAIR = 2 * 127  # times the largest code: the largest sum of two products


def dot_columns(builder: Any, columns: Sequence[Any], numbers: Sequence[Any], most: int) -> Any:
    """The sum of `dot_bytes` over several vectors of codes, at most `most`, each with its numbers."""
    if not HAS_PAIRS:
        found = [dot_bytes(builder, *pair, signed=False) for pair in zip(columns, numbers, strict=True)]
        return _sum(builder, found)
    count = columns[0].type.count
    shorts, words = ir.VectorType(I16, count // 2), ir.VectorType(I32, count // 4)
    pairs = [
        _in_parts(
            builder,
            32,
            lambda b, c, n: call(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), c, n),
            *pair,
        )
        for pair in zip(columns, numbers, strict=True)
    ]
    # Add as many sums of two products as fit in 16 bits before widening them to 32 bits.
    together = min(len(pairs), 32767 // (LARGEST_PAIR * most))
    ones = ir.Constant(shorts, [1] * shorts.count)
    found = [
        _in_parts(
            builder,
            16,
            lambda b, s, o: call(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), s, o),
            _sum(builder, pairs[at : at + together]),
            ones,
        )
        for at in range(0, len(pairs), together)
    ]
    assert found[0].type == words
    return _sum(builder, found)


def _sum(builder: Any, vectors: Sequence[Any]) -> Any:
    total = vectors[0]
    for vector in vectors[1:]:
        total = builder.add(total, vector)
    return total


def dot_bytes(builder: Any, codes: Any, numbers: Any, *, signed: bool) -> Any:
    """Int32 sums of four neighbouring products each, of codes and numbers from -127 to 127. Codes are 0 to 63
    or, if signed, any int8.
    """
    if not signed:
        return _by_best(UNSIGNED, builder, codes, numbers)
    if "ssse3" not in FEATURES:
        return _by_best(SIGNED, builder, codes, numbers)
    size = call(builder, f"llvm.abs.v{codes.type.count}i8", codes.type, codes, ir.Constant(ir.IntType(1), 0))
    return _by_best(UNSIGNED, builder, size, _by_best(MOVING_SIGNS, builder, numbers, codes))
