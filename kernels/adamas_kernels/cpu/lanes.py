"""Sixteen numbers side by side: a vector type for compiled functions, one LLVM vector each.

LLVM splits a vector if the CPU's registers are shorter. With explicit vectors, vectorization does not depend
on the compiler, and float operations run in exactly the written order.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from adamas_kernels.cpu.features import COMPRESSES, CONVERTS_HALVES

LANES = 16

I32 = ir.IntType(32)
F32 = ir.FloatType()
WORDS = ir.VectorType(I32, LANES)
SHORTS = ir.VectorType(ir.IntType(16), LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)
NUMBERS = ir.VectorType(F32, LANES)
FLAGS = ir.VectorType(ir.IntType(1), LANES)


class Lanes(types.Type):
    """The numba type of LANES values of one kind."""

    def __init__(self, kind: str, vector: ir.VectorType) -> None:
        self.vector = vector
        super().__init__(f"Lanes({kind})")


FLOATS, INTS, MASK = Lanes("float32", NUMBERS), Lanes("int32", WORDS), Lanes("bool", FLAGS)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, kind.vector)


def _operator(function, emit, *cases):
    """Teach a Python operator the vector types of `cases`, (result, left, right) each."""

    @infer_global(function)
    class _Template(ConcreteTemplate):
        pass

    _Template.cases = [signature(*case) for case in cases]
    for _result, left, right in cases:

        @lower_builtin(function, left, right)
        def _lower(context, builder, sig, args, emit=emit):
            return emit(builder, *args)


def _of(name: str):
    return lambda builder, a, b: getattr(builder, name)(a, b)


_OF_FLOATS, _OF_INTS = (FLOATS, FLOATS, FLOATS), (INTS, INTS, INTS)


def _by_kind(floats: str, ints: str):
    return lambda builder, a, b: getattr(builder, floats if a.type == NUMBERS else ints)(a, b)


def _comparison(sign: str):
    def emit(builder, a, b):
        compare = builder.fcmp_ordered if a.type == NUMBERS else builder.icmp_signed
        return compare(sign, a, b)

    return emit


for _function, _floats, _ints in (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", "mul"),
):
    _operator(_function, _by_kind(_floats, _ints), _OF_FLOATS, _OF_INTS)
_operator(operator.truediv, _of("fdiv"), _OF_FLOATS)
_operator(operator.lshift, _of("shl"), _OF_INTS)
_operator(operator.rshift, _of("lshr"), _OF_INTS)  # logical: shifts in zeros
_operator(operator.xor, _of("xor"), _OF_INTS)
for _function, _name in ((operator.and_, "and_"), (operator.or_, "or_")):
    _operator(_function, _of(_name), _OF_INTS, (MASK, MASK, MASK))
for _function, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _operator(_function, _comparison(_sign), (MASK, FLOATS, FLOATS), (MASK, INTS, INTS))


def splat_value(builder, value, lanes: int = LANES):
    """The LLVM vector that holds a scalar in every lane."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    order = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), order)


