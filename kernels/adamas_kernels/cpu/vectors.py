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
Code = Callable[[], Any]  # emits a vector where it is called


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


def in_parts(builder: Any, parts: int, emit: Callable[..., Any], *vectors: Any) -> Any:
    """What `emit` makes of each of so many equal parts of the vectors, side by side."""
    sizes = [vector.type.count // parts for vector in vectors]
    found = [
        emit(builder, *(part(builder, x, at * size, size) for x, size in zip(vectors, sizes, strict=True)))
        for at in range(parts)
    ]
    return joined(builder, found)


class Way(NamedTuple):
    """An operation on vectors of `width` numbers, for CPUs with these features, by LLVM's names."""

    features: set[str]
    width: int
    emit: Callable[..., Any]


def _by_best(ways: Sequence[Way], builder: Any, *vectors: Any) -> Any:
    """Use the first way that this CPU supports and that is not wider than the vectors."""
    count = vectors[-1].type.count
    way = next(way for way in ways if way.features <= FEATURES and way.width <= count)
    return in_parts(builder, count // way.width, way.emit, *vectors)


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

    def emit(builder: Any, total: Any, codes: Any, numbers: Any) -> Any:
        codes, numbers = builder.bitcast(codes, words), builder.bitcast(numbers, words)
        return call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", words, total, codes, numbers)

    return emit


def _sums_of_pairs(builder: Any, name: str, codes: Any, numbers: Any) -> Any:
    """PMADDUBSW: sums of two products, which must fit in 16 bits."""
    return call(builder, name, ir.VectorType(I16, codes.type.count // 2), codes, numbers)


def _sums_of_two(builder: Any, name: str, shorts: Any, others: Any = None) -> Any:
    """PMADDWD: sums of two products of int16, or of two int16."""
    others = ir.Constant(shorts.type, [1] * shorts.type.count) if others is None else others
    return call(builder, name, ir.VectorType(I32, shorts.type.count // 2), shorts, others)


def _pairs(bytes_name: str, shorts_name: str) -> Callable[..., Any]:
    """PMADDUBSW and PMADDWD."""

    def emit(builder: Any, total: Any, codes: Any, numbers: Any) -> Any:
        sums = _sums_of_pairs(builder, bytes_name, codes, numbers)
        return builder.add(total, _sums_of_two(builder, shorts_name, sums))

    return emit


def _signed_dots(builder: Any, total: Any, codes: Any, numbers: Any) -> Any:
    """SDOT."""
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, codes, numbers)


def _multiplications(builder: Any, total: Any, codes: Any, numbers: Any) -> Any:
    """One multiplication for each byte."""
    count = codes.type.count
    wide = ir.VectorType(I32, count)
    products = builder.mul(builder.sext(codes, wide), builder.sext(numbers, wide))
    for _ in range(2):
        count //= 2
        even, odd = (in_order(builder, products, range(at, 2 * count, 2)) for at in (0, 1))
        products = builder.add(even, odd)
    return builder.add(total, products)


AVX2_BYTES, AVX2_SHORTS = "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"
# Each adds sums of four neighbouring products to a total. UNSIGNED needs unsigned first factors. SDOT and
# multiplications take any signs.
SIGNED = (
    Way({"dotprod"}, 16, _signed_dots),
    Way(set(), 16, _multiplications),
)
UNSIGNED = (
    Way({"avx512vnni"}, 64, _dots(16)),
    Way({"avx512vnni", "avx512vl"}, 32, _dots(8)),
    Way({"avxvnni"}, 32, _dots(8)),
    Way({"avx2"}, 32, _pairs(AVX2_BYTES, AVX2_SHORTS)),
    Way({"ssse3"}, 16, _pairs("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd")),
    *SIGNED,
)
MOVING_SIGNS = (
    Way({"avx2"}, 32, _picks("llvm.x86.avx2.psign.b")),
    Way({"ssse3"}, 16, _picks("llvm.x86.ssse3.psign.b.128")),
)


def _dot_two(name: str) -> Callable[..., Any]:
    """VPDPWSSD."""

    def emit(builder: Any, total: Any, first: Any, last: Any) -> Any:
        return call(builder, name, total.type, total, first, last)

    return emit


def _add_two(name: str) -> Callable[..., Any]:
    """PMADDWD."""

    def emit(builder: Any, total: Any, first: Any, last: Any) -> Any:
        shorts = ir.VectorType(I16, 2 * first.type.count)
        found = _sums_of_two(builder, name, *(builder.bitcast(x, shorts) for x in (first, last)))
        return builder.add(total, found)

    return emit


# Each adds sums of two neighbouring products of int16, in vectors of words. Widths are in words.
OF_SHORTS = (
    Way({"avx512vnni"}, 16, _dot_two("llvm.x86.avx512.vpdpwssd.512")),
    Way({"avx512vnni", "avx512vl"}, 8, _dot_two("llvm.x86.avx512.vpdpwssd.256")),
    Way({"avxvnni"}, 8, _dot_two("llvm.x86.avx512.vpdpwssd.256")),
    Way({"avx512bw"}, 16, _add_two("llvm.x86.avx512.pmaddw.d.512")),
    Way({"avx2"}, 8, _add_two(AVX2_SHORTS)),
)


def dot_shorts(builder: Any, total: Any, first: Any, last: Any) -> Any:
    """The total plus sums of two neighbouring products of int16 each: vectors of int32. Only for CPUs that
    `MULTIPLIES_SHORTS`.
    """
    return _by_best(OF_SHORTS, builder, total, first, last)


def held_words(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """Vectors of words, all computed before any is used, see `_held`."""
    count = vectors[0].type.count
    width = min(count, WIDEST_PAIRS[0] // 4)
    pieces = [[part(builder, vector, at, width) for at in range(0, count, width)] for vector in vectors]
    return [joined(builder, row) for row in _held(builder, pieces)]


HAS_SIGNED_DOTS = "dotprod" in FEATURES
HAS_DOTS = HAS_SIGNED_DOTS or not FEATURES.isdisjoint({"avx512vnni", "avxvnni"})
HAS_PAIRS = not HAS_DOTS and "avx2" in FEATURES
# Whether int8 codes are multiplied as unsigned ones that are SHIFT higher.
SHIFTS, SHIFT = HAS_DOTS and not HAS_SIGNED_DOTS, 128
# By how much numbers are higher for `raised_dots`: x86 multiplies unsigned bytes by signed ones.
RAISE = 0 if HAS_SIGNED_DOTS else 128
# Bytes of the widest register, and LLVM's names of PMADDUBSW and PMADDWD for it.
WIDEST_PAIRS = (
    (64, "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512")
    if "avx512bw" in FEATURES
    else (32, AVX2_BYTES, AVX2_SHORTS)
)
LARGEST_PAIR = 2 * 127  # times the largest code: the largest sum of two products


def shifted(builder: Any, codes: Any) -> Any:
    """Int8 codes plus SHIFT, as unsigned ones."""
    return builder.xor(codes, ir.Constant(codes.type, [SHIFT] * codes.type.count))


def dot_columns(
    builder: Any, total: Any, columns: Sequence[Any], numbers: Sequence[Any], most: int | None
) -> Any:
    """The total, int32, plus sums of four neighbouring products each, over several vectors of codes with
    their numbers, -127 to 127. Codes are 0 to `most`, or any int8 if that is None.
    """
    if HAS_PAIRS and most is not None:
        return builder.add(total, _dot_pairs(builder, columns, numbers, most))
    for codes, its in zip(columns, numbers, strict=True):
        if most is not None:
            total = _by_best(UNSIGNED, builder, total, codes, its)
        elif "ssse3" not in FEATURES:
            total = _by_best(SIGNED, builder, total, codes, its)
        else:
            # Only without SHIFTS: the signs of codes move to the numbers.
            name = f"llvm.abs.v{codes.type.count}i8"
            size = call(builder, name, codes.type, codes, ir.Constant(ir.IntType(1), 0))
            total = _by_best(UNSIGNED, builder, total, size, _by_best(MOVING_SIGNS, builder, its, codes))
    return total


def _dot_pairs(builder: Any, columns: Sequence[Any], numbers: Sequence[Any], most: int) -> Any:
    """The sums of `dot_columns` by instructions of AVX2, without a total."""
    parts = columns[0].type.count // 32
    pairs = [
        in_parts(builder, parts, lambda b, c, n: _sums_of_pairs(b, AVX2_BYTES, c, n), *pair)
        for pair in zip(columns, numbers, strict=True)
    ]
    # Add as many sums of two products as fit in 16 bits before widening them to 32 bits.
    together = min(len(pairs), 32767 // (LARGEST_PAIR * most))
    found = [
        in_parts(
            builder,
            parts,
            lambda b, s: _sums_of_two(b, AVX2_SHORTS, s),
            _sum(builder, pairs[at : at + together]),
        )
        for at in range(0, len(pairs), together)
    ]
    return _sum(builder, found)


def raised_dots(
    builder: Any, columns: Sequence[Any], numbers: Sequence[Sequence[Code]], start: Any
) -> list[Any]:
    """`start`, see `excess`, plus sums of four neighbouring products each, over several vectors of int8
    codes: int32, for each of some rounded vectors.

    numbers: by column and rounded vector, code that emits the same four bytes for every lane, -127 to 127
    plus RAISE. With HAS_PAIRS, codes are -32 to 31.
    """
    if not HAS_PAIRS:
        ways, found = UNSIGNED if RAISE else SIGNED, [start] * len(numbers[0])
        for codes, emits in zip(columns, numbers, strict=True):
            its = [builder.bitcast(emit(), codes.type) for emit in emits]
            found = [_by_best(ways, builder, x, y, codes) for x, y in zip(found, its, strict=True)]
        return found
    width, of_bytes, of_shorts = WIDEST_PAIRS
    parts = range(columns[0].type.count // width)
    sums: list[list[Any]] = [[None for _ in parts] for _ in numbers[0]]
    for codes, emits in zip(columns, numbers, strict=True):
        pieces = [part(builder, codes, i * width, width) for i in parts]
        for its, emit in zip(sums, emits, strict=True):
            number = builder.bitcast(part(builder, emit(), 0, width // 4), pieces[0].type)
            for i in parts:
                pairs = _sums_of_pairs(builder, of_bytes, number, pieces[i])
                its[i] = pairs if its[i] is None else builder.add(its[i], pairs)
        sums = _held(builder, sums)
    # Sums of 16 bits may have wrapped around, which adding the start reverses.
    start = builder.bitcast(start, ir.VectorType(I16, 2 * start.type.count))
    starts = [part(builder, start, i * width // 2, width // 2) for i in parts]
    return [
        joined(builder, [_sums_of_two(builder, of_shorts, builder.add(its[i], starts[i])) for i in parts])
        for its in sums
    ]


def _held(builder: Any, rows: list[list[Any]]) -> list[list[Any]]:
    """The same vectors, all computed before any is used: LLVM would finish one after the other, for which the
    codes of all columns need more registers than there are.
    """
    vectors = [vector for row in rows for vector in row]
    if len(vectors) == 1:
        return rows
    types = [vector.type for vector in vectors]
    constraints = ",".join(["=v"] * len(types) + [str(at) for at in range(len(types))])
    shape = ir.FunctionType(ir.LiteralStructType(types), types)
    found = builder.call(ir.InlineAsm(shape, "", constraints), vectors)
    kept = iter(builder.extract_value(found, at) for at in range(len(types)))
    return [[next(kept) for _ in row] for row in rows]


def excess(builder: Any, columns: Sequence[Any]) -> Any:
    """What makes up for RAISE in sums over these vectors of codes, where `raised_dots` starts: int32, or with
    HAS_PAIRS int16 for each two codes.
    """
    words = ir.VectorType(I32, columns[0].type.count // 4)
    total, ones = ir.Constant(words, None), ir.Constant(columns[0].type, [1] * columns[0].type.count)
    if not RAISE:
        return total
    if HAS_PAIRS:
        parts, name = columns[0].type.count // 32, AVX2_BYTES
        pairs = [
            in_parts(builder, parts, lambda b, x, y: _sums_of_pairs(b, name, x, y), ones, codes)
            for codes in columns
        ]
        total = _sum(builder, pairs)
    else:
        for codes in columns:
            total = _by_best(UNSIGNED, builder, total, ones, codes)
    total = builder.mul(total, ir.Constant(total.type, [-RAISE] * total.type.count))
    return builder.bitcast(total, words)


def _sum(builder: Any, vectors: Sequence[Any]) -> Any:
    total = vectors[0]
    for vector in vectors[1:]:
        total = builder.add(total, vector)
    return total


def transposed(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """Four vectors of words, in lanes of four: lane L of vector j has word j of lane L of each of the four.

    Every shuffle stays within 16 bytes.
    """

    def mixed(a: Any, b: Any, order: Sequence[int]) -> Any:
        """Words of each lane of a, 0 to 3, and of b, 4 to 7."""
        count = a.type.count
        lanes = [first + (i if i < 4 else count + i - 4) for first in range(0, count, 4) for i in order]
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), lanes))

    low, high, halves = (0, 4, 1, 5), (2, 6, 3, 7), ((0, 1, 4, 5), (2, 3, 6, 7))
    first, second = vectors[:2], vectors[2:]
    pairs = [mixed(two[0], two[1], order) for order in (low, high) for two in (first, second)]
    return [mixed(pairs[at], pairs[at + 1], half) for at in (0, 2) for half in halves]
