"""Vectors rounded to 8-bit integers, to be multiplied by the codes of weights.

Each LANES numbers have a float32 scale, 1/127 of the largest magnitude among them, and the sum of the rounded
numbers, for weights with an addend. Numbers lie in blocks of NUMBERS: int8 [NUMBERS], then the scales and the
sums, float32 [NUMBERS / LANES] each.
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
    store_bytes,
    sum_ints,
    sum_lanes,
    where,
)
from adamas_kernels.cpu.records import floats_at, roundings_at
from adamas_kernels.cpu.tasks import STAGE

NUMBERS = 256
SCALES_AT = NUMBERS  # bytes
SUMS_AT = SCALES_AT + 4 * NUMBERS // LANES
SIZE = SUMS_AT + 4 * NUMBERS // LANES  # bytes of a block
BLOCKS_OF_TASK = 8
ZERO, LARGEST = np.float32(0), np.float32(127)
LEAST = np.float32(1e-35)  # smaller magnitudes count as zero: their reciprocals would be infinite


def rounded_bytes(numbers: int) -> int:
    """Bytes of a rounded vector, in whole blocks."""
    return -(-numbers // NUMBERS) * SIZE


@njit
def round_block(x, at, count, block):
    """Round `count` numbers from x[at] on, whole LANES of them, to nearest, halves to even, and write them to
    an address; the rest of the block becomes zeros.
    """
    scales, sums = floats_at(block + SCALES_AT), floats_at(block + SUMS_AT)
    for group in range(NUMBERS // LANES):
        numbers = load(x, at + group * LANES) if group * LANES < count else splat(ZERO)
        size = max_lanes(where(numbers < splat(ZERO), splat(ZERO) - numbers, numbers))
        size += ZERO * sum_lanes(numbers)  # propagates NaN
        scale = ZERO if size < LEAST else size / LARGEST
        factor = ZERO if size < LEAST else LARGEST / size
        shifted = reinterpret(numbers * splat(factor) + splat(ROUNDER))
        rounded = shifted - reinterpret(splat(ROUNDER))
        store_bytes(block + group * LANES, rounded)
        scales[group], sums[group] = scale, scale * np.float32(sum_ints(rounded))


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
            round_block(x, at, rounding.numbers - at, out + block * SIZE)

    return stage(round_task, STAGE)
