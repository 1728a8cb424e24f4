"""The product of a few rows with a panel of columns, in registers: bfloat16 pairs, float32 sums.

Two neighbours along the dimension that is summed over lie in one 32-bit word. A word of a row meets sixteen
words of the panel in one instruction (VDPBF16PS), and ROWS * 4 sums stay in registers for the whole length.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from adamas_kernels.cpu.lanes import I32, LANES, NUMBERS, WORDS, splat_value

ROWS = 6  # with 4 vectors 24 sums; 32 registers hold them, the panel's words and one row's word
I64 = ir.IntType(64)


class _Bfloat(ir.types._BaseFloatType):
    """LLVM's bfloat."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self):
        return "bfloat"


_Bfloat._create_instance()
PAIRS = ir.VectorType(_Bfloat(), 2 * LANES)


def _multiply_pairs(builder, total, row, panel):
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    shape = ir.FunctionType(NUMBERS, [NUMBERS, PAIRS, PAIRS])
    return builder.call(cgutils.get_or_insert_function(builder.module, shape, name), [total, row, panel])


def _tile(count):
    """multiply(row, row_n, panel, panel_n, out, out_n, pairs, add): out = rows panel, or (add) out + rows
    panel.

    row: address of ROWS rows of `pairs` words, row_n bytes apart; panel: of `pairs` rows of 16 * count words,
    panel_n bytes apart; out: of float32 rows, out_n bytes apart.
    """

    def emit(context, builder, sig, args):
        row, row_n, panel, panel_n, out, out_n, pairs, add = args

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
        with cgutils.for_range(builder, pairs) as loop:
            words = []
            for v in range(count):
                offset = builder.add(builder.mul(loop.index, panel_n), I64(4 * LANES * v))
                word = builder.load(at(panel, offset, WORDS))
                word.align = 4
                words.append(builder.bitcast(word, PAIRS))
            for r in range(ROWS):
                offset = builder.add(builder.mul(row_n, I64(r)), builder.mul(loop.index, I64(4)))
                one = builder.load(at(row, offset, I32))
                one.align = 2
                pair = builder.bitcast(splat_value(builder, one), PAIRS)
                for v in range(count):
                    total = builder.load(sums[r][v])
                    builder.store(_multiply_pairs(builder, total, pair, words[v]), sums[r][v])
        for r in range(ROWS):
            for v in range(count):
                builder.store(builder.load(sums[r][v]), place(r, v)).align = 4
        return context.get_dummy_value()

    @intrinsic
    def multiply(typing_context, row, row_n, panel, panel_n, out, out_n, pairs, add):
        return types.void(*[types.int64] * 8), emit

    return multiply


multiply_wide = _tile(4)  # panels of 64 columns
multiply_narrow = _tile(1)  # of 16
