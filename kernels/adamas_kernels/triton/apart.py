"""Where the sequences of a batch lie whose buffers are apart, see `contract.ApartCache`."""

from __future__ import annotations

import triton
import triton.language as tl

from adamas_kernels.contract import APART_FIELDS, APART_UNIT

KEYS, VALUES, VALUE_SUM, CODES, SCALES, MEAN, EDGE, BALANCE, NOISE, TALLY, ROOM, TALLY_ROOM, SKIPPED = (
    tl.constexpr(index) for index in range(len(APART_FIELDS))
)
FIELDS = tl.constexpr(len(APART_FIELDS))
ROW_UNIT = tl.constexpr(APART_UNIT)


@triton.jit
def fact_of(apart_ptr, batch, FIELD: tl.constexpr):
    """A number of a sequence."""
    return tl.load(apart_ptr + batch * FIELDS + FIELD)


@triton.jit
def start_of(ptr, apart_ptr, batch, stride, FIELD: tl.constexpr, APART: tl.constexpr):
    """A pointer to a sequence's buffer, which lies APART or, in one tensor for the batch, after `stride`
    numbers for each sequence before it.
    """
    return ptr + (fact_of(apart_ptr, batch, FIELD) if APART else batch * stride)


@triton.jit
def start_of_rows(ptr, apart_ptr, batch, stride, FIELD: tl.constexpr, APART: tl.constexpr):
    """The same for keys, values and their sums, which are loaded several numbers at a time: the compiler must
    see that they are aligned.
    """
    return ptr + (fact_of(apart_ptr, batch, FIELD) * ROW_UNIT if APART else batch * stride)


@triton.jit
def codes_of_head(
    codes_ptr, scale_ptr, apart_ptr, batch, head, codes_b, codes_h, codes_w, scale_b, scale_h,
    P: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Pointers to the codes and scales of a KV head, and the step from one word of codes to the next."""
    if APART:  # each sequence has room for another number of tokens
        room = fact_of(apart_ptr, batch, ROOM)
        codes = codes_ptr + fact_of(apart_ptr, batch, CODES) + head * (P // 16) * room
        scale = scale_ptr + fact_of(apart_ptr, batch, SCALES) + head * room
        step = room.to(tl.int32)
    else:
        codes = codes_ptr + batch * codes_b + head * codes_h
        scale = scale_ptr + batch * scale_b + head * scale_h
        step = codes_w
    return codes, scale, step