def _address(context, builder, array_type, array, index, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def half_to_float(builder, bits):
    """float16 bits, a number or a vector, as float32."""
    count = bits.type.count if isinstance(bits.type, ir.VectorType) else None

    def like(element):
        return element if count is None else ir.VectorType(element, count)

    def every(element, number):
        return ir.Constant(like(element), number if count is None else [number] * count)

    if CONVERTS_HALVES:
        return builder.fpext(builder.bitcast(bits, like(ir.HalfType())), like(F32))
    wide = builder.zext(bits, like(I32))
    sign = builder.shl(builder.and_(wide, every(I32, 0x8000)), every(I32, 16))
    shifted = builder.shl(builder.and_(wide, every(I32, 0x7FFF)), every(I32, 13))
    # The exponents are 112 apart; the product is exact for subnormal numbers, too.
    number = builder.fmul(builder.bitcast(shifted, like(F32)), every(F32, 2.0**112))
    is_finite = builder.icmp_unsigned("<", shifted, every(I32, 0x1F << 23))
    special = builder.or_(shifted, every(I32, 0xFF << 23))
    magnitude = builder.select(is_finite, builder.bitcast(number, like(I32)), special)
    return builder.bitcast(builder.or_(magnitude, sign), like(F32))


# The vector type of LANES array elements: bfloat16 is passed as uint16, float16 as int16, see `floats.py`.
_STORED = {
    types.int32: WORDS, types.float32: NUMBERS, types.int16: SHORTS, types.uint16: SHORTS,
    types.int8: BYTES, types.uint8: BYTES,
}  # fmt: skip


@intrinsic
def load(typing_context, array, index):
    """LANES neighbours of a contiguous array: int32 unchanged, uint8 as int32, numbers of any format and int8
    as float32.
    """
    stored = _STORED[array.dtype]

    def emit(context, builder, sig, args):
        lanes = builder.load(_address(context, builder, sig.args[0], *args, stored))
        lanes.align = sig.args[0].dtype.bitwidth // 8
        if array.dtype == types.int16:
            return half_to_float(builder, lanes)
        if array.dtype == types.uint16:
            wide = builder.shl(builder.zext(lanes, WORDS), ir.Constant(WORDS, [16] * LANES))
            return builder.bitcast(wide, NUMBERS)
        if array.dtype == types.int8:
            return builder.sitofp(builder.sext(lanes, WORDS), NUMBERS)
        if array.dtype == types.uint8:
            return builder.zext(lanes, WORDS)
        return lanes

    return (INTS if array.dtype in (types.int32, types.uint8) else FLOATS)(array, types.intp), emit


def round_to_bfloat16(builder, value):
    """The bfloat16 bits nearest to a float32 number or vector, ties to even; NaN stays NaN."""
    count = value.type.count if isinstance(value.type, ir.VectorType) else None

    def like(element):
        return element if count is None else ir.VectorType(element, count)

    def every(number):
        return ir.Constant(like(I32), number if count is None else [number] * count)

    bits = builder.bitcast(value, like(I32))
    last = builder.and_(builder.lshr(bits, every(16)), every(1))
    rounded = builder.add(bits, builder.add(last, every(0x7FFF)))
    is_number = builder.fcmp_ordered("ord", value, value)
    kept = builder.select(is_number, rounded, every(0x7FC00000))
    return builder.trunc(builder.lshr(kept, every(16)), like(ir.IntType(16)))


@intrinsic
def store(typing_context, array, index, value):
    """Write LANES neighbours of a contiguous array: int32, float32, or float32 rounded to bfloat16."""

    def emit(context, builder, sig, args):
        lanes, bytes_each = args[2], 4
        if array.dtype == types.uint16:
            lanes, bytes_each = round_to_bfloat16(builder, lanes), 2
        pointer = _address(context, builder, sig.args[0], args[0], args[1], lanes.type)
        builder.store(lanes, pointer).align = bytes_each
        return context.get_dummy_value()

    return types.void(array, types.intp, value), emit


@intrinsic
def store_bytes(typing_context, address, ints):
    """Write the low byte of each int32 to an address."""

    def emit(context, builder, sig, args):
        place = builder.inttoptr(args[0], BYTES.as_pointer())
        builder.store(builder.trunc(args[1], BYTES), place).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, ints), emit


@intrinsic
def store_shorts(typing_context, array, index, ints):
    """Write the low 16 bits of each int32 to LANES neighbours of a contiguous array of 16-bit numbers."""

    def emit(context, builder, sig, args):
        place = _address(context, builder, sig.args[0], args[0], args[1], SHORTS)
        builder.store(builder.trunc(args[2], SHORTS), place).align = 2
        return context.get_dummy_value()

    return types.void(array, types.intp, ints), emit


