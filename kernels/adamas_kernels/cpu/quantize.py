"""Quantizes rows of numbers to blocks of Q8_0, with ggml's scales."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.floats import Float16, Kind, put_float
from adamas_kernels.cpu.formats import FORMATS
from adamas_kernels.cpu.lanes import (
    LANES,
    load,
    max_lanes,
    splat,
    store_bytes,
    to_floats,
    to_ints,
    where,
)
from adamas_kernels.cpu.records import numbers_at, rows_at
from adamas_kernels.cpu.tasks import STAGE

QUANTIZED = "Q8_0"  # type for weights that compiled functions cannot multiply in place
ZERO, HALF, ONE, LARGEST = np.float32(0), np.float32(0.5), np.float32(1), np.float32(127)
NUMBERS_OF_BLOCK, SIZE = FORMATS[QUANTIZED].numbers, FORMATS[QUANTIZED].size


@njit
def _absolute(x):
    return where(x < splat(ZERO), splat(ZERO) - x, x)


@njit
def _rounded(x):
    """The nearest integers, halves away from zero."""
    whole = to_ints(x)
    rest = x - to_floats(whole)
    up = where(rest >= splat(HALF), splat(1), splat(0))
    return where(rest <= splat(-HALF), whole - splat(1), whole + up)


@njit
def quantize_block(numbers, at, block):
    """Quantize the numbers from `at` on to the block at an address."""
    low, high = load(numbers, at), load(numbers, at + LANES)
    first, second = _absolute(low), _absolute(high)
    scale = max_lanes(where(first > second, first, second)) / LARGEST
    put_float(numbers_at(block, Float16()), 0, scale)
    factor = splat(ONE / scale if scale else ZERO)
    store_bytes(block + 2, _rounded(low * factor))
    store_bytes(block + 2 + LANES, _rounded(high * factor))


@lru_cache(maxsize=None, typed=True)
def build_quantize(kind: Kind) -> int:
    """Compile the stage that quantizes rows of numbers of this kind, `share` rows per task."""
    stamp = source_stamp()

    def quantize_task(task, thread, rows_address, unused, unused_too):
        _ = stamp
        rows = rows_at(rows_address)[0]
        numbers = numbers_at(rows.numbers, kind)
        first = task * rows.share
        for row in range(first, min(first + rows.share, rows.rows)):
            for at in range(rows.blocks):
                quantize_block(
                    numbers, row * rows.stride + at * NUMBERS_OF_BLOCK,
                    rows.data + row * rows.row_bytes + at * SIZE,
                )  # fmt: skip

    return stage(quantize_task, STAGE)
