"""The first writes of a decode step: its tokens into the cache, and its queries as codes."""

from __future__ import annotations

import math

import numpy as np
from numba.extending import overload

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.coding import (
    EDGE,
    bucketize_block,
    clear_rows,
    divide_rows,
    load_rows,
    product_with,
    quantize_block,
    rotate,
    square_sum,
)
from adamas_kernels.cpu.encode import encode_rows
from adamas_kernels.cpu.estimate import codes_of, scales_of
from adamas_kernels.cpu.floats import Bytes, HalfBytes, to_float
from adamas_kernels.cpu.lanes import LANES, load, splat, store
from adamas_kernels.cpu.packed_rows import centre_at, put_row, row_number
from adamas_kernels.cpu.records import FACTS, OFFSET, UNIT, floats_at, ints_at, numbers_at, row_of
from adamas_kernels.reference import CODES_PER_WORD

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


@njit
def append_tokens(new_kind, key_kind, value_kind, step, layer, scratch, b, head):
    """Append the new tokens of one KV head: keys, values, and the sum of values if it is kept, which adds one
    token at a time.
    """
    pair = b * step.kv_heads + head
    new_keys, new_values = numbers_at(step.key, new_kind), numbers_at(step.value, new_kind)
    keys, values = numbers_at(layer.keys, key_kind), numbers_at(layer.values, value_kind)
    row_now, centre = floats_at(scratch.vector), centre_at(keys, layer, step, pair)
    key_at, value_at = b * step.key_b + head * step.key_h, b * step.value_b + head * step.value_h
    for row in range(step.new):
        place = row_of(step, step.length + row)
        keys_at = b * layer.keys_b + head * layer.keys_h + place * layer.keys_n
        values_at = b * layer.values_b + head * layer.values_h + place * layer.values_n
        for i in range(step.dim):
            row_now[i] = to_float(new_keys[key_at + row * step.key_n + i])
        put_row(keys, keys_at, row_now, step.dim, centre)
        for i in range(step.dim_v):
            row_now[i] = to_float(new_values[value_at + row * step.value_n + i])
        put_row(values, values_at, row_now, step.dim_v, row_now[:0])
    if not layer.value_sum:
        return
    sums, through = floats_at(layer.value_sum + 4 * pair * step.dim_v), floats_at(scratch.sums)
    for row in range(step.new):
        place = row_of(step, step.length + row)
        at = b * layer.values_b + head * layer.values_h + place * layer.values_n
        sums_at = (pair * step.new + row) * step.dim_v
        for i in range(step.dim_v):
            sums[i] += row_number(values, at, i, step.dim_v)
            through[sums_at + i] = sums[i]


def keys_to_encode(new_kind, kind, step, layer, b, head):
    """The new keys to encode, the offset of the first, and their stride: from the cache, as rounded to its
    numbers, or, if the cache's rows are packed (and rotated), from the input.
    """
    raise NotImplementedError


@overload(keys_to_encode)
def _keys_to_encode(new_kind, kind, step, layer, b, head):
    if kind.instance_class in (Bytes, HalfBytes):

        def keys(new_kind, kind, step, layer, b, head):
            return numbers_at(step.key, new_kind), b * step.key_b + head * step.key_h, step.key_n

    else:

        def keys(new_kind, kind, step, layer, b, head):
            at = b * layer.keys_b + head * layer.keys_h + step.length * layer.keys_n
            return numbers_at(layer.keys, kind), at, layer.keys_n

    return keys


@njit
def encode_tokens(new_kind, kind, step, layer, scratch, b, head):
    """Write codes and scales of the tokens that `append_tokens` put into the cache."""
    pair = b * step.kv_heads + head
    keys, at, apart = keys_to_encode(new_kind, kind, step, layer, b, head)
    encode_rows(
        keys, at, apart, step.new, step.dim, step.size,
        floats_at(layer.mean + 4 * pair * step.size), floats_at(layer.edge)[pair],
        floats_at(layer.balance + 4 * pair * step.size),
        codes_of(layer, b, head), step.length, 1, layer.codes_w, scales_of(layer, b, head), step.length,
        floats_at(scratch.block), ints_at(scratch.block_words), floats_at(scratch.lanes),
    )  # fmt: skip


@njit
def encode_queries(kind, step, layer, scratch, b, head):
    """Encode the queries of one KV head's group, LANES at a time, into words, totals and facts."""
    queries = numbers_at(step.query, kind)
    block, spare, words = floats_at(scratch.block), floats_at(scratch.spare), ints_at(scratch.block_words)
    pair = b * step.kv_heads + head
    rows = step.group * step.new
    length = step.size // CODES_PER_WORD if step.manhattan else step.size // 4
    for first in range(0, rows, LANES):
        count = min(LANES, rows - first)
        for lane in range(count):
            g, n = (first + lane) // step.new, (first + lane) % step.new
            at = b * step.query_b + (head * step.group + g) * step.query_h + n * step.query_n
            load_rows(queries, at, 0, 1, step.dim, step.size, block, lane)
        clear_rows(step.size, block, count)
        divide_rows(block, step.dim, floats_at(layer.balance + 4 * pair * step.size))
        rotate(block, step.size)
        squares = square_sum(block, step.size, spare)
        for lane in range(count):
            place = pair * rows + first + lane
            facts = floats_at(scratch.facts + 4 * FACTS * place)
            facts[UNIT], facts[OFFSET] = ONE, ZERO
        if step.manhattan:
            store(spare, 0, squares / splat(np.float32(step.size)))
            for lane in range(LANES):
                deviation = np.float32(math.sqrt(spare[lane]))
                spare[lane] = EDGE * deviation if step.query_edge < 0 else np.float32(step.query_edge)
            bucketize_block(block, step.size, load(spare, 0), words)
        else:
            units, totals = quantize_block(block, step.size, words)
            mean = floats_at(layer.mean + 4 * pair * step.size)
            scaling, noise = np.float32(step.scaling), floats_at(layer.noise)[pair]
            products = product_with(block, step.size, mean, spare)
            store(spare, 0, squares)
            store(spare, LANES, units)
            store(spare, 2 * LANES, products)
            for lane in range(count):
                place = pair * rows + first + lane
                facts = floats_at(scratch.facts + 4 * FACTS * place)
                square, unit, product = spare[lane], spare[LANES + lane], spare[2 * LANES + lane]
                facts[UNIT] = unit * scaling
                facts[OFFSET] = scaling * (product - HALF * scaling * square * noise)
            store(ints_at(scratch.spare), 0, totals)
        for lane in range(count):
            place = pair * rows + first + lane
            ints_at(scratch.totals)[place] = ints_at(scratch.spare)[lane]
            coded = ints_at(scratch.words + place * step.size)
            for i in range(length):
                coded[i] = words[i * LANES + lane]
