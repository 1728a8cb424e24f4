"""Packs weights, and unpacks blocks of them for prefill; the format is that of `adamas_kernels.weights`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

from adamas_kernels.cpu.atomics import fetch_and_add
from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.floats import Float16, Kind, put_float, to_float
from adamas_kernels.cpu.lanes import load, multiply_add, splat, store, to_floats
from adamas_kernels.cpu.records import bytes_at, numbers_at, packings_at, signed_bytes_at
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.weights import GROUP, STRIP

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
# A value rounded to bfloat16 is off by 2^-8 of itself at most, and so is each end of the grid it is compared
# with.
TOLERANCE = np.float32(1.05 * 2**-7)
LEVELS = 15  # between the least and the largest of a 4-bit group
# The code of a group's largest value in files of 4, 5 and 6 bits (GGUF's Q4_0, Q5_0, Q6_K); other groups use
# all of int8, as Q8_0 does.
EDGES = (8, 16, 32)
LARGEST = 127
UNPACKED_STRIPS = 4  # to a task: rows that lie side by side where they are written


@njit
def _is_grid(values, low, step, tolerance):
    """Whether all values lie on low + i step."""
    inverse = ONE / step
    worst = ZERO
    for i in range(GROUP):
        away = values[i] - low
        worst = max(worst, abs(away - np.floor(away * inverse + HALF) * step))
    return worst <= tolerance


@njit
def _refined(values, low, step):
    """The grid of least squares for the codes of a grid: the rounding of its ends no longer counts."""
    codes = away = both = squares = 0.0
    for i in range(GROUP):
        code = np.floor((values[i] - low) / step + HALF)
        codes, squares = codes + code, squares + code * code
        away, both = away + values[i], both + code * values[i]
    finer = (GROUP * both - codes * away) / (GROUP * squares - codes * codes)
    return np.float32((away - finer * codes) / GROUP), np.float32(finer)


@njit
def _refined_step(values, step):
    """The same for a grid through zero."""
    both = squares = 0.0
    for i in range(GROUP):
        code = np.floor(values[i] / step + HALF)
        both, squares = both + code * values[i], squares + code * code
    return np.float32(both / squares)


@njit
def _fit_offset(values):
    """Least value, step of a grid of at most LEVELS steps that holds all values, and whether there is one."""
    low = high = values[0]
    for i in range(1, GROUP):
        low, high = min(low, values[i]), max(high, values[i])
    tolerance = TOLERANCE * max(abs(low), abs(high))
    if high - low <= tolerance:
        return low, ZERO, True
    for steps in range(LEVELS, 0, -1):
        step = (high - low) / np.float32(steps)
        if _is_grid(values, low, step, tolerance):
            return *_refined(values, low, step), True
    return low, (high - low) / np.float32(LEVELS), False


@njit
def _fit_centre(values):
    """Step of a grid through zero that holds all values, or the finest that reaches them, and whether it
    holds them.
    """
    largest = ZERO
    for i in range(GROUP):
        largest = max(largest, abs(values[i]))
    for edge in EDGES:
        step = largest / np.float32(edge)
        if largest > ZERO and _is_grid(values, ZERO, step, TOLERANCE * largest):
            return _refined_step(values, step), True
    return largest / np.float32(LARGEST), largest == ZERO


@njit
def _code(value, step, least, largest):
    """The nearest code of a value."""
    if step == ZERO:
        return np.int64(0)
    return np.int64(max(np.float32(least), min(np.float32(largest), np.floor(value / step + HALF))))


@njit
def pack_strip(kind, packing, strip):
    """Pack the rows of one strip; counts the groups that lie on no grid."""
    source, unit = numbers_at(packing.numbers, kind), np.float32(packing.unit)
    values = np.empty(GROUP, np.float32)
    half = GROUP // 2
    misfits = 0
    for group in range(packing.groups):
        at = strip * packing.groups + group
        scales = numbers_at(packing.scales + 2 * at * STRIP, Float16())
        for lane in range(STRIP):
            row = strip * STRIP + lane
            for i in range(GROUP):
                # What fills up a group is multiplied with zero, and must not spoil its grid.
                column = group * GROUP + i
                column = column if column < packing.columns else group * GROUP
                inside = row < packing.rows
                values[i] = to_float(source[row * packing.stride + column]) / unit if inside else ZERO
            if packing.offsets:
                offsets = numbers_at(packing.offsets + 2 * at * STRIP, Float16())
                low, step, fits = _fit_offset(values)
                put_float(scales, lane, step)
                put_float(offsets, lane, low)
                low, step = to_float(offsets[lane]), to_float(scales[lane])
                codes = bytes_at(packing.codes + at * half * STRIP)
                for i in range(half):
                    lower, upper = (
                        _code(values[i] - low, step, 0, LEVELS), _code(values[i + half] - low, step, 0,
                        LEVELS)
                    )  # fmt: skip
                    codes[i * STRIP + lane] = np.uint8(lower | upper << 4)
            else:
                step, fits = _fit_centre(values)
                put_float(scales, lane, step)
                step = to_float(scales[lane])
                signed = signed_bytes_at(packing.codes + at * GROUP * STRIP)
                for i in range(GROUP):
                    signed[i * STRIP + lane] = np.int8(_code(values[i], step, -LARGEST, LARGEST))
            misfits += 0 if fits else 1
    fetch_and_add(packing.misfits, misfits)


@njit
def unpack_strip(kind, packing, strip):
    """Write the rows of one strip as columns of numbers, [columns, stride] from the strip's first row on."""
    target, at = numbers_at(packing.numbers, kind), strip * STRIP
    unit = splat(np.float32(packing.unit))
    half = GROUP // 2
    for group in range(packing.groups):
        place = strip * packing.groups + group
        scale = load(numbers_at(packing.scales + 2 * place * STRIP, Float16()), 0) * unit
        first = at + group * GROUP * packing.stride
        if packing.offsets:
            offset = load(numbers_at(packing.offsets + 2 * place * STRIP, Float16()), 0) * unit
            codes = bytes_at(packing.codes + place * half * STRIP)
            for i in range(half):
                both = load(codes, i * STRIP)
                lower, upper = to_floats(both & splat(LEVELS)), to_floats(both >> splat(4))
                store(target, first + i * packing.stride, multiply_add(lower, scale, offset))
                store(target, first + (i + half) * packing.stride, multiply_add(upper, scale, offset))
        else:
            signed = signed_bytes_at(packing.codes + place * GROUP * STRIP)
            for i in range(GROUP):
                store(target, first + i * packing.stride, load(signed, i * STRIP) * scale)


@lru_cache(maxsize=None, typed=True)  # the marks are empty tuples: only their types differ
def build_pack(kind: Kind) -> int:
    """Compile the stage that packs one strip to a task."""
    stamp = source_stamp()

    def pack_task(strip, thread, packing_at, unused, unused_too):
        _ = stamp
        pack_strip(kind, packings_at(packing_at)[0], strip)

    return stage(pack_task, STAGE)


@lru_cache(maxsize=None, typed=True)
def build_unpack(kind: Kind) -> int:
    """Compile the stage that unpacks UNPACKED_STRIPS strips to a task."""
    stamp = source_stamp()

    def unpack_task(task, thread, packing_at, unused, unused_too):
        _ = stamp
        packing = packings_at(packing_at)[0]
        first = task * UNPACKED_STRIPS
        for strip in range(first, min(first + UNPACKED_STRIPS, packing.strips)):
            unpack_strip(kind, packing, strip)

    return stage(unpack_task, STAGE)
