"""Full attention of one or a few new tokens, over segments of the cache that are then merged.

For layers that stay dense in decode, and for all layers with full attention. Sums are float32, whatever the
cache's dtype.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from adamas_kernels.cpu.attend import cap_scores, weigh
from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.enter import append_tokens
from adamas_kernels.cpu.features import FEATURES
from adamas_kernels.cpu.floats import Kind, RowKind, put_float, to_float
from adamas_kernels.cpu.lanes import (
    F32,
    FLOATS,
    I32,
    LANES,
    fused,
    lane_numbers,
    load,
    max_lanes,
    splat,
    splat_value,
    store,
    where,
)
from adamas_kernels.cpu.norm_rope import rope_heads
from adamas_kernels.cpu.packed_rows import centre_at, enter_query, row_lanes, row_number, turn
from adamas_kernels.cpu.records import (
    DENSE_QUERIES,
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
from adamas_kernels.cpu.rows import lanes_of
from adamas_kernels.cpu.tasks import STAGE

ZERO, LEAST = np.float32(0), np.float32(-np.inf)
# Keys whose products with a query are summed together, and vectors of values that share a loaded weight. Only
# the registers of AVX-512 hold so many sums.
KEYS, VECTORS = (4, 2) if "avx512f" in FEATURES else (1, 1)
SCORED = 4 if KEYS > 1 else DENSE_QUERIES  # most queries whose scores are computed together
SCORES = DENSE_SEGMENT + LANES  # stride from one query's scores to the next
FOUR = 4  # sums of lanes that are computed together: of four keys, or of four queries
FEW = ir.VectorType(F32, FOUR)


@intrinsic
def add_multiples(typing_context, totals, tile, factors, at, step):
    """Totals, one per query and vector of `tile`, plus that vector times LANES numbers from factors[at] on;
    `at` advances by `step` per query.
    """

    def emit(context, builder, sig, args):
        def factor(at):
            return lanes_of(context, builder, sig.args[2], args[2], at)

        return context.make_tuple(builder, sig.return_type, _added(builder, args, factor))

    return totals(totals, tile, factors, types.int64, types.int64), emit


@intrinsic
def add_weighted(typing_context, totals, tile, weights, at, step):
    """Totals, one per query and vector of `tile`, plus that vector times weights[at]; `at` advances by `step`
    per query.
    """

    def emit(context, builder, sig, args):
        data = context.make_array(sig.args[2])(context, builder, args[2]).data

        def factor(at):
            return splat_value(builder, builder.load(builder.gep(data, [at])))

        return context.make_tuple(builder, sig.return_type, _added(builder, args, factor))

    return totals(totals, tile, weights, types.int64, types.int64), emit


def _added(builder, args, factor):
    totals, tile, _, at, step = args
    totals, tile, found = cgutils.unpack_tuple(builder, totals), cgutils.unpack_tuple(builder, tile), []
    for first in range(0, len(totals), len(tile)):
        lanes = factor(at)
        found += [fused(builder, a, lanes, b) for a, b in zip(tile, totals[first:], strict=False)]
        at = builder.add(at, step)
    return found


@intrinsic
def put_sums(typing_context, totals, offsets, offset, scaling, scores, at):
    """Write (the sum of the lanes of a total + the query's offset) scaling, for KEYS neighbouring totals of
    each query, to scores[at:]; `at` advances by SCORES per query and `offset`, an index, by 1.
    """

    def emit(context, builder, sig, args):
        totals, offsets, offset, scaling, scores, at = args
        totals = cgutils.unpack_tuple(builder, totals)
        offsets = context.make_array(sig.args[1])(context, builder, offsets).data
        scores = context.make_array(sig.args[4])(context, builder, scores).data
        scaling = splat_value(builder, scaling, FOUR)
        for first in range(0, len(totals), FOUR):
            four = totals[first : first + FOUR]
            offset_at = builder.gep(offsets, [builder.add(offset, ir.Constant(offset.type, first // KEYS))])
            if KEYS == FOUR:
                offsets_of = splat_value(builder, builder.load(offset_at), FOUR)
            else:  # after the last query's, room is left
                offsets_of = builder.load(builder.bitcast(offset_at, FEW.as_pointer()), align=4)
            sums = _sums(builder, four + four[-1:] * (FOUR - len(four)))
            sums = builder.fmul(builder.fadd(sums, offsets_of), scaling)
            for query in range(first // KEYS, (first + len(four)) // KEYS):
                place = builder.gep(scores, [builder.add(at, ir.Constant(at.type, query * SCORES))])
                if KEYS == FOUR:
                    builder.store(sums, builder.bitcast(place, FEW.as_pointer()), align=4)
                else:
                    number = ir.Constant(I32, query - first)
                    builder.store(builder.extract_element(sums, number), place)
        return context.get_dummy_value()

    return types.void(totals, offsets, types.int64, types.float32, scores, types.int64), emit


def shuffled(builder, one, other, places):
    """The lanes at these places of two vectors in a row."""
    mask = ir.Constant(ir.VectorType(I32, len(places)), places)
    return builder.shuffle_vector(one, other, mask)


def _sums(builder, vectors):
    """The sums of the lanes of four vectors, as one vector: instructions serve all at once."""
    a, b, c, d = vectors

    def both(one, other, low, high):
        """Lanes of both in each quarter, by their places in the two quarters in a row."""
        quarters = [
            [q + x % 4 + x // 4 * LANES for q in range(0, LANES, 4) for x in part] for part in (low, high)
        ]
        return builder.fadd(*(shuffled(builder, one, other, places) for places in quarters))

    pairs = [both(x, y, (0, 4, 1, 5), (2, 6, 3, 7)) for x, y in ((a, b), (c, d))]
    sums, size = both(*pairs, (0, 1, 4, 5), (2, 3, 6, 7)), LANES
    while size > FOUR:
        size //= 2
        halves = (shuffled(builder, sums, sums, [*range(at, at + size)]) for at in (0, size))
        sums = builder.fadd(*halves)
    return sums


if KEYS == 1:

    @njit
    def for_each_key(one):
        """The same tuple for each of KEYS keys."""
        return one

    @njit
    def key_tile(keys, at, stride, last, i, dim):
        """LANES numbers from the i-th on of KEYS keys from keys[at] on."""
        return (row_lanes(keys, at, i, dim),)

else:

    @njit
    def for_each_key(one):
        """The same tuple for each of KEYS keys."""
        return one + one + one + one

    @njit
    def key_tile(keys, at, stride, last, i, dim):
        """LANES numbers from the i-th on of KEYS keys from keys[at] on. The last key stands in for those
        after it, so that a sum never depends on how many follow.
        """
        b, c, d = min(at + stride, last), min(at + 2 * stride, last), min(at + 3 * stride, last)
        return (
            row_lanes(keys, at, i, dim), row_lanes(keys, b, i, dim),
            row_lanes(keys, c, i, dim), row_lanes(keys, d, i, dim),
        )  # fmt: skip


@intrinsic
def nothing_for(typing_context, queries):
    """Lanes of zeros for each element of a tuple."""
    kind = types.UniTuple(FLOATS, len(queries))

    def emit(context, builder, sig, args):
        zeros = splat_value(builder, ir.Constant(F32, 0))
        return context.make_tuple(builder, kind, [zeros] * len(queries))

    return kind(queries), emit


def score_rows(rows, row, offsets, queries, keys, at, stride, dim, scaling, count, scores, first):
    """Scores of `count` keys from keys[at] on for queries from `row` on, one per element of `rows`, written
    to scores[first:] of each, and up to KEYS - 1 numbers after them; a key is read once for all of them.
    offsets: where those of the products of all queries lie, see `enter_query`.
    """
    raise NotImplementedError


@overload(score_rows)
def _score_rows(rows, row, offsets, queries, keys, at, stride, dim, scaling, count, scores, first):
    if not len(rows):
        return lambda rows, row, offsets, queries, keys, at, stride, dim, scaling, count, scores, first: None

    def score(rows, row, offsets, queries, keys, at, stride, dim, scaling, count, scores, first):
        none, whole, last = nothing_for(rows), dim // LANES * LANES, at + (count - 1) * stride
        to = row * SCORES + first
        for token in range(0, count, KEYS):
            totals = for_each_key(none)
            for i in range(0, whole, LANES):
                tile = key_tile(keys, at + token * stride, stride, last, i, dim)
                totals = add_multiples(totals, tile, queries, row * dim + i, dim)
            put_sums(totals, queries, offsets + row, scaling, scores, to + token)
        if whole < dim:
            for token in range(count):
                for more in range(len(rows)):
                    total = ZERO
                    for i in range(whole, dim):
                        x = row_number(keys, at + token * stride, i, dim)
                        total += queries[(row + more) * dim + i] * x
                    scores[to + more * SCORES + token] += total * scaling

    return score


@njit
def add_rows(none, values, at, stride, dim, count, weights, first, parts, apart):
    """Add `count` rows of values from values[at] on, weighted by each query's weights[first:], to parts,
    float32 [dim], with a stride of `apart` between queries.
    """
    whole, i = dim // LANES * LANES, 0
    while VECTORS == 2 and i + 2 * LANES <= whole:
        pairs = none + none
        for token in range(count):
            place = at + token * stride
            tile = row_lanes(values, place, i, dim), row_lanes(values, place, i + LANES, dim)
            pairs = add_weighted(pairs, tile, weights, first + token, SCORES)
        for row in range(len(none)):
            to = row * apart + i
            store(parts, to, load(parts, to) + pairs[2 * row])
            store(parts, to + LANES, load(parts, to + LANES) + pairs[2 * row + 1])
        i += 2 * LANES
    while i < whole:
        totals = none
        for token in range(count):
            tile = (row_lanes(values, at + token * stride, i, dim),)
            totals = add_weighted(totals, tile, weights, first + token, SCORES)
        for row in range(len(none)):
            store(parts, row * apart + i, load(parts, row * apart + i) + totals[row])
        i += LANES
    for i in range(whole, dim):
        for row in range(len(none)):
            for token in range(count):
                weight = weights[row * SCORES + first + token]
                parts[row * apart + i] += weight * row_number(values, at + token * stride, i, dim)


@njit
def highest_of(scores, count):
    """The largest of the first `count` scores."""
    top, whole = splat(LEAST), count // LANES * LANES
    for i in range(0, whole, LANES):
        part = load(scores, i)
        top = where(part > top, part, top)
    part = where(lane_numbers() < splat(count - whole), load(scores, whole), splat(LEAST))
    return max_lanes(where(part > top, part, top))


def attend_rows(rows, query_kind, key_kind, value_kind, step, layer, scratch, b, head, segment, g, n):
    """What one segment contributes to the n-th new token's queries of a KV head from the g-th on, see
    `parts_of`: the undivided output, the maximum and the sum.
    """
    raise NotImplementedError


@overload(attend_rows)
def _attend_rows(rows, query_kind, key_kind, value_kind, step, layer, scratch, b, head, segment, g, n):
    if not len(rows):
        return lambda rows, query_kind, key_kind, value_kind, step, layer, scratch, b, head, segment, g, n: (
            None
        )

    def attend(rows, query_kind, key_kind, value_kind, step, layer, scratch, b, head, segment, g, n):
        whole, one, other = rows
        none = nothing_for(whole)
        queries, query = numbers_at(step.query, query_kind), floats_at(scratch.vector)
        keys, values = numbers_at(layer.keys, key_kind), numbers_at(layer.values, value_kind)
        centre = centre_at(keys, layer, step, b * step.kv_heads + head)
        keys_at = b * layer.keys_b + head * layer.keys_h
        values_at = b * layer.values_b + head * layer.values_h
        scores, scaling, dim = floats_at(scratch.dense), np.float32(step.scaling), step.dim
        offsets = len(none) * dim
        for row in range(len(none)):
            query_at = b * step.query_b + (head * step.group + g + row) * step.query_h + n * step.query_n
            for i in range(dim):
                query[row * dim + i] = to_float(queries[query_at + i])
            own = floats_at(scratch.vector + 4 * row * dim)
            query[offsets + row] = enter_query(keys, own, dim, centre)
        first = (first_seen(step.window, step.length) // DENSE_SEGMENT + segment) * DENSE_SEGMENT
        start = max(first, first_seen(step.window, step.length + n))
        count = max(0, min(first + DENSE_SEGMENT, step.length + n + 1) - start)
        # A ring may end among these tokens: the others then start at its first row.
        at = row_of(step, start)
        before = min(count, step.ring - at) if step.ring else count
        for begin, many, to in ((at, before, 0), (0, count - before, before)):
            place, next_key = keys_at + begin * layer.keys_n, layer.keys_n
            score_rows(one, 0, offsets, query, keys, place, next_key, dim, scaling, many, scores, to)
            score_rows(
                other, len(one), offsets, query, keys, place, next_key, dim, scaling, many, scores, to
            )  # fmt: skip
        part = step.dim_v + LANES
        place = (b * step.kv_heads + head) * step.group * step.new + g * step.new + n
        apart = step.new * step.room * part
        out = floats_at(scratch.parts + 4 * part * (place * step.room + segment))
        for row in range(len(none)):
            mine = floats_at(scratch.dense + 4 * row * SCORES)
            if step.softcap:
                cap_scores(mine, count, np.float32(step.softcap))
            highest = highest_of(mine, count)
            out[row * apart + step.dim_v] = highest
            out[row * apart + step.dim_v + 1] = weigh(mine, count, highest)
            for i in range(step.dim_v):
                out[row * apart + i] = ZERO
        for begin, many, to in ((at, before, 0), (0, count - before, before)):
            add_rows(
                none, values, values_at + begin * layer.values_n, layer.values_n, step.dim_v, many, scores,
                to, out, apart,
            )  # fmt: skip

    return attend


@njit
def attend_segment(passes, query_kind, key_kind, value_kind, step, layer, scratch, b, head, segment):
    """What one segment contributes to each query of a KV head, see `Passes`."""
    large, many, small, few = passes
    for n in range(step.new):
        g = 0
        for _ in range(many):
            attend_rows(large, query_kind, key_kind, value_kind, step, layer, scratch, b, head, segment, g, n)
            g += len(large[0])
        for _ in range(few):
            attend_rows(small, query_kind, key_kind, value_kind, step, layer, scratch, b, head, segment, g, n)
            g += len(large[0]) - 1


@njit
def merge_segments(query_kind, value_kind, step, layer, scratch, place):
    """Merge the segments of one query into its output and log-sum-exp."""
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


def evenly(count: int, most: int) -> tuple[int, int, int]:
    """How to divide `count` into as few numbers as possible, at most `most` each: the larger number, how many
    there are of it, and how many are one less.
    """
    parts = -(-count // most)
    larger = -(-count // parts)
    fewer = parts * larger - count
    return larger, parts - fewer, fewer


def parts_of(queries: int) -> tuple[tuple[int, ...], ...]:
    """Queries whose values are added together, and the two parts whose scores are; each a tuple with an
    element per query, since compiled code has a register for each.
    """
    larger, many, few = evenly(queries, SCORED)
    assert many + few <= 2
    second = queries - larger
    return (0,) * queries, (0,) * larger, (0,) * second


class Passes(NamedTuple):
    """How a KV head's queries are divided into passes over the keys and values of a segment: `many` of
    `large`, then `few` of `small`, which has one less; see `parts_of`. Without a small one it is empty.
    """

    large: tuple[tuple[int, ...], ...]
    many: int
    small: tuple[tuple[int, ...], ...]
    few: int

    @classmethod
    def of(cls, group: int) -> Passes:
        """For this many queries."""
        larger, many, few = evenly(group, DENSE_QUERIES)
        return cls(parts_of(larger), many, parts_of(larger - 1) if few else (), few)


class DenseStages(NamedTuple):
    """Addresses of the compiled stages of a dense layer, in order, with STAGE's arguments."""

    enter: int
    attend: int
    merge: int

    @staticmethod
    def tasks(kv_heads: int, queries: int, segments: int) -> DenseStages:
        """How many tasks the stages have."""
        return DenseStages(kv_heads, kv_heads * segments, queries)


@lru_cache(maxsize=None, typed=True)  # kinds are empty tuples that differ only in type
def build_dense(query_kind: Kind, key_kind: RowKind, value_kind: RowKind, group: int) -> DenseStages:
    """Compile the stages for these number formats of queries and of the cache's rows, and this many queries
    of a KV head.
    """
    stamp, (large, many, small, few) = source_stamp(), Passes.of(group)
    enter, merge = _build_around(query_kind, key_kind, value_kind)

    def attend_task(task, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        pair, segment = task // steps[0].room, task % steps[0].room
        b, head = pair // steps[0].kv_heads, pair % steps[0].kv_heads
        if segment < steps[b].segments:
            passes = large, many, small, few
            attend_segment(
                passes, query_kind, key_kind, value_kind, steps[b], layer, scratch, b, head, segment
            )

    return DenseStages(enter, stage(attend_task, STAGE), merge)


@lru_cache(maxsize=None, typed=True)
def _build_around(query_kind: Kind, key_kind: RowKind, value_kind: RowKind) -> tuple[int, int]:
    """The first and the last stage, which do not depend on how many queries a KV head has."""
    stamp = source_stamp()

    def enter_task(pair, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        b, head = pair // steps[0].kv_heads, pair % steps[0].kv_heads
        step = steps[b]
        if step.rope:
            rope_heads(step, head)
        append_tokens(query_kind, key_kind, value_kind, step, layer, scratch, b, head)

    def merge_task(place, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        merge_segments(query_kind, value_kind, steps[place // queries_of(steps[0])], layer, scratch, place)

    return stage(enter_task, STAGE), stage(merge_task, STAGE)
