"""Exact attention over the chosen tokens, and what the others would have added."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.floats import capped, capped_one, exp, put_float, to_float
from adamas_kernels.cpu.lanes import LANES, load, multiply_add, splat, store, sum_lanes
from adamas_kernels.cpu.packed_rows import centre_at, enter_query, row_lanes, row_number, turn
from adamas_kernels.cpu.records import floats_at, ints_at, numbers_at

AHEAD = 6  # rows between the one in use and the one being prefetched
LINE = 64  # bytes of a cache line
LEAST = np.float32(-np.inf)
ZERO = np.float32(0)


@intrinsic
def prefetch(typing_context, array, index):
    """Start to fetch array[index] from memory."""

    def emit(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), cgutils.voidptr_t)
        i32 = ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0")
        builder.call(function, [pointer, *(ir.Constant(i32, hint) for hint in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@njit
def prefetch_row(rows, at, dim):
    """Start to fetch a row of `dim` numbers."""
    for i in range(0, dim, LINE // rows.itemsize):
        prefetch(rows, at + i)


@njit
def product(query, keys, at, dim):
    """The product of a float32 query with a stored key."""
    whole = dim // LANES * LANES
    lanes = splat(ZERO)
    for i in range(0, whole, LANES):
        lanes = multiply_add(load(query, i), row_lanes(keys, at, i, dim), lanes)
    total = sum_lanes(lanes)
    for i in range(whole, dim):
        total += query[i] * row_number(keys, at, i, dim)
    return total


@njit
def score(step, query, offset, keys, keys_n, values, values_n, chosen, count, scores):
    """scores[i] = scaling * (query times the i-th chosen key + offset); returns the highest."""
    highest = LEAST
    for i in range(count):
        if i + AHEAD < count:
            prefetch_row(keys, chosen[i + AHEAD] * keys_n, step.dim)
        prefetch_row(values, chosen[i] * values_n, step.dim_v)
        found = (product(query, keys, chosen[i] * keys_n, step.dim) + offset) * np.float32(step.scaling)
        scores[i] = found
        highest = max(highest, found)
    return highest


@njit
def cap_scores(scores, count, cap):
    """Scores -> soft-capped scores, in place. Writes up to the next block of lanes."""
    for i in range(0, count, LANES):
        store(scores, i, capped(load(scores, i), cap))


@njit
def weigh(scores, count, highest):
    """Scores -> exp(score - highest), in place; returns their sum. Writes up to the next block of lanes."""
    store(scores, count, splat(LEAST))
    total = splat(ZERO)
    for i in range(0, count, LANES):
        weight = exp(load(scores, i) - splat(highest))
        store(scores, i, weight)
        total = total + weight
    return sum_lanes(total)


@njit
def softmax(scores, count, highest):
    """Scores -> softmax weights, in place; returns the log-sum-exp. Writes up to the next block of lanes."""
    whole = weigh(scores, count, highest)
    for i in range(count):
        scores[i] /= whole
    return highest + math.log(whole)


@njit
def sum_values(values, stride, dim, chosen, count, weights, weighted, plain):
    """Weighted and plain sums of the chosen values, float32 [D_v]."""
    whole = dim // LANES * LANES
    for i in range(0, whole, LANES):
        by_weight, sums = splat(ZERO), splat(ZERO)
        for token in range(count):
            value = row_lanes(values, chosen[token] * stride, i, dim)
            by_weight = multiply_add(value, splat(weights[token]), by_weight)
            sums = sums + value
        store(weighted, i, by_weight)
        store(plain, i, sums)
    for i in range(whole, dim):
        weighted[i], plain[i] = ZERO, ZERO
        for token in range(count):
            value = row_number(values, chosen[token] * stride, i, dim)
            weighted[i] += weights[token] * value
            plain[i] += value


@njit
def add_rest(step, totals, left, weighted, plain, lse, log_mass):
    """Merge the mean value of the `left` tokens that were not chosen, with softmax mass exp(log_mass).

    The mean comes from the sum of all values that the query sees, minus the chosen ones.
    """
    both = max(lse, log_mass)
    both += math.log(math.exp(lse - both) + math.exp(log_mass - both))
    own, others = np.float32(math.exp(lse - both)), np.float32(math.exp(log_mass - both))
    for i in range(step.dim_v):
        rest = totals[i] - plain[i]
        weighted[i] = weighted[i] * own + rest / np.float32(left) * others
    return both


@njit
def add_sink(step, query_head, lse, weighted):
    """Merge the learned sink of a query head, which has no value; returns the log-sum-exp with it."""
    sink = floats_at(step.sink_scores)[query_head]
    both = max(np.float32(lse), sink)
    both += np.float32(math.log(math.exp(lse - both) + math.exp(sink - both)))
    own = np.float32(math.exp(lse - both))
    for i in range(step.dim_v):
        weighted[i] *= own
    return both


@njit
def attend(query_kind, key_kind, value_kind, step, layer, scratch, b, head, place, count, log_mass):
    """Attend from one query to its `count` chosen tokens, merge the others, and write both results."""
    n = place % step.new
    query_head = place // step.new - b * step.kv_heads * step.group
    queries = numbers_at(step.query, query_kind)
    keys = numbers_at(layer.keys, key_kind)[b * layer.keys_b + head * layer.keys_h :]
    values = numbers_at(layer.values, value_kind)[b * layer.values_b + head * layer.values_h :]
    chosen = ints_at(scratch.chosen + 4 * place * scratch.row)
    scores = floats_at(scratch.scores + 4 * place * scratch.row)
    query, weighted, plain = floats_at(scratch.vector), floats_at(scratch.weighted), floats_at(scratch.plain)
    at = b * step.query_b + query_head * step.query_h + n * step.query_n
    for i in range(step.dim):
        query[i] = to_float(queries[at + i])
    offset = enter_query(keys, query, step.dim, centre_at(keys, layer, step, b * step.kv_heads + head))
    highest = score(step, query, offset, keys, layer.keys_n, values, layer.values_n, chosen, count, scores)
    if step.softcap:
        cap = np.float32(step.softcap)
        cap_scores(scores, count, cap)
        highest = capped_one(highest, cap)
    found = softmax(scores, count, highest)
    sum_values(values, layer.values_n, step.dim_v, chosen, count, scores, weighted, plain)
    total = found
    if log_mass > -np.inf:
        seen = step.length + n + 1
        pair = b * step.kv_heads + head
        totals = floats_at(scratch.sums + 4 * (pair * step.new + n) * step.dim_v)
        total = add_rest(step, totals, seen - count, weighted, plain, found, log_mass)
    if step.sink_scores:
        total = add_sink(step, query_head, total, weighted)
    turn(values, weighted, step.dim_v)
    out, lse = numbers_at(step.out, query_kind), floats_at(step.lse)
    lse[place] = np.float32(total)
    out_at = b * step.out_b + query_head * step.out_h + n * step.out_n
    for i in range(step.dim_v):
        put_float(out, out_at + i, weighted[i])
    if step.tally:
        share = np.float32(math.exp(found - total))
        for i in range(count):
            scores[i] *= share