@intrinsic
def store_words(typing_context, address, step, ints):
    """Write the low byte of each int32, four neighbours at a time, to addresses `step` bytes apart."""

    def emit(context, builder, sig, args):
        place, step, ints = args
        words = builder.bitcast(builder.trunc(ints, BYTES), ir.VectorType(I32, LANES // 4))
        for at in range(LANES // 4):
            word = builder.extract_element(words, ir.Constant(I32, at))
            builder.store(word, builder.inttoptr(place, I32.as_pointer())).align = 4
            place = builder.add(place, step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, ints), emit


@intrinsic
def splat(typing_context, value):
    """A float32 in every lane, or the low 32 bits of an integer."""
    is_float = isinstance(value, types.Float)
    scalar = types.float32 if is_float else types.int64

    def emit(context, builder, sig, args):
        number = args[0] if is_float else builder.trunc(args[0], I32)
        return splat_value(builder, number)

    return (FLOATS if is_float else INTS)(scalar), emit


@intrinsic
def load_splat(typing_context, array, index):
    """One int32 of a contiguous array in every lane; the index must not be negative, which saves a test."""

    def emit(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return splat_value(builder, builder.load(builder.gep(data, [args[1]])))

    return INTS(array, types.intp), emit


@intrinsic
def where(typing_context, mask, yes, no):
    """`yes` in lanes where the mask is set, `no` elsewhere."""

    def emit(context, builder, sig, args):
        return builder.select(*args)

    return yes(mask, yes, no), emit


@intrinsic
def to_floats(typing_context, ints):
    """The nearest float32 of each int32."""

    def emit(context, builder, sig, args):
        return builder.sitofp(args[0], NUMBERS)

    return FLOATS(ints), emit


@intrinsic
def to_ints(typing_context, floats):
    """The integer part of each float32."""

    def emit(context, builder, sig, args):
        return builder.fptosi(args[0], WORDS)

    return INTS(floats), emit


@intrinsic
def reinterpret(typing_context, lanes):
    """The same bits as the other kind: float32 as int32 or int32 as float32."""
    other = INTS if lanes == FLOATS else FLOATS

    def emit(context, builder, sig, args):
        return builder.bitcast(args[0], other.vector)

    return other(lanes), emit


@intrinsic
def multiply_add(typing_context, a, b, c):
    """a b + c, rounded once if the CPU can."""

    def emit(context, builder, sig, args):
        return fused(builder, *args)

    return FLOATS(a, b, c), emit


def fused(builder, a, b, c):
    """The same, for other intrinsics."""
    name = f"llvm.fmuladd.v{LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(NUMBERS, [NUMBERS] * 3), name)
    return builder.call(function, [a, b, c])


@intrinsic
def mask_bits(typing_context, mask):
    """The lanes of a mask as the low bits of an int64, the first lane lowest."""

    def emit(context, builder, sig, args):
        return builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), ir.IntType(64))

    return types.int64(mask), emit


@intrinsic
def lowest_bit(typing_context, bits):
    """The index of the lowest bit set in a positive int64."""

    def emit(context, builder, sig, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), emit


@intrinsic
def count_bits(typing_context, bits):
    """Bits set in an int64, or in each int32 of a vector."""
    kind = bits if isinstance(bits, Lanes) else types.int64

    def emit(context, builder, sig, args):
        value = args[0]
        name = f"llvm.ctpop.v{LANES}i32" if value.type == WORDS else "llvm.ctpop.i64"
        shape = ir.FunctionType(value.type, [value.type])
        return builder.call(cgutils.get_or_insert_function(builder.module, shape, name), [value])

    return kind(kind), emit


@intrinsic
def sum_lanes(typing_context, floats):
    """The sum of all lanes, in any order."""

    def emit(context, builder, sig, args):
        return sum_value(builder, args[0])

    return types.float32(floats), emit


def sum_value(builder, lanes):
    """The same, for other intrinsics."""
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(F32, [F32, NUMBERS]), name)
    return builder.call(function, [ir.Constant(F32, -0.0), lanes], fastmath=("reassoc",))


@intrinsic
def mask_of_bits(typing_context, bits):
    """The inverse of `mask_bits`."""

    def emit(context, builder, sig, args):
        return builder.bitcast(builder.trunc(args[0], ir.IntType(LANES)), FLAGS)

    return MASK(types.int64), emit


@intrinsic
def compress(typing_context, lanes, mask):
    """The lanes of a mask, moved to the front in order; the lanes after them are undefined."""

    def emit(context, builder, sig, args):
        vector = args[0].type
        if COMPRESSES:
            name = f"llvm.x86.avx512.mask.compress.v{LANES}{'f' if vector == NUMBERS else 'i'}32"
            shape = ir.FunctionType(vector, [vector, vector, FLAGS])
            function = cgutils.get_or_insert_function(builder.module, shape, name)
            return builder.call(function, [args[0], ir.Constant(vector, ir.Undefined), args[1]])
        front = cgutils.alloca_once(builder, vector)
        elements = builder.bitcast(front, vector.element.as_pointer())
        count = ir.Constant(I32, 0)
        for lane in range(LANES):  # dropped lanes are overwritten by the next kept one
            at = ir.Constant(I32, lane)
            builder.store(builder.extract_element(args[0], at), builder.gep(elements, [count]))
            count = builder.add(count, builder.zext(builder.extract_element(args[1], at), I32))
        return builder.load(front)

    return lanes(lanes, mask), emit


@intrinsic
def first_lane(typing_context, floats):
    """The number in the first lane."""

    def emit(context, builder, sig, args):
        return builder.extract_element(args[0], ir.Constant(I32, 0))

    return types.float32(floats), emit


@intrinsic
def first_lane_int(typing_context, ints):
    """The integer in the first lane."""

    def emit(context, builder, sig, args):
        return builder.extract_element(args[0], ir.Constant(I32, 0))

    return types.int32(ints), emit


@intrinsic
def sum_ints(typing_context, ints):
    """The sum of all lanes of integers."""

    def emit(context, builder, sig, args):
        name = f"llvm.vector.reduce.add.v{LANES}i32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, [WORDS]), name)
        return builder.call(function, args)

    return types.int32(ints), emit


@intrinsic
def max_lanes(typing_context, floats):
    """The maximum of all lanes."""

    def emit(context, builder, sig, args):
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(F32, [NUMBERS]), name)
        return builder.call(function, [args[0]], fastmath=("nnan",))

    return types.float32(floats), emit


@intrinsic
def lane_numbers(typing_context):
    """0, 1, 2 and so on, one per lane."""

    def emit(context, builder, sig, args):
        return ir.Constant(WORDS, list(range(LANES)))

    return INTS(), emit
