"""Full attention of one or few new tokens: the tokens of the cache in segments, which are merged.

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
from adamas_kernels.cpu.floats import Kind, put_float, to_float
from adamas_kernels.cpu.lanes import LANES, load, multiply_add, splat, store
from adamas_kernels.cpu.norm_rope import rope_heads
from adamas_kernels.cpu.records import (
    DENSE_SEGMENT,
    floats_at,
    layers_at,
    numbers_at,
    queries_of,
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
def attend_segment(query_kind, kind, step, layer, scratch, b, head, segment):
    """What one segment gives each query of a KV head: the output, not divided, the maximum and the sum."""
    queries, query = numbers_at(step.query, query_kind), floats_at(scratch.vector)
    keys, values = numbers_at(layer.keys, kind), numbers_at(layer.values, kind)
    first = segment * DENSE_SEGMENT
    keys_at = b * layer.keys_b + head * layer.keys_h + first * layer.keys_n
    values_at = b * layer.values_b + head * layer.values_h + first * layer.values_n
    scores = floats_at(scratch.dense)
    part, rows = step.dim_v + LANES, step.group * step.new
    for row in range(rows):
        g, n = row // step.new, row % step.new
        query_at = b * step.query_b + (head * step.group + g) * step.query_h + n * step.query_n
        for i in range(step.dim):
            query[i] = to_float(queries[query_at + i])
        count = max(0, min(DENSE_SEGMENT, step.length + n + 1 - first))
        highest = LEAST
        for token in range(count):
            found = product(query, keys, keys_at + token * layer.keys_n, step.dim) * np.float32(step.scaling)
            scores[token] = found
            highest = max(highest, found)
        place = (b * step.kv_heads + head) * rows + row
        out = floats_at(scratch.parts + 4 * part * (place * step.room + segment))
        out[step.dim_v], out[step.dim_v + 1] = highest, weigh(scores, count, highest)
        sum_rows(values, values_at, layer.values_n, step.dim_v, count, scores, out)


@njit
def merge_segments(query_kind, step, scratch, place):
    """The output of one query from its segments, and its log-sum-exp."""
    part = step.dim_v + LANES
    parts = floats_at(scratch.parts + 4 * part * place * step.room)
    total, out = floats_at(scratch.weighted), numbers_at(step.out, query_kind)
    highest, whole = LEAST, ZERO
    for segment in range(step.segments):
        highest = max(highest, parts[segment * part + step.dim_v])
    for i in range(step.dim_v):
        total[i] = ZERO
    for segment in range(step.segments):
        share = np.float32(math.exp(parts[segment * part + step.dim_v] - highest))
        whole += share * parts[segment * part + step.dim_v + 1]
        for i in range(step.dim_v):
            total[i] += share * parts[segment * part + i]
    for i in range(step.dim_v):
        put_float(out, place * step.dim_v + i, total[i] / whole)
    floats_at(step.lse)[place] = highest + np.float32(math.log(whole))


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
def build_dense(query_kind: Kind, kind: Kind) -> DenseStages:
    """Compile the stages for these numbers of queries and of the cache."""
    stamp = source_stamp()

    def enter_task(pair, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer = steps_at(step_at), layers_at(layer_at)[0]
        b, head = pair // steps[0].kv_heads, pair % steps[0].kv_heads
        step = steps[b]
        if step.rope:
            rope_heads(step, head)
        append_tokens(query_kind, kind, step, layer, b, head)

    def attend_task(task, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        pair, segment = task // steps[0].room, task % steps[0].room
        b, head = pair // steps[0].kv_heads, pair % steps[0].kv_heads
        if segment < steps[b].segments:
            attend_segment(query_kind, kind, steps[b], layer, scratch, b, head, segment)

    def merge_task(place, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps = steps_at(step_at)
        merge_segments(
            query_kind, steps[place // queries_of(steps[0])], scratches_at(scratch_at)[thread], place
        )

    return DenseStages(*(stage(task, STAGE) for task in (enter_task, attend_task, merge_task)))
