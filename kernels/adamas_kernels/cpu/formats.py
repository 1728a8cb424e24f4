"""How to read the numbers of a block, for each type that compiled functions multiply in place.

A description is Python that emits LLVM code without loops. Types of floats give vectors of LANES floats;
the others give codes as bytes, with a factor and, for some types, an addend for each LANES codes. Types and
layouts are those of ggml-common.h and of `blocks.OWN`;
https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c unpacks them one number at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir

from adamas_kernels.cpu.features import FEATURES
from adamas_kernels.cpu.lanes import BYTES, F32, I32, LANES, NUMBERS, WORDS, half_to_float, splat_value
from adamas_kernels.cpu.vectors import in_order, joined, part, pick_bytes

Code = Callable[[], Any]  # emits numbers where it is called
I8, I16 = ir.IntType(8), ir.IntType(16)
HAS_MASKS = "avx512bw" in FEATURES  # mask registers with one bit per byte of a vector
LOGARITHMIC = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # IQ4_NL, IQ4_XS
FLOATS_OF_4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # MXFP4: twice an E2M1


class Floats(NamedTuple):
    """The code that reads one block of floats.

    numbers: for each LANES of them, in order, code that emits them unscaled. scale: a vector of LANES, or
    None for 1.
    """

    numbers: Sequence[Code]
    scale: Any = None


class Codes(NamedTuple):
    """The code that reads one block of codes, or several that lie side by side.

    pieces: code that emits the codes as bytes: all of them at once, or in a block of 256 for i from 0 to 3
    the 32 from 32 i on and the 32 that are 128 after them. scales, minimums: float32, one for each LANES
    codes in order; minimums are added, or None.
    """

    pieces: Sequence[Code]
    scales: Any
    minimums: Any = None


class Reader:
    """Emits loads from blocks, at offsets in bytes, and operations on the values. Loads from several blocks
    are joined into one vector.
    """

    def __init__(self, builder: Any, *blocks: Any) -> None:
        self.builder, self._blocks = builder, blocks

    def load(self, at: int, kind: ir.Type) -> Any:
        """A value of any type, from the first block."""
        return self._load(self._blocks[0], at, kind)

    def _load(self, block: Any, at: int, kind: ir.Type) -> Any:
        place = self.builder.gep(block, [ir.Constant(ir.IntType(64), at)])
        value = self.builder.load(self.builder.bitcast(place, kind.as_pointer()))
        value.align = 1
        return value

    def each(self, at: int, kind: ir.VectorType) -> Any:
        """A vector from each block."""
        return joined(self.builder, [self._load(block, at, kind) for block in self._blocks])

    def bytes(self, at: int, count: int = LANES) -> Any:
        """This many neighbouring bytes from each block."""
        return self.each(at, ir.VectorType(I8, count))

    def halves(self, at: int) -> Any:
        """A float16 from each block as float32, repeated for each LANES of its 32 codes."""
        return self.twice(half_to_float(self.builder, self.each(at, ir.VectorType(I16, 1))))

    def twice(self, vector: Any) -> Any:
        """Each lane, repeated twice."""
        return in_order(self.builder, vector, [i // 2 for i in range(2 * vector.type.count)])

    def half(self, at: int) -> Any:
        """A float16 as float32."""
        return half_to_float(self.builder, self.load(at, I16))

    def splat_half(self, at: int) -> Any:
        """A float16 as float32 in each lane."""
        return splat_value(self.builder, self.half(at))

    def every(self, like: Any, number: float) -> Any:
        """A constant in each lane of a vector of the same type."""
        return ir.Constant(like.type, [number] * like.type.count)

    def low(self, codes: Any, bits: int, shift: int = 0) -> Any:
        """`bits` bits of each byte or word, starting at bit `shift`."""
        if shift:
            codes = self.builder.lshr(codes, self.every(codes, shift))
        return self.builder.and_(codes, self.every(codes, (1 << bits) - 1))

    def field(self, codes: Any, bits: int, shifts: Sequence[int], to: int = 0) -> Any:
        """`bits` bits of each byte, moved to bit `to`. The vector has one equal part per entry of `shifts`,
        the part's first bit.
        """
        moves = [shift - to for shift in shifts]
        words = ir.VectorType(I32, codes.type.count // 4)
        lanes = [abs(moves[i * len(moves) // words.count]) for i in range(words.count)]
        # The mask drops bits that come from a neighbouring byte.
        move = self.builder.lshr if min(moves) >= 0 else self.builder.shl
        assert min(moves) >= 0 or max(moves) <= 0
        moved = move(self.builder.bitcast(codes, words), ir.Constant(words, lanes))
        mask = self.every(codes, ((1 << bits) - 1) << to)
        return self.builder.and_(self.builder.bitcast(moved, codes.type), mask)

    def nibbles(self, codes: Any) -> Any:
        """The low nibbles of each LANES bytes, then their high nibbles."""
        groups = range(0, codes.type.count, LANES)
        order = [i for first in groups for _ in range(2) for i in range(first, first + LANES)]
        return self.field(in_order(self.builder, codes, order), 4, [0, 4] * len(groups))

    def with_bits(self, codes: Any, flags: Any, bit: int) -> Any:
        """The codes with this bit, unset so far, set where there is a flag."""
        more = self.builder.select(flags, self.every(codes, 1 << bit), self.every(codes, 0))
        return self.builder.add(codes, more)  # AVX-512 adds bytes under a mask in one instruction

    def flags(self, at: int) -> Any:
        """The bits of an int32 from each block."""
        if HAS_MASKS:
            return self.each(at, ir.VectorType(ir.IntType(1), 32))
        flags = self.bytes(at, 4)
        flags = in_order(self.builder, flags, [i // 8 for i in range(8 * flags.type.count)])
        return self.has_bits(flags, [i % 8 for i in range(flags.type.count)])

    def has_bits(self, codes: Any, bits: Sequence[int]) -> Any:
        """Where a bit of a byte is set; each part of the vector tests its own bit."""
        count = codes.type.count
        mask = ir.Constant(codes.type, [1 << bits[i * len(bits) // count] for i in range(count)])
        return self.builder.icmp_unsigned("!=", self.builder.and_(codes, mask), self.every(codes, 0))

    def signed(self, codes: Any) -> Any:
        """int8 as floats."""
        return self._floats(self.builder.sext, codes)

    def unsigned(self, codes: Any) -> Any:
        """uint8 as floats."""
        return self._floats(self.builder.zext, codes)

    def _floats(self, widen: Any, codes: Any) -> Any:
        count = codes.type.count
        words = widen(codes, ir.VectorType(I32, count))
        return self.builder.sitofp(words, ir.VectorType(F32, count))

    def multiply(self, a: Any, b: Any) -> Any:
        """The products of floats."""
        return self.builder.fmul(a, b)


def _words(read: Reader, *words: Any) -> Any:
    """Four words as LANES bytes."""
    vector = ir.Constant(ir.VectorType(I32, 4), ir.Undefined)
    for at, word in enumerate(words):
        vector = read.builder.insert_element(vector, word, ir.Constant(I32, at))
    return read.builder.bitcast(vector, BYTES)


def _bits(read: Reader, word: Any, mask: int, shift: int = 0) -> Any:
    """The masked bits of a word after a right shift by `shift`, or a left shift if negative."""
    if shift:
        move = read.builder.lshr if shift > 0 else read.builder.shl
        word = move(word, ir.Constant(I32, abs(shift)))
    return read.builder.and_(word, ir.Constant(I32, mask))


def _scales_and_minimums(read: Reader, at: int) -> tuple[Any, Any]:
    """Eight each, of 6 bits, in 12 bytes, as LANES floats: each twice, because a group has two LANES."""
    first, second, third = (read.load(at + 4 * i, I32) for i in range(3))
    low, six, high = 0x0F0F0F0F, 0x3F3F3F3F, 0x30303030
    or_ = read.builder.or_
    scales = _bits(read, first, six), or_(_bits(read, third, low), _bits(read, first, high, 2))
    minimums = _bits(read, second, six), or_(_bits(read, third, low, 4), _bits(read, second, high, 2))
    both = _words(read, *scales, *minimums)
    first_half, second_half = (part(read.builder, both, at, 8) for at in (0, 8))
    return read.unsigned(read.twice(first_half)), read.unsigned(read.twice(second_half))


def _f32(read: Reader) -> Floats:
    """Numbers of 32 bits."""
    return Floats([lambda: read.load(0, NUMBERS)])


def _f16(read: Reader) -> Floats:
    """Numbers of 16 bits."""
    return Floats([lambda: half_to_float(read.builder, read.load(0, ir.VectorType(I16, LANES)))])


def _bf16(read: Reader) -> Floats:
    """The higher halves of float32."""

    def numbers() -> Any:
        words = read.builder.zext(read.load(0, ir.VectorType(I16, LANES)), WORDS)
        return read.builder.bitcast(read.builder.shl(words, read.every(words, 16)), NUMBERS)

    return Floats([numbers])


def _f8(read: Reader) -> Floats:
    """A scale, and 32 8-bit floats, see `blocks.OWN`."""

    def numbers(at: int) -> Any:
        wide = read.builder.zext(read.bytes(at), ir.VectorType(I16, LANES))
        sign = read.builder.shl(read.builder.and_(wide, read.every(wide, 128)), read.every(wide, 8))
        rest = read.builder.shl(read.low(wide, 7), read.every(wide, 7))
        return half_to_float(read.builder, read.builder.or_(sign, rest))

    return Floats([partial(numbers, at) for at in (2, 2 + LANES)], read.splat_half(0))


def _q8_0(read: Reader) -> Codes:
    """A scale, and 32 int8."""
    return Codes([lambda: read.bytes(2, 32)], read.halves(0))


def _q8_m(read: Reader) -> Codes:
    """A scale, an offset, and 32 int8."""
    return Codes([lambda: read.bytes(4, 32)], read.halves(0), read.halves(2))


def _q4_0(read: Reader) -> Codes:
    """A scale, and 32 4-bit codes starting at -8."""
    return Codes([lambda: read.nibbles(read.bytes(2))], read.halves(0))


def _q4_1(read: Reader) -> Codes:
    """A scale, a minimum, and 32 4-bit codes."""
    return Codes([lambda: read.nibbles(read.bytes(4))], read.halves(0), read.halves(2))


def _q5_0(read: Reader) -> Codes:
    """A scale, and 32 5-bit codes starting at -16, with their fifth bits stored separately."""
    codes = [lambda: read.with_bits(read.nibbles(read.bytes(6)), read.flags(2), 4)]
    return Codes(codes, read.halves(0))


def _q5_1(read: Reader) -> Codes:
    """A scale, a minimum, and 32 5-bit codes, with their fifth bits stored separately."""
    codes = [lambda: read.with_bits(read.nibbles(read.bytes(8)), read.flags(4), 4)]
    return Codes(codes, read.halves(0), read.halves(2))


def _iq4_nl(read: Reader) -> Codes:
    """A scale, and 32 4-bit codes that index a table."""
    codes = [lambda: pick_bytes(read.builder, LOGARITHMIC, read.nibbles(read.bytes(2)))]
    return Codes(codes, read.halves(0))


def _mxfp4(read: Reader) -> Codes:
    """A power of two, and 32 4-bit floats.

    The scale is half the power, because the table holds twice the floats.
    """
    builder = read.builder
    powers = read.each(0, ir.VectorType(I8, 1))
    powers = builder.zext(powers, ir.VectorType(I32, powers.type.count))
    normal = builder.shl(builder.sub(powers, read.every(powers, 1)), read.every(powers, 23))
    # Powers 0 and 1 are subnormal.
    tiny = builder.shl(read.every(powers, 0x00200000), builder.and_(powers, read.every(powers, 1)))
    is_tiny = builder.icmp_unsigned("<", powers, read.every(powers, 2))
    scales = builder.bitcast(builder.select(is_tiny, tiny, normal), ir.VectorType(F32, powers.type.count))
    codes = [lambda: pick_bytes(builder, FLOATS_OF_4, read.nibbles(read.bytes(1)))]
    return Codes(codes, read.twice(scales))


def _q2_k(read: Reader) -> Codes:
    """256 2-bit codes; each LANES codes have a 4-bit scale and minimum, in float units.

    Each byte holds codes of four neighbouring groups of 32.
    """

    def codes(piece: int) -> Any:
        return read.field(read.bytes(16, 64), 2, [2 * piece])

    both = read.bytes(0)
    scales = read.multiply(read.unsigned(read.low(both, 4)), read.splat_half(80))
    minimums = read.multiply(read.unsigned(read.low(both, 4, 4)), read.splat_half(82))
    return Codes([partial(codes, piece) for piece in range(4)], scales, _negative(read, minimums))


def _twice(read: Reader, at: int) -> Any:
    """32 bytes, repeated twice."""
    codes = read.bytes(at, 32)
    return joined(read.builder, [codes, codes])


def _apart(read: Reader, at: int, apart: int, count: int = 32) -> Any:
    """This many bytes, and as many that begin `apart` bytes after them."""
    return joined(read.builder, [read.bytes(at, count), read.bytes(at + apart, count)])


def _negative(read: Reader, floats: Any) -> Any:
    return read.builder.fsub(read.every(floats, -0.0), floats)


def _q3_k(read: Reader) -> Codes:
    """256 3-bit codes starting at -4, with their third bits stored separately; each LANES codes have a 6-bit
    scale.

    Each byte holds codes of four neighbouring groups of 32, or third bits of eight groups.
    """

    def codes(piece: int) -> Any:
        two = read.field(read.bytes(32, 64), 2, [2 * piece])
        return read.with_bits(two, read.has_bits(_twice(read, 0), (piece, piece + 4)), 2)

    first, second, third = (read.load(96 + 4 * i, I32) for i in range(3))
    low, two = 0x0F0F0F0F, 0x30303030
    words = [
        read.builder.or_(_bits(read, first, low), _bits(read, third, two, -4)),
        read.builder.or_(_bits(read, second, low), _bits(read, third, two, -2)),
        read.builder.or_(_bits(read, first, low, 4), _bits(read, third, two)),
        read.builder.or_(_bits(read, second, low, 4), _bits(read, third, two, 2)),
    ]
    scales = _words(read, *words)
    scales = read.signed(read.builder.sub(scales, read.every(scales, 32)))
    return Codes([partial(codes, piece) for piece in range(4)], read.multiply(scales, read.splat_half(108)))


def _q4_k(read: Reader) -> Codes:
    """256 4-bit codes; each 32 have a 6-bit scale and minimum, in float units.

    32 bytes hold the codes of two groups.
    """

    return _with_minimums(read, [partial(_halves_of_pairs, read, 16, piece) for piece in range(4)])


def _halves_of_pairs(read: Reader, at: int, piece: int) -> Any:
    """A piece of 4-bit codes: 32 bytes hold those of two neighbouring groups of 32."""
    return read.field(_apart(read, at + 32 * (piece // 2), 64), 4, [4 * (piece % 2)])


def _q5_k(read: Reader) -> Codes:
    """The same with 5-bit codes, with their fifth bits stored separately.

    32 bytes hold the codes of two groups; 32 others hold the fifth bits of eight groups.
    """

    def codes(piece: int) -> Any:
        fifth = read.has_bits(_twice(read, 16), (piece, piece + 4))
        return read.with_bits(_halves_of_pairs(read, 48, piece), fifth, 4)

    return _with_minimums(read, [partial(codes, piece) for piece in range(4)])


def _with_minimums(read: Reader, codes: list[Code]) -> Codes:
    """A block of Q4_K or Q5_K, which begins with two units and the scales."""
    scales, minimums = _scales_and_minimums(read, 4)
    units = read.splat_half(0), _negative(read, read.splat_half(2))
    return Codes(codes, read.multiply(scales, units[0]), read.multiply(minimums, units[1]))


def _q6_k(read: Reader) -> Codes:
    """256 6-bit codes starting at -32, with two bits stored separately; each LANES codes have an int8 scale.

    In each half of a block, 64 bytes hold four bits of each code, and 32 bytes hold the other two.
    """

    def codes(piece: int) -> Any:
        four = read.field(_apart(read, 32 * (piece % 2), 64), 4, [4 * (piece // 2)])
        return read.builder.or_(four, read.field(read.bytes(128, 64), 2, [2 * piece], 4))

    scales = read.multiply(read.signed(read.bytes(192)), read.splat_half(208))
    return Codes([partial(codes, piece) for piece in range(4)], scales)


def _iq4_xs(read: Reader) -> Codes:
    """256 4-bit codes that index a table; each 32 have a 6-bit scale.

    Two bits of each scale are stored separately.
    """

    def codes(piece: int) -> Any:
        return pick_bytes(read.builder, LOGARITHMIC, read.nibbles(_apart(read, 8 + 16 * piece, 64, LANES)))

    groups = [i // 2 for i in range(LANES)]  # of each LANES codes
    low = in_order(read.builder, read.bytes(4, 4), [g // 2 for g in groups])
    low = read.builder.lshr(low, ir.Constant(BYTES, [4 * (g % 2) for g in groups]))
    high = splat_value(read.builder, read.builder.zext(read.load(2, I16), I32))
    high = read.builder.lshr(high, ir.Constant(WORDS, [2 * g for g in groups]))
    words = read.builder.or_(
        read.low(read.builder.zext(low, WORDS), 4),
        read.builder.shl(read.low(high, 2), read.every(high, 4)),
    )
    scales = read.builder.sitofp(read.builder.sub(words, read.every(words, 32)), NUMBERS)
    return Codes([partial(codes, piece) for piece in range(4)], read.multiply(scales, read.splat_half(0)))


@dataclass(frozen=True)
class FloatFormat:
    """A type that holds floats. numbers, size: numbers and bytes of a block."""

    block: Callable[[Reader], Floats]
    numbers: int
    size: int


@dataclass(frozen=True)
class CodeFormat:
    """A type that holds codes. numbers, size: numbers and bytes of a block. most: the largest code, at most
    63, or None if codes are int8. least: the value of code 0. adds: whether there are minimums. scaled:
    neighbouring codes with one scale.
    """

    block: Callable[[Reader], Codes]
    numbers: int
    size: int
    most: int | None = None
    least: int = 0
    adds: bool = False
    scaled: int = 32


# By type name. F32, F16 and BF16 are read as if they had blocks of LANES numbers.
FORMATS: dict[str, FloatFormat | CodeFormat] = {
    "F32": FloatFormat(_f32, LANES, 4 * LANES),
    "F16": FloatFormat(_f16, LANES, 2 * LANES),
    "BF16": FloatFormat(_bf16, LANES, 2 * LANES),
    "F8": FloatFormat(_f8, 32, 34),
    "Q8_0": CodeFormat(_q8_0, 32, 34),
    "Q8_M": CodeFormat(_q8_m, 32, 36, adds=True),
    "Q4_0": CodeFormat(_q4_0, 32, 18, 15, -8),
    "Q4_1": CodeFormat(_q4_1, 32, 20, 15, adds=True),
    "Q5_0": CodeFormat(_q5_0, 32, 22, 31, -16),
    "Q5_1": CodeFormat(_q5_1, 32, 24, 31, adds=True),
    "IQ4_NL": CodeFormat(_iq4_nl, 32, 18),
    "MXFP4": CodeFormat(_mxfp4, 32, 17),
    "Q2_K": CodeFormat(_q2_k, 256, 84, 3, adds=True, scaled=16),
    "Q3_K": CodeFormat(_q3_k, 256, 110, 7, -4, scaled=16),
    "Q4_K": CodeFormat(_q4_k, 256, 144, 15, adds=True),
    "Q5_K": CodeFormat(_q5_k, 256, 176, 31, adds=True),
    "Q6_K": CodeFormat(_q6_k, 256, 210, 63, -32, scaled=16),
    "IQ4_XS": CodeFormat(_iq4_xs, 256, 136),
}
MOST_NUMBERS = max(form.numbers for form in FORMATS.values())  # in a block
