"""Vectors rounded to 8-bit integers, to be multiplied by the codes of weights.

Each group of LANES numbers has a float32 scale, 1/127 of the largest magnitude among them. GROUPS of them are
a block: int8 [LANES / 4, GROUPS, 4], so that a vector holds four numbers of each group, and sums over the
first axis belong to one scale each; then float32 [GROUPS] twice, the scales and the sums of the rounded
numbers, for weights with minimums; then int32 [GROUPS], the negated sums of the integers, for codes whose
values begin below zero.

Groups lie in the order of `group_at`, which blocks of codes reach by shuffles within 16 bytes.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.floats import ROUNDER
from adamas_kernels.cpu.lanes import (
    LANES,
    load,
    max_lanes,
    reinterpret,
    splat,
    store_words,
    sum_ints,
    sum_lanes,
    where,
)
from adamas_kernels.cpu.records import floats_at, ints_at, roundings_at
from adamas_kernels.cpu.tasks import STAGE

GROUPS = 16
NUMBERS = GROUPS * LANES
COLUMNS, COLUMN = LANES // 4, 4 * GROUPS  # of four bytes for each group
SCALES_AT = NUMBERS  # bytes
SUMS_AT = SCALES_AT + 4 * GROUPS
NEGATED_AT = SUMS_AT + 4 * GROUPS
SIZE = NEGATED_AT + 4 * GROUPS  # bytes of a block
BLOCKS_OF_TASK = 8
ZERO, LARGEST = np.float32(0), np.float32(127)
LEAST = np.float32(1e-35)  # smaller magnitudes count as zero: their reciprocals would be infinite


def rounded_bytes(numbers: int) -> int:
    """Bytes of a rounded vector, in whole blocks."""
    return -(-numbers // NUMBERS) * SIZE


def group_at(place: int) -> int:
    """Which group lies at a place. The first half of a block holds the first 8 groups: the even ones, then
    the odd ones.
    """
    return place // 8 * 8 + place % 4 * 2 + place % 8 // 4


@njit
def place_of(group):
    """The inverse of `group_at`."""
    return group // 8 * 8 + group % 2 * 4 + group % 8 // 2


@njit
def round_block(x, at, count, block, raised):
    """Round `count` numbers from x[at] on, whole LANES of them, to nearest, halves to even, and write them to
    an address, higher by `raised`; the rest of the block becomes such zeros.
    """
    scales, sums = floats_at(block + SCALES_AT), floats_at(block + SUMS_AT)
    negated = ints_at(block + NEGATED_AT)
    for group in range(GROUPS):
        numbers = load(x, at + group * LANES) if group * LANES < count else splat(ZERO)
        size = max_lanes(where(numbers < splat(ZERO), splat(ZERO) - numbers, numbers))
        size += ZERO * sum_lanes(numbers)  # propagates NaN
        scale = ZERO if size < LEAST else size / LARGEST
        factor = ZERO if size < LEAST else LARGEST / size
        shifted = reinterpret(numbers * splat(factor) + splat(ROUNDER))
        rounded = shifted - reinterpret(splat(ROUNDER))
        place, total = place_of(group), sum_ints(rounded)
        store_words(block + 4 * place, COLUMN, rounded + splat(raised))
        scales[place], sums[place], negated[place] = scale, scale * np.float32(total), -total


@cache
def build_round() -> int:
    """Compile the stage that rounds rows of numbers, see ROUNDING; BLOCKS_OF_TASK blocks per task."""
    stamp = source_stamp()

    def round_task(task, thread, address, unused, unused_too):
        _ = stamp
        rounding = roundings_at(address)[0]
        row, part = task // rounding.tasks, task % rounding.tasks
        x = floats_at(rounding.x + 4 * row * rounding.x_step)
        out, first = rounding.out + row * rounding.out_step, part * BLOCKS_OF_TASK
        for block in range(first, min(first + BLOCKS_OF_TASK, rounding.blocks)):
            at = block * NUMBERS
            round_block(x, at, rounding.numbers - at, out + block * SIZE, rounding.raised)

    return stage(round_task, STAGE)
