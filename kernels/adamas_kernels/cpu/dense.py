"""Full attention of one or few new tokens: the tokens of the cache in segments, which are merged.

For the layers that stay dense in decode, and for all of them with full attention. Float32 sums, whatever the
cache holds.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from adamas_kernels.cpu.attend import cap_scores, product, weigh
from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.enter import append_tokens
from adamas_kernels.cpu.floats import Kind, RowKind, capped_one, put_float, to_float
from adamas_kernels.cpu.lanes import LANES, load, multiply_add, splat, store
from adamas_kernels.cpu.norm_rope import rope_heads
from adamas_kernels.cpu.packed_rows import centre_at, enter_query, row_lanes, row_number, turn
from adamas_kernels.cpu.records import (
    DENSE_SEGMENT,
    first_seen,
    floats_at,
    layers_at,
    numbers_at,
    queries_of,
    row_of,
    scratches_at,
    steps_at,
)
from adamas_kernels.cpu.tasks import STAGE

ZERO, LEAST = np.float32(0), np.float32(-np.inf)


@njit
def score_rows(query, offset, keys, at, stride, dim, scaling, count, scores, first):
    """Scores of `count` keys from keys[at], to scores[first:], whose products with the query lack the offset;
    returns the highest.
    """
    highest = LEAST
    for token in range(count):
        found = (product(query, keys, at + token * stride, dim) + offset) * scaling
        scores[first + token] = found
        highest = max(highest, found)
    return highest


@njit
def add_rows(values, at, stride, dim, count, weights, first, out):
    """Add `count` rows of values from values[at], with weights[first:], to out, float32 [dim]."""
    whole = dim // LANES * LANES
    for i in range(0, whole, LANES):
        total = load(out, i)
        for token in range(count):
            value = row_lanes(values, at + token * stride, i, dim)
            total = multiply_add(value, splat(weights[first + token]), total)
        store(out, i, total)
    for i in range(whole, dim):
        for token in range(count):
            out[i] += weights[first + token] * row_number(values, at + token * stride, i, dim)


@njit
def attend_segment(query_kind, key_kind, value_kind, step, layer, scratch, b, head, segment):
    """What one segment gives each query of a KV head: the output, not divided, the maximum and the sum."""
    queries, query = numbers_at(step.query, query_kind), floats_at(scratch.vector)
    keys, values = numbers_at(layer.keys, key_kind), numbers_at(layer.values, value_kind)
    centre = centre_at(keys, layer, step, b * step.kv_heads + head)
    first = (first_seen(step.window, step.length) // DENSE_SEGMENT + segment) * DENSE_SEGMENT
    keys_at = b * layer.keys_b + head * layer.keys_h
    values_at = b * layer.values_b + head * layer.values_h
    scores, scaling = floats_at(scratch.dense), np.float32(step.scaling)
    part, rows = step.dim_v + LANES, step.group * step.new
    for row in range(rows):
        g, n = row // step.new, row % step.new
        query_at = b * step.query_b + (head * step.group + g) * step.query_h + n * step.query_n
        for i in range(step.dim):
            query[i] = to_float(queries[query_at + i])
        offset = enter_query(keys, query, step.dim, centre)
        start = max(first, first_seen(step.window, step.length + n))
        count = max(0, min(first + DENSE_SEGMENT, step.length + n + 1) - start)
        # A ring's rows may end among these tokens: then the others lie from its first row on.
        at = row_of(step, start)
        before = min(count, step.ring - at) if step.ring else count
        highest = score_rows(
            query, offset, keys, keys_at + at * layer.keys_n, layer.keys_n, step.dim, scaling, before, scores,
            0,
        )  # fmt: skip
        later = score_rows(
            query, offset, keys, keys_at, layer.keys_n, step.dim, scaling, count - before, scores, before
        )
        highest = max(highest, later)
        if step.softcap:
            cap = np.float32(step.softcap)
            cap_scores(scores, count, cap)
            highest = capped_one(highest, cap)
        place = (b * step.kv_heads + head) * rows + row
        out = floats_at(scratch.parts + 4 * part * (place * step.room + segment))
        out[step.dim_v], out[step.dim_v + 1] = highest, weigh(scores, count, highest)
        for i in range(step.dim_v):
            out[i] = ZERO
        add_rows(values, values_at + at * layer.values_n, layer.values_n, step.dim_v, before, scores, 0, out)
        add_rows(values, values_at, layer.values_n, step.dim_v, count - before, scores, before, out)


@njit
def merge_segments(query_kind, value_kind, step, layer, scratch, place):
    """The output of one query from its segments, and its log-sum-exp."""
    part = step.dim_v + LANES
    parts = floats_at(scratch.parts + 4 * part * place * step.room)
    total, out = floats_at(scratch.weighted), numbers_at(step.out, query_kind)
    highest, whole = LEAST, ZERO
    for segment in range(step.segments):
        highest = max(highest, parts[segment * part + step.dim_v])
    if step.sink_scores:
        sink = floats_at(step.sink_scores)[place // step.new % (step.kv_heads * step.group)]
        highest = max(highest, sink)
        whole = np.float32(math.exp(sink - highest))
    for i in range(step.dim_v):
        total[i] = ZERO
    for segment in range(step.segments):
        share = np.float32(math.exp(parts[segment * part + step.dim_v] - highest))
        whole += share * parts[segment * part + step.dim_v + 1]
        for i in range(step.dim_v):
            total[i] += share * parts[segment * part + i]
    turn(numbers_at(layer.values, value_kind), total, step.dim_v)
    heads = step.kv_heads * step.group
    query_head, n = place // step.new, place % step.new
    out_at = query_head // heads * step.out_b + query_head % heads * step.out_h + n * step.out_n
    for i in range(step.dim_v):
        put_float(out, out_at + i, total[i] / whole)
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
def build_dense(query_kind: Kind, key_kind: RowKind, value_kind: RowKind) -> DenseStages:
    """Compile the stages for these numbers of queries and rows of the cache."""
    stamp = source_stamp()

    def enter_task(pair, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        b, head = pair // steps[0].kv_heads, pair % steps[0].kv_heads
        step = steps[b]
        if step.rope:
            rope_heads(step, head)
        append_tokens(query_kind, key_kind, value_kind, step, layer, scratch, b, head)

    def attend_task(task, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        pair, segment = task // steps[0].room, task % steps[0].room
        b, head = pair // steps[0].kv_heads, pair % steps[0].kv_heads
        if segment < steps[b].segments:
            attend_segment(query_kind, key_kind, value_kind, steps[b], layer, scratch, b, head, segment)

    def merge_task(place, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        merge_segments(query_kind, value_kind, steps[place // queries_of(steps[0])], layer, scratch, place)

    return DenseStages(*(stage(task, STAGE) for task in (enter_task, attend_task, merge_task)))
