"""Products of packed weights with one vector: all of a decode step that is not attention."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.floats import Float16, exp
from adamas_kernels.cpu.lanes import load, multiply_add, splat, store, sum_lanes, to_floats
from adamas_kernels.cpu.records import bytes_at, floats_at, numbers_at, products_at, signed_bytes_at
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.weights import GROUP, STRIP

ZERO, ONE = np.float32(0), np.float32(1)
LOW = 15  # the lower of a byte's two codes
WHOLE, HALF = GROUP * STRIP, GROUP * STRIP // 2  # bytes of a group's codes


@njit
def _strip_of_8(codes, scales, groups, x):
    """Sixteen rows of int8 codes times x; four chains of sums, so that none waits for another."""
    total = splat(ZERO)
    for group in range(groups):
        at, first = group * WHOLE, group * GROUP
        a = b = c = d = splat(ZERO)
        for i in range(0, GROUP, 4):
            a = multiply_add(load(codes, at + i * STRIP), splat(x[first + i]), a)
            b = multiply_add(load(codes, at + (i + 1) * STRIP), splat(x[first + i + 1]), b)
            c = multiply_add(load(codes, at + (i + 2) * STRIP), splat(x[first + i + 2]), c)
            d = multiply_add(load(codes, at + (i + 3) * STRIP), splat(x[first + i + 3]), d)
        total = multiply_add((a + b) + (c + d), load(scales, group * STRIP), total)
    return total


@njit
def _strip_of_4(codes, scales, offsets, groups, x, sums):
    """Sixteen rows of pairs of codes times x, whose groups have these sums."""
    total = splat(ZERO)
    for group in range(groups):
        at, lower, upper = group * HALF, group * GROUP, group * GROUP + GROUP // 2
        a = b = c = d = splat(ZERO)
        for i in range(0, GROUP // 2, 2):
            even, odd = load(codes, at + i * STRIP), load(codes, at + (i + 1) * STRIP)
            a = multiply_add(to_floats(even & splat(LOW)), splat(x[lower + i]), a)
            b = multiply_add(to_floats(even >> splat(4)), splat(x[upper + i]), b)
            c = multiply_add(to_floats(odd & splat(LOW)), splat(x[lower + i + 1]), c)
            d = multiply_add(to_floats(odd >> splat(4)), splat(x[upper + i + 1]), d)
        total = multiply_add((a + b) + (c + d), load(scales, group * STRIP), total)
        total = multiply_add(splat(sums[group]), load(offsets, group * STRIP), total)
    return total


@njit
def group_sums(product, x):
    """The sums of x's groups, which only weights with offsets use."""
    if not product.offsets:
        return np.empty(0, np.float32)
    sums = np.empty(product.groups, np.float32)
    for group in range(product.groups):
        first = group * GROUP
        sums[group] = sum_lanes(load(x, first) + load(x, first + STRIP))
    return sums


@njit
def multiply_strip(product, strip, x, sums):
    """Sixteen rows of the weight times x."""
    at = strip * product.groups
    scales = numbers_at(product.scales + 2 * at * STRIP, Float16())
    if product.offsets:
        codes = bytes_at(product.codes + at * HALF)
        offsets = numbers_at(product.offsets + 2 * at * STRIP, Float16())
        total = _strip_of_4(codes, scales, offsets, product.groups, x, sums)
    else:
        total = _strip_of_8(signed_bytes_at(product.codes + at * WHOLE), scales, product.groups, x)
    return total * splat(np.float32(product.unit))


@njit
def multiply(product, task, x):
    """One task of one product: write, or add, `share` strips."""
    sums, out = group_sums(product, x), floats_at(product.out)
    first = task * product.share
    for strip in range(first, min(first + product.share, product.strips)):
        total = multiply_strip(product, strip, x, sums)
        if product.bias:
            total = total + load(floats_at(product.bias), strip * STRIP)
        if product.add:
            total = total + load(out, strip * STRIP)
        store(out, strip * STRIP, total)


@njit
def multiply_gated(gate, up, task, x):
    """One task of a gated layer: silu(gate x) times up x, to the gate's out."""
    gate_sums, up_sums, out = group_sums(gate, x), group_sums(up, x), floats_at(gate.out)
    first = task * gate.share
    for strip in range(first, min(first + gate.share, gate.strips)):
        opening, total = multiply_strip(gate, strip, x, gate_sums), multiply_strip(up, strip, x, up_sums)
        if gate.bias:
            opening = opening + load(floats_at(gate.bias), strip * STRIP)
        if up.bias:
            total = total + load(floats_at(up.bias), strip * STRIP)
        silu = opening / (splat(ONE) + exp(splat(ZERO) - opening))
        store(out, strip * STRIP, silu * total)


@cache
def build_multiply() -> int:
    """Compile the stage that multiplies weights of the same input; its records: products, the input."""
    stamp = source_stamp()

    def multiply_task(task, thread, products_address, x, unused):
        _ = stamp
        products = products_at(products_address)
        at = 0
        while task >= products[at].tasks:
            task -= products[at].tasks
            at += 1
        multiply(products[at], task, floats_at(x))

    return stage(multiply_task, STAGE)


@cache
def build_gated() -> int:
    """Compile the stage of a gated layer; its records: the products of gate and up, the input."""
    stamp = source_stamp()

    def gated_task(task, thread, products_address, x, unused):
        _ = stamp
        products = products_at(products_address)
        multiply_gated(products[0], products[1], task, floats_at(x))

    return stage(gated_task, STAGE)
