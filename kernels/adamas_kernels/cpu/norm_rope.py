"""What stands between a layer's matrix products: RMSNorm, and queries and keys rotated by position."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import njit

from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.lanes import LANES, load, multiply_add, splat, store, sum_lanes
from adamas_kernels.cpu.records import floats_at, norms_at, ropes_at
from adamas_kernels.cpu.tasks import STAGE

ZERO, ONE = np.float32(0), np.float32(1)


@njit
def normalize(x, at, size, eps, weight, out, out_at):
    """RMSNorm of `size` numbers from x[at], to out[out_at]; both may be the same."""
    whole = size // LANES * LANES
    squares = splat(ZERO)
    for i in range(0, whole, LANES):
        part = load(x, at + i)
        squares = multiply_add(part, part, squares)
    total = sum_lanes(squares)
    for i in range(whole, size):
        total += x[at + i] * x[at + i]
    factor = ONE / np.float32(math.sqrt(total / np.float32(size) + np.float32(eps)))
    for i in range(0, whole, LANES):
        store(out, out_at + i, load(x, at + i) * splat(factor) * load(weight, i))
    for i in range(whole, size):
        out[out_at + i] = x[at + i] * factor * weight[i]


@njit
def rope_head(x, at, dim, rope, norm):
    """Normalize one head, by weights at `norm` if that is not 0, and rotate its halves against each other."""
    if norm:
        normalize(x, at, dim, rope.eps, floats_at(norm), x, at)
    cos, sin, half = floats_at(rope.cos), floats_at(rope.sin), rope.rotated // 2
    for i in range(half):
        first, second = x[at + i], x[at + half + i]
        x[at + i] = first * cos[i] - second * sin[i]
        x[at + half + i] = second * cos[half + i] + first * sin[half + i]


@njit
def rope_heads(step, head):
    """Normalize and rotate the queries of one KV head and its new key, float32, in place."""
    rope = ropes_at(step.rope)[0]
    queries, keys = floats_at(step.query), floats_at(step.key)
    for g in range(step.group):
        rope_head(queries, (head * step.group + g) * step.query_h, step.dim, rope, rope.query_norm)
    rope_head(keys, head * step.key_h, step.dim, rope, rope.key_norm)


@cache
def build_norm() -> int:
    """Compile the stage of one task that normalizes a vector; its record: a NORM."""
    stamp = source_stamp()

    def norm_task(task, thread, norm_at, unused, unused_too):
        _ = stamp
        norm = norms_at(norm_at)[0]
        normalize(floats_at(norm.x), 0, norm.size, norm.eps, floats_at(norm.weight), floats_at(norm.out), 0)

    return stage(norm_task, STAGE)
