"""Full attention of one new token: the tokens of the cache in segments, which are merged.

For the layers that stay dense in decode, and for all of them with full attention. Float32 sums, whatever the
cache holds.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from adamas_kernels.cpu.attend import product, weigh
from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.enter import append_tokens
from adamas_kernels.cpu.floats import Float32, Kind, to_float
from adamas_kernels.cpu.lanes import LANES, load, multiply_add, splat, store
from adamas_kernels.cpu.norm_rope import turn_heads
from adamas_kernels.cpu.records import (
    DENSE_SEGMENT,
    floats_at,
    layers_at,
    numbers_at,
    scratches_at,
    steps_at,
)
from adamas_kernels.cpu.tasks import STAGE

ZERO, LEAST = np.float32(0), np.float32(-np.inf)


@njit
def sum_rows(values, at, stride, dim, count, weights, out):
    """The sum of `count` rows of values from values[at], with their weights, float32 [dim]."""
    whole = dim // LANES * LANES
    for i in range(0, whole, LANES):
        total = splat(ZERO)
        for token in range(count):
            total = multiply_add(load(values, at + token * stride + i), splat(weights[token]), total)
        store(out, i, total)
    for i in range(whole, dim):
        out[i] = ZERO
        for token in range(count):
            out[i] += weights[token] * to_float(values[at + token * stride + i])


@njit
def attend_segment(kind, step, layer, scratch, head, segment):
    """What one segment gives each query of a KV head: the output, not divided, the maximum and the sum."""
    queries = floats_at(step.query)
    keys, values = numbers_at(layer.keys, kind), numbers_at(layer.values, kind)
    first = segment * DENSE_SEGMENT
    count = min(DENSE_SEGMENT, step.length + 1 - first)
    keys_at = head * layer.keys_h + first * layer.keys_n
    values_at = head * layer.values_h + first * layer.values_n
    scores = floats_at(scratch.dense)
    part = step.dim_v + LANES
    for g in range(step.group):
        place = head * step.group + g
        query = queries[place * step.query_h :]
        highest = LEAST
        for token in range(count):
            found = product(query, keys, keys_at + token * layer.keys_n, step.dim) * np.float32(step.scaling)
            scores[token] = found
            highest = max(highest, found)
        out = floats_at(scratch.parts + 4 * part * (place * step.segments + segment))
        out[step.dim_v], out[step.dim_v + 1] = highest, weigh(scores, count, highest)
        sum_rows(values, values_at, layer.values_n, step.dim_v, count, scores, out)


@njit
def merge_segments(step, scratch, place):
    """The output of one query from its segments."""
    part = step.dim_v + LANES
    parts = floats_at(scratch.parts + 4 * part * place * step.segments)
    out = floats_at(step.out + 4 * place * step.dim_v)
    highest, whole = LEAST, ZERO
    for segment in range(step.segments):
        highest = max(highest, parts[segment * part + step.dim_v])
    for i in range(step.dim_v):
        out[i] = ZERO
    for segment in range(step.segments):
        share = np.float32(math.exp(parts[segment * part + step.dim_v] - highest))
        whole += share * parts[segment * part + step.dim_v + 1]
        for i in range(step.dim_v):
            out[i] += share * parts[segment * part + i]
    for i in range(step.dim_v):
        out[i] /= whole


class DenseStages(NamedTuple):
    """Addresses of the compiled stages of a dense layer, in order; their arguments are STAGE's."""

    enter: int
    attend: int
    merge: int

    @staticmethod
    def tasks(kv_heads: int, queries: int, segments: int) -> DenseStages:
        """How many tasks the stages have."""
        return DenseStages(kv_heads, kv_heads * segments, queries)


@lru_cache(maxsize=None, typed=True)  # the marks are empty tuples: only their types differ
def build_dense(kind: Kind) -> DenseStages:
    """Compile the stages for one sequence, one new token, float32 queries and a cache of these numbers."""
    stamp = source_stamp()

    def enter_task(head, thread, step_at, layer_at, scratch_at):
        _ = stamp
        step, layer = steps_at(step_at)[0], layers_at(layer_at)[0]
        turn_heads(step, head)
        append_tokens(Float32(), kind, step, layer, 0, head)

    def attend_task(task, thread, step_at, layer_at, scratch_at):
        _ = stamp
        step, layer, scratch = steps_at(step_at)[0], layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        attend_segment(kind, step, layer, scratch, task // step.segments, task % step.segments)

    def merge_task(place, thread, step_at, layer_at, scratch_at):
        _ = stamp
        merge_segments(steps_at(step_at)[0], scratches_at(scratch_at)[0], place)

    return DenseStages(*(stage(task, STAGE) for task in (enter_task, attend_task, merge_task)))
