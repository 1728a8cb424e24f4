"""The product of a few rows and a panel of columns, with all sums in registers.

The summed dimension is in 32-bit words: a pair of neighbours in 16 bits, or one float32. One instruction
multiplies a word of a row by as many words of the panel as a register holds, and all sums stay in registers
for the whole length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload, register_jitable

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.features import FEATURES, MULTIPLIES_BFLOAT16, MULTIPLIES_SHORTS
from adamas_kernels.cpu.floats import Bfloat16, Float32, Kind, to_float
from adamas_kernels.cpu.lanes import F32, I32, LANES, NUMBERS, WORDS, fused, splat_value
from adamas_kernels.cpu.records import floats_at, ints_at
from adamas_kernels.cpu.vectors import dot_shorts, held_words

ROWS = 6
TILE = 64  # columns of a packed panel
# Vectors of LANES numbers side by side. AVX-512 has 32 registers for 6 x 4 sums, the panel's words and the
# row's word; AVX2's 16 half-size registers and NEON's 32 quarter-size registers hold 6 x 1.
WIDE = 4 if "avx512f" in FEATURES else 1
FACTORS = 2 * LANES  # stride between the factors of rows
UNROLLED = 4  # words of a turn: 2 % faster than turns of one
I64 = ir.IntType(64)


class Pairs(NamedTuple):
    """Words are pairs of bfloat16, multiplied by VDPBF16PS."""


class Shorts(NamedTuple):
    """Words are pairs of int16, see `shorts.py`. Sums are int32, scaled by their row and column."""


class Singles(NamedTuple):
    """Words are float32."""


Form = Pairs | Shorts | Singles


def form_of(kind: Kind, kept: Kind) -> Form:
    """How this CPU multiplies numbers of this kind by those that are kept in another one."""
    if isinstance(kind, Bfloat16) and isinstance(kept, Bfloat16) and MULTIPLIES_BFLOAT16:
        return Pairs()
    return Singles() if isinstance(kept, Float32) or not MULTIPLIES_SHORTS else Shorts()


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
    return 1 if isinstance(form, Singles) else 2


@overload(per_word)
def _per_word(form):
    return (lambda form: 1) if form.instance_class is Singles else (lambda form: 2)


def is_short(form):
    """Whether a form is `Shorts`."""
    return isinstance(form, Shorts)


@overload(is_short)
def _is_short(form):
    return (lambda form: True) if form.instance_class is Shorts else (lambda form: False)


@register_jitable
def key_words(form, dim):
    """The size of a packed tile of keys in words of 4 bytes."""
    return TILE * (dim // per_word(form) + 3 * is_short(form))


@register_jitable
def value_words(form, dim):
    """The size of a packed tile of values in words of 4 bytes."""
    return dim * (TILE // per_word(form) + is_short(form))


def zero_numbers(form, count):
    """This many zeros in the format of words."""
    raise NotImplementedError


@overload(zero_numbers)
def _zero_numbers(form, count):
    if form.instance_class is Singles:
        return lambda form, count: np.zeros(count, np.float32)
    return lambda form, count: np.zeros(count, np.uint16)


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
    if form.instance_class is Singles:
        return lambda form, address: floats_at(address)
    return lambda form, address: ints_at(address)


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
    if form.instance_class is Singles:
        return lambda form, scores: scores
    return lambda form, scores: np.empty(len(scores), np.uint16)


def _meet_pairs(builder, total, row, panel):
    """total + row panel, of words that are pairs."""
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    shape = ir.FunctionType(NUMBERS, [NUMBERS, BFLOATS, BFLOATS])
    function = cgutils.get_or_insert_function(builder.module, shape, name)
    row = builder.bitcast(splat_value(builder, row), BFLOATS)
    return builder.call(function, [total, row, builder.bitcast(panel, BFLOATS)])


def _meet_singles(builder, total, row, panel):
    """total + row panel, of words that are float32."""
    row = splat_value(builder, builder.bitcast(row, F32))
    return fused(builder, row, builder.bitcast(panel, NUMBERS), total)


def _meet_shorts(builder, total, row, panel):
    """total + row panel, of words that are pairs of int16."""
    return dot_shorts(builder, total, splat_value(builder, row), panel)


def _tile(count):
    """multiply(form, row, row_n, panel, panel_n, out, out_n, words, add, factors, scales): out = rows panel,
    or (add) out + rows panel.

    Addresses: row, of ROWS rows of `words` words, row_n bytes apart; panel, of `words` rows of LANES * count
    words, panel_n bytes apart; out, of float32 rows, out_n bytes apart; with `Shorts`, of the rows' factors,
    FACTORS float32 apart, and the columns'.
    """

    def emit(form, context, builder, row, row_n, panel, panel_n, out, out_n, words, add, factors, scales):
        is_short = form is Shorts
        meet = {Pairs: _meet_pairs, Shorts: _meet_shorts, Singles: _meet_singles}[form]
        zero = ir.Constant(WORDS, [0] * LANES) if is_short else ir.Constant(NUMBERS, [0.0] * LANES)

        def at(address, offset, kind):
            return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

        def loaded(address, offset, kind, align=4):
            found = builder.load(at(address, offset, kind))
            found.align = align
            return found

        def place(r, v):
            return builder.add(builder.mul(out_n, I64(r)), I64(4 * LANES * v))

        sums = [[cgutils.alloca_once(builder, zero.type) for _ in range(count)] for _ in range(ROWS)]
        each = [(r, v) for r in range(ROWS) for v in range(count)]

        def fill(value):
            for r, v in each:
                builder.store(value(r, v), sums[r][v])

        def if_added(yes, no):
            with builder.if_else(builder.icmp_signed("!=", add, add.type(0))) as (adds, begins):
                with adds:
                    yes()
                with begins:
                    no()

        def old(r, v):
            return loaded(out, place(r, v), NUMBERS)

        if is_short:
            fill(lambda r, v: zero)
        else:
            if_added(lambda: fill(old), lambda: fill(lambda r, v: zero))

        def add_word(index):
            columns = [
                loaded(panel, builder.add(builder.mul(index, panel_n), I64(4 * LANES * v)), WORDS)
                for v in range(count)
            ]
            for r in range(ROWS):
                offset = builder.add(builder.mul(row_n, I64(r)), builder.mul(index, I64(4)))
                word = loaded(row, offset, I32, 2)
                for v in range(count):
                    total = builder.load(sums[r][v])
                    builder.store(meet(builder, total, word, columns[v]), sums[r][v])
            if is_short:
                # LLVM would add up the products of several words first, for which registers do not suffice.
                held = held_words(builder, [builder.load(sums[r][v]) for r, v in each])
                for (r, v), total in zip(each, held, strict=True):
                    builder.store(total, sums[r][v])

        whole = builder.and_(words, I64(-UNROLLED))
        with cgutils.for_range_slice(builder, I64(0), whole, I64(UNROLLED), inc=True) as (index, _):
            for i in range(UNROLLED):
                add_word(builder.add(index, I64(i)))
        with cgutils.for_range_slice(builder, whole, words, I64(1), inc=True) as (index, _):
            add_word(index)

        def put(value):
            for r, v in each:
                builder.store(value(r, v), at(out, place(r, v), NUMBERS)).align = 4

        def scaled(r, v):
            factor = splat_value(builder, loaded(factors, I64(4 * FACTORS * r), F32))
            unit = builder.fmul(loaded(scales, I64(4 * LANES * v), NUMBERS), factor)
            return builder.sitofp(builder.load(sums[r][v]), NUMBERS), unit

        if is_short:
            if_added(
                lambda: put(lambda r, v: fused(builder, *scaled(r, v), old(r, v))),
                lambda: put(lambda r, v: builder.fmul(*scaled(r, v))),
            )
        else:
            put(lambda r, v: builder.load(sums[r][v]))

    @intrinsic
    def multiply(typing_context, form, row, row_n, panel, panel_n, out, out_n, words, add, factors, scales):
        def emit_for(context, builder, sig, args):
            emit(form.instance_class, context, builder, *args[1:])
            return context.get_dummy_value()

        return types.void(form, *[types.int64] * 10), emit_for

    return multiply


_multiply_wide = _tile(WIDE)
_multiply_narrow = _tile(1)


@njit
def multiply_panel(form, row, row_n, panel, panel_n, out, out_n, words, columns, add, factors):
    """ROWS rows times a packed panel of `columns` words, a multiple of LANES; otherwise like `_tile`'s
    multiply. factors: the address of those of the rows, with `Shorts`.
    """
    step, scales = 4 * LANES * WIDE, panel + words * panel_n
    if columns % (LANES * WIDE) == 0:
        for at in range(0, 4 * columns, step):
            _multiply_wide(
                form, row, row_n, panel + at, panel_n, out + at, out_n, words, add, factors, scales + at
            )
    else:
        for at in range(0, 4 * columns, 4 * LANES):
            _multiply_narrow(
                form, row, row_n, panel + at, panel_n, out + at, out_n, words, add, factors, scales + at
            )
