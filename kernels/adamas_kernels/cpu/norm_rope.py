"""The operations between a layer's matrix products: norms, and rotation of queries and keys by position."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.lanes import LANES, load, multiply_add, splat, store, sum_lanes
from adamas_kernels.cpu.records import floats_at, norms_at, ropes_at
from adamas_kernels.cpu.tasks import STAGE

ZERO, ONE = np.float32(0), np.float32(1)


@njit
def mean_of(x, at, size):
    """The mean of `size` numbers from x[at]."""
    whole = size // LANES * LANES
    sums = splat(ZERO)
    for i in range(0, whole, LANES):
        sums = sums + load(x, at + i)
    total = sum_lanes(sums)
    for i in range(whole, size):
        total += x[at + i]
    return total / np.float32(size)


@njit
def normalize(x, at, norm, row, out, out_at):
    """Normalize `norm.size` numbers from x[at] to out[out_at], which may be the same. row: of a weight with
    several rows.
    """
    size = norm.size
    weight, whole = floats_at(norm.weight + 4 * row * norm.step), size // LANES * LANES
    mean = mean_of(x, at, size) if norm.centred else ZERO
    squares = splat(ZERO)
    for i in range(0, whole, LANES):
        part = load(x, at + i) - splat(mean)
        squares = multiply_add(part, part, squares)
    total = sum_lanes(squares)
    for i in range(whole, size):
        total += (x[at + i] - mean) * (x[at + i] - mean)
    factor = ONE / np.float32(math.sqrt(total / np.float32(size) + np.float32(norm.eps)))
    for i in range(0, whole, LANES):
        store(out, out_at + i, (load(x, at + i) - splat(mean)) * splat(factor) * load(weight, i))
    for i in range(whole, size):
        out[out_at + i] = (x[at + i] - mean) * factor * weight[i]
    if norm.bias:
        bias = floats_at(norm.bias + 4 * row * norm.step)
        for i in range(size):
            out[out_at + i] += bias[i]


@njit
def clip(x, at, size, limit):
    """Clip numbers to +-limit, in place."""
    for i in range(size):
        x[at + i] = min(max(x[at + i], -limit), limit)


@njit
def rotate_head(x, at, rope, n):
    """Rotate the first coordinates of one head of new token n, in place."""
    skipped, half = 4 * n * rope.step, rope.rotated // 2
    cos, sin = floats_at(rope.cos + skipped), floats_at(rope.sin + skipped)
    step, apart = (2, 1) if rope.pairs else (1, half)
    for i in range(half):
        place = at + i * step
        first, second = x[place], x[place + apart]
        x[place] = first * cos[i] - second * sin[i]
        x[place + apart] = second * cos[i] + first * sin[i]


@njit
def enter_head(x, at, dim, head, rope, norm, n):
    """Clip, normalize and rotate one head of new token n, in place; norm: the address of a NORM, or 0."""
    if rope.clip:
        clip(x, at, dim, np.float32(rope.clip))
    if norm and not rope.norms_last:
        normalize(x, at, norms_at(norm)[0], head, x, at)
    rotate_head(x, at, rope, n)
    if norm and rope.norms_last:
        normalize(x, at, norms_at(norm)[0], head, x, at)


@njit
def rope_heads(step, head):
    """Prepare the queries of one KV head and its new keys and values, float32, in place."""
    rope = ropes_at(step.rope)[0]
    queries, keys = floats_at(step.query), floats_at(step.key)
    for n in range(step.new):
        for g in range(step.group):
            place = head * step.group + g
            at = place * step.query_h + n * step.query_n
            enter_head(queries, at, step.dim, place, rope, rope.query_norm, n)
        enter_head(keys, head * step.key_h + n * step.key_n, step.dim, head, rope, rope.key_norm, n)
        if rope.clip:
            at = head * step.value_h + n * step.value_n
            clip(floats_at(step.value), at, step.dim_v, np.float32(rope.clip))


@cache
def build_norm() -> int:
    """Compile the stage that normalizes one vector per task; its records: NORMs."""
    stamp = source_stamp()

    def norm_task(task, thread, norm_at, unused, unused_too):
        _ = stamp
        norm = norms_at(norm_at)[task]
        out = floats_at(norm.out)
        normalize(floats_at(norm.x), 0, norm, 0, out, 0)
        if norm.sum:
            sums = floats_at(norm.sum)
            for i in range(norm.size):
                sums[i] += out[i]

    return stage(norm_task, STAGE)
