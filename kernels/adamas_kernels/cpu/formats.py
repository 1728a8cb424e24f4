"""How the numbers of a block are read, for each type that compiled functions multiply in place.

A description is Python that emits LLVM's code, without loops: a block's codes as lanes of LANES floats, one
factor for each of them and, for some types, something to add. Types and layouts are those of ggml-common.h
and of `blocks.OWN`;
https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c unpacks them one number at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from adamas_kernels.cpu.features import PICKS_BYTES, PICKS_FLOATS
from adamas_kernels.cpu.lanes import BYTES, F32, I32, LANES, NUMBERS, WORDS, half_to_float, splat_value

Code = Callable[[], Any]  # emits LANES numbers where it is called
I8, I16 = ir.IntType(8), ir.IntType(16)
NUMBER = tuple(range(16))  # what a code of four bits means
CENTRED = tuple(range(-8, 8))
LOGARITHMIC = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # IQ4_NL, IQ4_XS
FLOATS_OF_4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # MXFP4: twice an E2M1


class Block(NamedTuple):
    """The code that reads one block.

    codes: for each LANES numbers in turn, what emits them as floats, not yet scaled. scales: one factor for
    each of `codes`, in LANES lanes, or None for 1; `shared` neighbours have the same. offsets: what is to be
    added, as many, or None.
    """

    codes: Sequence[Code]
    scales: Any
    shared: int = 1
    offsets: Any = None


class Reader:
    """Emits loads from one block, at places in bytes, and what is done to the values."""

    def __init__(self, builder: Any, block: Any) -> None:
        self.builder, self._block = builder, block

    def load(self, at: int, kind: ir.Type) -> Any:
        """A value of any type."""
        place = self.builder.gep(self._block, [ir.Constant(ir.IntType(64), at)])
        value = self.builder.load(self.builder.bitcast(place, kind.as_pointer()))
        value.align = 1
        return value

    def bytes(self, at: int, count: int = LANES) -> Any:
        """So many neighbouring bytes."""
        return self.load(at, ir.VectorType(I8, count))

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
        """`bits` bits of each byte, or word, from bit `shift` on."""
        if shift:
            codes = self.builder.lshr(codes, self.every(codes, shift))
        return self.builder.and_(codes, self.every(codes, (1 << bits) - 1))

    def part(self, vector: Any, first: int, count: int = LANES) -> Any:
        """Some neighbouring lanes."""
        order = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
        return self.builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), order)

    def ordered(self, vector: Any, order: list[int], other: Any = None) -> Any:
        """Lanes of one or two vectors in this order."""
        lanes = ir.Constant(ir.VectorType(I32, len(order)), order)
        other = ir.Constant(vector.type, ir.Undefined) if other is None else other
        return self.builder.shuffle_vector(vector, other, lanes)

    def signed(self, codes: Any) -> Any:
        """LANES int8 as floats."""
        return self.builder.sitofp(self.builder.sext(codes, WORDS), NUMBERS)

    def signed_at(self, at: int) -> Any:
        """LANES neighbouring int8 as floats."""
        return self.signed(self.bytes(at))

    def unsigned(self, codes: Any) -> Any:
        """LANES uint8 as floats."""
        return self.builder.sitofp(self.builder.zext(codes, WORDS), NUMBERS)

    def multiply(self, a: Any, b: Any) -> Any:
        """The products of floats."""
        return self.builder.fmul(a, b)

    def nibbles(self, codes: Any, table: tuple[int, ...]) -> list[Code]:
        """What the lower and the higher halves of LANES bytes mean, as floats."""
        if PICKS_FLOATS:
            words = self.builder.zext(codes, WORDS)
            high = self.builder.lshr(words, self.every(words, 4))
            return [lambda: self._pick_floats(table, words), lambda: self._pick_floats(table, high)]
        return [
            lambda: self._pick_bytes(table, self.low(codes, 4)),
            lambda: self._pick_bytes(table, self.low(codes, 4, 4)),
        ]

    def _pick_floats(self, table: tuple[int, ...], words: Any) -> Any:
        """Only four bits of each word count."""
        name = "llvm.x86.avx512.permvar.sf.512"
        shape = ir.FunctionType(NUMBERS, [NUMBERS, WORDS])
        function = cgutils.get_or_insert_function(self.builder.module, shape, name)
        return self.builder.call(function, [ir.Constant(NUMBERS, [float(x) for x in table]), words])

    def _pick_bytes(self, table: tuple[int, ...], codes: Any) -> Any:
        if table == NUMBER:
            return self.unsigned(codes)
        if table == CENTRED:
            return self.signed(self.builder.sub(codes, self.every(codes, 8)))
        values = ir.Constant(BYTES, [x & 255 for x in table])
        if PICKS_BYTES:
            shape = ir.FunctionType(BYTES, [BYTES, BYTES])
            function = cgutils.get_or_insert_function(
                self.builder.module, shape, "llvm.x86.ssse3.pshuf.b.128"
            )
            return self.signed(self.builder.call(function, [values, codes]))
        found = ir.Constant(BYTES, [0] * LANES)
        for code, value in enumerate(table):
            chosen = self.builder.icmp_unsigned("==", codes, self.every(codes, code))
            found = self.builder.select(chosen, self.every(codes, value & 255), found)
        return self.signed(found)

    def fifth_bits(self, codes: Sequence[Code], masks: Sequence[Code]) -> list[Code]:
        """The same codes, and 16 more where a mask is set."""

        def added(code: Code, mask: Code) -> Any:
            low = code()
            more = self.builder.fadd(low, self.every(low, 16.0))
            return self.builder.select(mask(), more, low)

        return [partial(added, *pair) for pair in zip(codes, masks, strict=True)]

    def set_bits(self, at: int) -> list[Code]:
        """The bits of two int16, as masks."""
        flags = ir.VectorType(ir.IntType(1), LANES)
        return [partial(self.load, at, flags), partial(self.load, at + 2, flags)]

    def has_bit(self, codes: Any, bit: int) -> Any:
        """Where a bit of a byte is set."""
        return self.builder.icmp_unsigned(
            "!=", self.builder.and_(codes, self.every(codes, 1 << bit)), self.every(codes, 0)
        )

    def pair(self, at: int) -> Any:
        """A float16 in the first two lanes, as float32, and zeros behind them."""
        zeros = ir.Constant(NUMBERS, [0.0] * LANES)
        return self.ordered(self.splat_half(at), [0, 1, *range(LANES + 2, 2 * LANES)], zeros)


def _words(read: Reader, *words: Any) -> Any:
    """LANES bytes of four words."""
    vector = ir.Constant(ir.VectorType(I32, 4), ir.Undefined)
    for at, word in enumerate(words):
        vector = read.builder.insert_element(vector, word, ir.Constant(I32, at))
    return read.builder.bitcast(vector, BYTES)


def _bits(read: Reader, word: Any, mask: int, shift: int = 0) -> Any:
    """The bits of a word under a mask, moved to the right by `shift`, or to the left."""
    if shift:
        move = read.builder.lshr if shift > 0 else read.builder.shl
        word = move(word, ir.Constant(I32, abs(shift)))
    return read.builder.and_(word, ir.Constant(I32, mask))


def _scales_and_minimums(read: Reader, at: int) -> tuple[Any, Any]:
    """Eight of 6 bits each, in 12 bytes, as LANES floats: each twice, for there are two LANES in a group."""
    first, second, third = (read.load(at + 4 * i, I32) for i in range(3))
    low, six, high = 0x0F0F0F0F, 0x3F3F3F3F, 0x30303030
    or_ = read.builder.or_
    scales = _bits(read, first, six), or_(_bits(read, third, low), _bits(read, first, high, 2))
    minimums = _bits(read, second, six), or_(_bits(read, third, low, 4), _bits(read, second, high, 2))
    both = _words(read, *scales, *minimums)
    twice = [i // 2 for i in range(LANES)]
    return read.unsigned(read.ordered(both, twice)), read.unsigned(read.ordered(both, [i + 8 for i in twice]))


def _f32(read: Reader) -> Block:
    """Numbers of 32 bits."""
    return Block([lambda: read.load(0, NUMBERS)], None)


def _f16(read: Reader) -> Block:
    """Numbers of 16 bits."""
    return Block([lambda: half_to_float(read.builder, read.load(0, ir.VectorType(I16, LANES)))], None)


def _bf16(read: Reader) -> Block:
    """The higher halves of float32."""

    def numbers() -> Any:
        words = read.builder.zext(read.load(0, ir.VectorType(I16, LANES)), WORDS)
        return read.builder.bitcast(read.builder.shl(words, read.every(words, 16)), NUMBERS)

    return Block([numbers], None)


def _q8_0(read: Reader) -> Block:
    """A scale, and 32 int8."""
    codes = [partial(read.signed_at, at) for at in (2, 2 + LANES)]
    return Block(codes, read.splat_half(0), 2)


def _q8_m(read: Reader) -> Block:
    """A scale, a middle, and 32 int8."""
    codes = [partial(read.signed_at, at) for at in (4, 4 + LANES)]
    return Block(codes, read.splat_half(0), 2, read.pair(2))


def _f8(read: Reader) -> Block:
    """A scale, and 32 floats of 8 bits, see `blocks.OWN`."""

    def code(at: int) -> Any:
        wide = read.builder.zext(read.bytes(at), ir.VectorType(I16, LANES))
        sign = read.builder.shl(read.builder.and_(wide, read.every(wide, 128)), read.every(wide, 8))
        rest = read.builder.shl(read.low(wide, 7), read.every(wide, 7))
        return half_to_float(read.builder, read.builder.or_(sign, rest))

    return Block([partial(code, at) for at in (2, 2 + LANES)], read.splat_half(0), 2)


def _q4_0(read: Reader) -> Block:
    """A scale, and 32 codes of 4 bits from -8 on."""
    return Block(read.nibbles(read.bytes(2), CENTRED), read.splat_half(0), 2)


def _q4_1(read: Reader) -> Block:
    """A scale, a least value, and 32 codes of 4 bits."""
    return Block(read.nibbles(read.bytes(4), NUMBER), read.splat_half(0), 2, read.pair(2))


def _q5_0(read: Reader) -> Block:
    """A scale, and 32 codes of 5 bits from -16 on, the fifth ones apart."""
    codes = read.fifth_bits(read.nibbles(read.bytes(6), tuple(range(-16, 0))), read.set_bits(2))
    return Block(codes, read.splat_half(0), 2)


def _q5_1(read: Reader) -> Block:
    """A scale, a least value, and 32 codes of 5 bits, the fifth ones apart."""
    codes = read.fifth_bits(read.nibbles(read.bytes(8), NUMBER), read.set_bits(4))
    return Block(codes, read.splat_half(0), 2, read.pair(2))


def _iq4_nl(read: Reader) -> Block:
    """A scale, and 32 codes of 4 bits that a table gives their meaning."""
    return Block(read.nibbles(read.bytes(2), LOGARITHMIC), read.splat_half(0), 2)


def _mxfp4(read: Reader) -> Block:
    """A power of two, and 32 floats of 4 bits.

    One group; the scale is half of the power, since the table has twice the floats.
    """
    builder = read.builder
    power = builder.zext(read.load(0, I8), I32)
    normal = builder.shl(builder.sub(power, ir.Constant(I32, 1)), ir.Constant(I32, 23))
    # Powers 0 and 1 are subnormal.
    tiny = builder.shl(ir.Constant(I32, 0x00200000), builder.and_(power, ir.Constant(I32, 1)))
    is_tiny = builder.icmp_unsigned("<", power, ir.Constant(I32, 2))
    scale = builder.bitcast(builder.select(is_tiny, tiny, normal), F32)
    return Block(read.nibbles(read.bytes(1), FLOATS_OF_4), splat_value(builder, scale), 2)


def _q2_k(read: Reader) -> Block:
    """256 codes of 2 bits; each LANES have a scale and a minimum of 4 bits, in units that are floats.

    Each byte has codes of four neighbouring groups of 32.
    """

    def code(piece: int) -> Any:
        half, shift = piece // 8, piece // 2 % 4
        codes = read.low(read.bytes(16 + 32 * half, 32), 2, 2 * shift)
        return read.unsigned(read.part(codes, LANES * (piece % 2)))

    both = read.bytes(0)
    scales = read.multiply(read.unsigned(read.low(both, 4)), read.splat_half(80))
    minimums = read.multiply(read.unsigned(read.low(both, 4, 4)), read.splat_half(82))
    offsets = read.builder.fsub(ir.Constant(NUMBERS, [0.0] * LANES), minimums)
    return Block([partial(code, piece) for piece in range(16)], scales, 1, offsets)


def _q3_k(read: Reader) -> Block:
    """256 codes of 3 bits from -4 on, the third ones apart; each LANES have a scale of 6 bits.

    Each byte has codes of four neighbouring groups of 32, and third bits of eight.
    """

    def code(piece: int) -> Any:
        group = piece // 2
        codes = read.low(read.bytes(32 + 32 * (group // 4), 32), 2, 2 * (group % 4))
        less = read.builder.sub(codes, read.every(codes, 4))
        codes = read.builder.select(read.has_bit(read.bytes(0, 32), group), codes, less)
        return read.signed(read.part(codes, LANES * (piece % 2)))

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
    return Block([partial(code, piece) for piece in range(16)], read.multiply(scales, read.splat_half(108)))


def _q4_k(read: Reader) -> Block:
    """256 codes of 4 bits; each 32 have a scale and a minimum of 6 bits, in units that are floats.

    32 bytes have the codes of two groups.
    """
    codes: list[Code] = []
    for at in range(16, 144, 32):
        first, second = (read.nibbles(read.bytes(at + part), NUMBER) for part in (0, LANES))
        codes += [first[0], second[0], first[1], second[1]]
    return _with_minimums(read, codes)


def _q5_k(read: Reader) -> Block:
    """The same with codes of 5 bits, the fifth ones apart.

    32 bytes have the codes of two groups, and others the fifth bits of eight.
    """
    codes: list[Code] = []
    fifth = [read.bytes(16), read.bytes(16 + LANES)]
    for pair in range(4):
        low, high = zip(
            *(read.nibbles(read.bytes(48 + 32 * pair + part), NUMBER) for part in (0, LANES)),
            strict=True,
        )
        for group, four in ((2 * pair, low), (2 * pair + 1, high)):
            masks = [partial(read.has_bit, bits, group) for bits in fifth]
            codes += read.fifth_bits(four, masks)
    return _with_minimums(read, codes)


def _with_minimums(read: Reader, codes: list[Code]) -> Block:
    """The block of Q4_K and Q5_K, which begin with two units and the scales."""
    scales, minimums = _scales_and_minimums(read, 4)
    unit = read.half(2)
    negative = read.builder.fsub(ir.Constant(F32, -0.0), unit)
    return Block(
        codes, read.multiply(scales, read.splat_half(0)), 2,
        read.multiply(minimums, splat_value(read.builder, negative)),
    )  # fmt: skip


def _q6_k(read: Reader) -> Block:
    """256 codes of 6 bits from -32 on, two of them apart; each LANES have an int8 scale.

    In each half of a block 64 bytes have four bits of its codes, and 32 have two.
    """

    def code(piece: int) -> Any:
        half, group = piece // 8, piece // 2 % 4
        four = read.low(read.bytes(64 * half + 32 * (group % 2), 32), 4, 4 * (group // 2))
        two = read.low(read.bytes(128 + 32 * half, 32), 2, 2 * group)
        codes = read.builder.or_(four, read.builder.shl(two, read.every(two, 4)))
        codes = read.builder.sub(codes, read.every(codes, 32))
        return read.signed(read.part(codes, LANES * (piece % 2)))

    scales = read.multiply(read.signed(read.bytes(192)), read.splat_half(208))
    return Block([partial(code, piece) for piece in range(16)], scales)


def _iq4_xs(read: Reader) -> Block:
    """256 codes of 4 bits that a table gives their meaning; each 32 have a scale of 6 bits.

    Two bits of each scale are apart.
    """
    codes: list[Code] = []
    for at in range(8, 136, LANES):
        codes += read.nibbles(read.bytes(at), LOGARITHMIC)
    groups = [i // 2 for i in range(LANES)]  # of each of `codes`
    low = read.ordered(read.bytes(4, 4), [g // 2 for g in groups])
    low = read.builder.lshr(low, ir.Constant(BYTES, [4 * (g % 2) for g in groups]))
    high = splat_value(read.builder, read.builder.zext(read.load(2, I16), I32))
    high = read.builder.lshr(high, ir.Constant(WORDS, [2 * g for g in groups]))
    words = read.builder.or_(
        read.low(read.builder.zext(low, WORDS), 4),
        read.builder.shl(read.low(high, 2), read.every(high, 4)),
    )
    scales = read.builder.sitofp(read.builder.sub(words, read.every(words, 32)), NUMBERS)
    return Block(codes, read.multiply(scales, read.splat_half(0)), 2)


@dataclass(frozen=True)
class Format:
    """A type. numbers, size: of a block, and its bytes; adds: whether it has offsets."""

    block: Callable[[Reader], Block]
    numbers: int
    size: int
    adds: bool = False


# By the type's name. F32, F16 and BF16 are read as if they had blocks of LANES numbers.
FORMATS = {
    "F32": Format(_f32, LANES, 4 * LANES),
    "F16": Format(_f16, LANES, 2 * LANES),
    "BF16": Format(_bf16, LANES, 2 * LANES),
    "Q8_0": Format(_q8_0, 32, 34),
    "Q8_M": Format(_q8_m, 32, 36, adds=True),
    "F8": Format(_f8, 32, 34),
    "Q4_0": Format(_q4_0, 32, 18),
    "Q4_1": Format(_q4_1, 32, 20, adds=True),
    "Q5_0": Format(_q5_0, 32, 22),
    "Q5_1": Format(_q5_1, 32, 24, adds=True),
    "IQ4_NL": Format(_iq4_nl, 32, 18),
    "MXFP4": Format(_mxfp4, 32, 17),
    "Q2_K": Format(_q2_k, 256, 84, adds=True),
    "Q3_K": Format(_q3_k, 256, 110),
    "Q4_K": Format(_q4_k, 256, 144, adds=True),
    "Q5_K": Format(_q5_k, 256, 176, adds=True),
    "Q6_K": Format(_q6_k, 256, 210),
    "IQ4_XS": Format(_iq4_xs, 256, 136),
}
MOST_NUMBERS = max(form.numbers for form in FORMATS.values())  # of a block
