"""The part of an MLP before its last product: the first products, with or without gates, also for experts."""

from __future__ import annotations

from functools import cache
from typing import get_args

import numpy as np

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.floats import exp
from adamas_kernels.cpu.lanes import LANES, load, multiply_add, splat, store, where
from adamas_kernels.cpu.multiply import multiply_rows, share_of
from adamas_kernels.cpu.records import INNER, floats_at, inners_at, ints_at
from adamas_kernels.cpu.rows import whole_lanes
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.weights import ActivationKind

KINDS = get_args(ActivationKind)
SWISH, GELU, GELU_TANH, RELU = (KINDS.index(kind) for kind in ("swish", "gelu", "gelu_tanh", "relu"))
RECORD = INNER.itemsize
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
# gelu's approximation: x sigmoid(TANH_1 x + TANH_3 x^3), with 2 sqrt(2 / pi) and 0.044715 times that.
TANH_1, TANH_3 = np.float32(1.5957691216), np.float32(0.0713548162726)
# erf(x) = 1 - t p(t) exp(-x^2) with t = 1 / (1 + ERF x) for x >= 0, error below 1.5e-7 (Abramowitz and
# Stegun, 7.1.26); highest power first.
ROOT_HALF, ERF = np.float32(0.70710678), np.float32(0.3275911)
ERF_5, ERF_4, ERF_3 = np.float32(1.061405429), np.float32(-1.453152027), np.float32(1.421413741)
ERF_2, ERF_1 = np.float32(-0.284496736), np.float32(0.254829592)


@njit
def gelu(x):
    """x times the normal distribution function of x."""
    size = where(x < splat(ZERO), splat(ZERO) - x, x) * splat(ROOT_HALF)
    t = splat(ONE) / multiply_add(splat(ERF), size, splat(ONE))
    series = multiply_add(splat(ERF_5), t, splat(ERF_4))
    series = multiply_add(series, t, splat(ERF_3))
    series = multiply_add(series, t, splat(ERF_2))
    series = multiply_add(series, t, splat(ERF_1))
    tail = series * t * exp(splat(ZERO) - size * size) * splat(HALF)
    return x * where(x < splat(ZERO), tail, splat(ONE) - tail)


@njit
def activate(kind, alpha, x):
    """The activation of LANES numbers."""
    if kind == SWISH:
        return x / (splat(ONE) + exp(splat(ZERO) - splat(alpha) * x))
    if kind == GELU:
        return gelu(x)
    if kind == GELU_TANH:
        inner = x * multiply_add(splat(TANH_3), x * x, splat(TANH_1))
        return x / (splat(ONE) + exp(splat(ZERO) - inner))
    above = where(x > splat(ZERO), x, splat(ZERO))
    return above if kind == RELU else above * above


@njit
def at_most(x, limit):
    """LANES numbers, clipped to the limit from above."""
    return where(x < splat(limit), x, splat(limit))


@njit
def gate_rows(inner, opening, others):
    """Activate gates and multiply them by the others, in place."""
    kind, alpha, shift = inner.kind, np.float32(inner.alpha), np.float32(inner.shift)
    limit = np.float32(inner.limit)
    for at in range(0, len(opening), LANES):
        gate, other = load(opening, at), load(others, at)
        if limit > ZERO:
            gate = at_most(gate, limit)
            other = splat(ZERO) - at_most(splat(ZERO) - at_most(other, limit), limit)
        store(opening, at, activate(kind, alpha, gate) * (other + splat(shift)))


@njit
def activate_rows(inner, x):
    """Activate numbers in place."""
    for at in range(0, len(x), LANES):
        store(x, at, activate(inner.kind, np.float32(inner.alpha), load(x, at)))


@njit
def inner_rows(inner, expert, first, count, x, rounded):
    """Rows of an expert's result before its last product, for each vector: `count` rows and up to LANES - 1
    more.
    """
    row = expert * inner.step
    if inner.alternating:
        both = multiply_rows(inner.gate, row + 2 * first, 2 * count, x, rounded)
        width, apart = whole_lanes(count), whole_lanes(2 * count)
        opening = np.zeros(inner.vectors * width, np.float32)
        others = np.zeros(inner.vectors * width, np.float32)
        for vector in range(inner.vectors):
            for at in range(count):
                place = vector * apart + 2 * at
                opening[vector * width + at], others[vector * width + at] = both[place], both[place + 1]
        gate_rows(inner, opening, others)
        return opening
    others = multiply_rows(inner.up, row + inner.up_at + first, count, x, rounded)
    if not inner.gate:
        activate_rows(inner, others)
        return others
    opening = multiply_rows(inner.gate, row + first, count, x, rounded)
    gate_rows(inner, opening, others)
    return opening


@cache
def build_inner() -> int:
    """Compile the stage of the first products of MLPs with the same input. Its records: INNERs, the input,
    and the rounded input.
    """
    stamp = source_stamp()

    def inner_task(task, thread, address, x, rounded):
        _ = stamp
        while task >= inners_at(address)[0].tasks:
            task -= inners_at(address)[0].tasks
            address += RECORD
        inner = inners_at(address)[0]
        tasks = inner.tasks // inner.slots
        slot = task // tasks
        expert = ints_at(inner.chosen)[slot] if inner.chosen else 0
        first, count = share_of(task % tasks, inner.share, inner.rows)
        found = inner_rows(inner, expert, first, count, x, rounded)
        scale = floats_at(inner.scale)[0] if inner.scale else ONE
        for vector in range(inner.vectors):
            out = floats_at(inner.out + 4 * (slot + vector) * inner.out_step)
            at = vector * whole_lanes(count)
            for row in range(count):
                out[first + row] = found[at + row] * scale

    return stage(inner_task, STAGE)
