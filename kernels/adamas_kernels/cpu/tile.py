"""The product of a few rows and a panel of columns, with float32 sums in registers.

The summed dimension is in 32-bit words: a pair of bfloat16 neighbours, or one float32. One instruction
multiplies a word of a row by as many words of the panel as a register holds, and all sums stay in registers
for the whole length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.features import FEATURES, MULTIPLIES_BFLOAT16
from adamas_kernels.cpu.floats import Bfloat16, Kind, to_float
from adamas_kernels.cpu.lanes import F32, I32, LANES, NUMBERS, WORDS, splat_value
from adamas_kernels.cpu.records import floats_at, ints_at

ROWS = 6
# Vectors of LANES numbers side by side. AVX-512 has 32 registers for 6 x 4 sums, the panel's words and the
# row's word; AVX2's 16 half-size registers and NEON's 32 quarter-size registers hold 6 x 1.
WIDE = 4 if "avx512f" in FEATURES else 1
UNROLLED = 4  # words of a turn: 2 % faster than turns of one
I64 = ir.IntType(64)


class Pairs(NamedTuple):
    """Words are pairs of bfloat16, multiplied by VDPBF16PS."""


class Singles(NamedTuple):
    """Words are float32."""


Form = Pairs | Singles


def form_of(kind: Kind) -> Form:
    """How this CPU multiplies numbers of this kind."""
    return Pairs() if isinstance(kind, Bfloat16) and MULTIPLIES_BFLOAT16 else Singles()


class _Bfloat(ir.types._BaseFloatType):
    """LLVM's bfloat."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self):
        return "bfloat"


_Bfloat._create_instance()
BFLOATS = ir.VectorType(_Bfloat(), 2 * LANES)


def per_word(form):
    """Numbers in a word."""
    raise NotImplementedError


@overload(per_word)
def _per_word(form):
    return (lambda form: 2) if form.instance_class is Pairs else (lambda form: 1)


def zero_numbers(form, count):
    """This many zeros in the format of words."""
    raise NotImplementedError


@overload(zero_numbers)
def _zero_numbers(form, count):
    if form.instance_class is Pairs:
        return lambda form, count: np.zeros(count, np.uint16)
    return lambda form, count: np.zeros(count, np.float32)


def put_number(array, index, stored):
    """Write a stored number of another array."""
    raise NotImplementedError


@overload(put_number)
def _put_number(array, index, stored):
    if array.dtype == stored:

        def put(array, index, stored):
            array[index] = stored
    else:

        def put(array, index, stored):
            array[index] = to_float(stored)

    return put


def words_at(form, address):
    """The words from an address on."""
    raise NotImplementedError


@overload(words_at)
def _words_at(form, address):
    if form.instance_class is Pairs:
        return lambda form, address: ints_at(address)
    return lambda form, address: floats_at(address)


def word_of(form, first, last):
    """The word of two neighbours, or of the first number alone."""
    raise NotImplementedError


@overload(word_of)
def _word_of(form, first, last):
    if form.instance_class is Pairs:
        return lambda form, first, last: np.int32(first) | np.int32(last) << np.int32(16)
    return lambda form, first, last: to_float(first)


def weights_for(form, scores):
    """The array for the weights of scores, in the format of words: the scores' own memory if it fits."""
    raise NotImplementedError


@overload(weights_for)
def _weights_for(form, scores):
    if form.instance_class is Pairs:
        return lambda form, scores: np.empty(len(scores), np.uint16)
    return lambda form, scores: scores


def _meet_pairs(builder, total, row, panel):
    """total + row panel, of words that are pairs."""
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    shape = ir.FunctionType(NUMBERS, [NUMBERS, BFLOATS, BFLOATS])
    function = cgutils.get_or_insert_function(builder.module, shape, name)
    row = builder.bitcast(splat_value(builder, row), BFLOATS)
    return builder.call(function, [total, row, builder.bitcast(panel, BFLOATS)])


def _meet_singles(builder, total, row, panel):
    """total + row panel, of words that are float32."""
    name = f"llvm.fmuladd.v{LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(NUMBERS, [NUMBERS] * 3), name)
    row = splat_value(builder, builder.bitcast(row, F32))
    return builder.call(function, [row, builder.bitcast(panel, NUMBERS), total])


def _tile(count):
    """multiply(form, row, row_n, panel, panel_n, out, out_n, words, add): out = rows panel, or (add) out +
    rows panel.

    Addresses: row, of ROWS rows of `words` words, row_n bytes apart; panel, of `words` rows of LANES * count
    words, panel_n bytes apart; out, of float32 rows, out_n bytes apart.
    """

    def emit(meet, context, builder, row, row_n, panel, panel_n, out, out_n, words, add):
        def at(address, offset, kind):
            return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

        def place(r, v):
            return at(out, builder.add(builder.mul(out_n, I64(r)), I64(4 * LANES * v)), NUMBERS)

        zero = ir.Constant(NUMBERS, [0.0] * LANES)
        keeps = builder.icmp_signed("!=", add, add.type(0))
        sums = [[cgutils.alloca_once(builder, NUMBERS) for _ in range(count)] for _ in range(ROWS)]
        with builder.if_else(keeps) as (yes, no):
            with yes:
                for r in range(ROWS):
                    for v in range(count):
                        old = builder.load(place(r, v))
                        old.align = 4
                        builder.store(old, sums[r][v])
            with no:
                for r in range(ROWS):
                    for v in range(count):
                        builder.store(zero, sums[r][v])

        def add_word(index):
            columns = []
            for v in range(count):
                offset = builder.add(builder.mul(index, panel_n), I64(4 * LANES * v))
                column = builder.load(at(panel, offset, WORDS))
                column.align = 4
                columns.append(column)
            for r in range(ROWS):
                offset = builder.add(builder.mul(row_n, I64(r)), builder.mul(index, I64(4)))
                word = builder.load(at(row, offset, I32))
                word.align = 2
                for v in range(count):
                    total = builder.load(sums[r][v])
                    builder.store(meet(builder, total, word, columns[v]), sums[r][v])

        whole = builder.and_(words, I64(-UNROLLED))
        with cgutils.for_range_slice(builder, I64(0), whole, I64(UNROLLED), inc=True) as (index, _):
            for i in range(UNROLLED):
                add_word(builder.add(index, I64(i)))
        with cgutils.for_range_slice(builder, whole, words, I64(1), inc=True) as (index, _):
            add_word(index)
        for r in range(ROWS):
            for v in range(count):
                builder.store(builder.load(sums[r][v]), place(r, v)).align = 4

    @intrinsic
    def multiply(typing_context, form, row, row_n, panel, panel_n, out, out_n, words, add):
        meet = _meet_pairs if form.instance_class is Pairs else _meet_singles

        def emit_for(context, builder, sig, args):
            emit(meet, context, builder, *args[1:])
            return context.get_dummy_value()

        return types.void(form, *[types.int64] * 8), emit_for

    return multiply


_multiply_wide = _tile(WIDE)
_multiply_narrow = _tile(1)


@njit
def multiply_panel(form, row, row_n, panel, panel_n, out, out_n, words, columns, add):
    """ROWS rows times a panel of `columns` words, a multiple of LANES; otherwise like `_tile`'s multiply."""
    step = 4 * LANES * WIDE
    if columns % (LANES * WIDE) == 0:
        for at in range(0, 4 * columns, step):
            _multiply_wide(form, row, row_n, panel + at, panel_n, out + at, out_n, words, add)
    else:
        for at in range(0, 4 * columns, 4 * LANES):
            _multiply_narrow(form, row, row_n, panel + at, panel_n, out + at, out_n, words, add)
