"""One pass over the codes: a rank for every token, and from it the few tokens above a threshold and the
softmax mass of the others.

Tokens lie in lanes. One read of the codes serves all queries of a KV head.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from adamas_kernels.cpu.floats import Float16, exp, float_from_bits, to_float
from adamas_kernels.cpu.lanes import (
    LANES,
    count_bits,
    load,
    lowest_bit,
    mask_bits,
    mask_of_bits,
    reinterpret,
    splat,
    store,
    sum_lanes,
    to_floats,
    where,
)
from adamas_kernels.cpu.memory import FACTS, SEGMENT, floats_at, ints_at, numbers_at
from adamas_kernels.cpu.product import dot4
from adamas_kernels.reference import CODES_PER_WORD

ALL = (1 << LANES) - 1
CODES = 0x03030303
PLANE = 0x55555555
ZERO = np.float32(0)

# What a query's FACTS hold: score per unit of rank, offset of the score, threshold and deviation of the rank.
UNIT, OFFSET, THRESHOLD, SPREAD = 0, 1, 2, 3


@njit
def distance(a, b):
    """Manhattan distance of sixteen 2-bit codes, from bit planes: l + 2 (h and not (l and a_h xor a_l))."""
    differ = a ^ b
    low = differ & splat(PLANE)
    high = (differ >> splat(1)) & splat(PLANE)
    two_apart = high & ((low & ((a >> splat(1)) ^ a)) ^ splat(PLANE))
    return count_bits(low) + count_bits(two_apart | (two_apart << splat(1)))


@njit
def lanes_between(first, last):
    """Bits of the lanes first .. last - 1, as far as they exist."""
    return ALL & ((1 << max(0, min(last, LANES))) - 1) & ~((1 << max(0, min(first, LANES))) - 1)


@njit
def compare_block(form, codes, at, codes_w, words, query, query_at, rows, sums, planes, manhattan):
    """Products of codes 0..3 with queries, or distances, int32 sums [rows * LANES].

    `words` code words a token from codes[at], 4 * words words a query from query[query_at], of which
    distances use the first quarter. planes: int32 [4 * words * LANES], to which the codes are unpacked once.
    """
    if manhattan:
        for row in range(rows):
            total = splat(0)
            for w in range(words):
                other = splat(query[query_at + 4 * row * words + w])
                total = total + distance(load(codes, at + w * codes_w), other)
            store(sums, row * LANES, total)
        return
    for w in range(words):
        word = load(codes, at + w * codes_w)
        for i in range(4):
            store(planes, (4 * w + i) * LANES, (word >> splat(2 * i)) & splat(CODES))
    for row in range(rows):
        first = query_at + 4 * row * words
        even = odd = splat(0)  # two chains of sums, so that neither waits for the other
        for i in range(0, 4 * words, 2):
            even = dot4(form, even, load(planes, i * LANES), splat(query[first + i]))
            odd = dot4(form, odd, load(planes, (i + 1) * LANES), splat(query[first + i + 1]))
        store(sums, row * LANES, even + odd)


@njit
def rank_of(found, total, scale, manhattan):
    """The reference's rank of one query from the sums of `compare_block`: higher is nearer."""
    if manhattan:
        return to_floats(splat(0) - found)
    return to_floats(found + found - splat(3 * total)) * scale


@njit
def compare_tokens(form, step, codes, codes_w, scales, at, query, rows, scratch):
    """`compare_block` of LANES tokens from `at` on into scratch.sums; returns their scales, one to a lane.

    codes, scales: of one KV head. Behind the last token zeros take the place of what lies in the cache.
    """
    sums, planes = ints_at(scratch.sums), ints_at(scratch.block)
    words, left = step.size // CODES_PER_WORD, step.length + step.new - at
    if left >= LANES:
        compare_block(form, codes, at, codes_w, words, query, 0, rows, sums, planes, step.manhattan)
        return load(scales, at)
    tail, lengths = ints_at(scratch.tail), floats_at(scratch.lanes)
    for lane in range(LANES):
        lengths[lane] = to_float(scales[at + lane]) if lane < left else ZERO
        for w in range(words):
            tail[w * LANES + lane] = codes[at + w * codes_w + lane] if lane < left else 0
    compare_block(form, tail, 0, LANES, words, query, 0, rows, sums, planes, step.manhattan)
    return load(lengths, 0)


@njit
def codes_of(layer, b, head):
    """The code words of one KV head's tokens."""
    return ints_at(layer.codes + 4 * (b * layer.codes_b + head * layer.codes_h))


@njit
def scales_of(layer, b, head):
    """The scales of one KV head's tokens."""
    return numbers_at(layer.scales + 2 * (b * layer.scales_b + head * layer.scales_h), Float16())


@njit
def estimate(form, step, layer, scratch, b, head, segment):
    """Rank one segment of the tokens of one KV head for all queries of its group.

    Query n ranks what it sees but for sinks and recents. Writes tokens at or above its threshold to rank and
    position, in order, counts all of them, also those without room, and leaves the mass of the others,
    relative to the threshold, in masses.
    """
    codes, scales = codes_of(layer, b, head), scales_of(layer, b, head)
    rows = step.group * step.new
    place = (b * step.kv_heads + head) * rows
    query, totals = ints_at(scratch.words + place * step.size), ints_at(scratch.totals + 4 * place)
    facts = floats_at(scratch.facts + 4 * FACTS * place)
    region = place * step.segments + segment
    counts, masses = ints_at(scratch.counts + 4 * region), floats_at(scratch.masses + 4 * region)
    rank = floats_at(scratch.rank + 4 * region * step.room)
    position = ints_at(scratch.position + 4 * region * step.room)
    sums, weights = ints_at(scratch.sums), floats_at(scratch.weights)
    for row in range(rows):
        counts[row * step.segments] = 0
        store(weights, row * LANES, splat(ZERO))
    end = step.length + 1 - step.recents
    first = segment * SEGMENT
    for at in range(first, min(first + SEGMENT, end + step.new - 1), LANES):
        scale = compare_tokens(form, step, codes, layer.codes_w, scales, at, query, rows, scratch)
        whole = at >= step.sinks and at + LANES <= end
        for row in range(rows):
            threshold = splat(facts[row * FACTS + THRESHOLD])
            ranks = rank_of(load(sums, row * LANES), totals[row], scale, step.manhattan)
            inside = ALL if whole else lanes_between(step.sinks - at, end + row % step.new - at)
            hits = mask_bits(ranks >= threshold) & inside
            if step.compensated:
                weight = exp((ranks - threshold) * splat(facts[row * FACTS + UNIT]))
                missed = where(mask_of_bits(inside & ~hits), weight, splat(ZERO))
                store(weights, row * LANES, load(weights, row * LANES) + missed)
            if hits:
                found = counts[row * step.segments]
                counts[row * step.segments] = found + count_bits(hits)
                if counts[row * step.segments] <= step.room:
                    slot = row * step.segments * step.room + found
                    store(sums, row * LANES, reinterpret(ranks))
                    while hits:
                        lane = lowest_bit(hits)
                        hits &= hits - 1
                        rank[slot] = float_from_bits(sums[row * LANES + lane])
                        position[slot] = at + lane
                        slot += 1
    for row in range(rows):
        masses[row * step.segments] = sum_lanes(load(weights, row * LANES))


@njit
def rank_all(form, step, layer, scratch, b, head, place, end, ranked, ranked_at):
    """Ranks and positions of the tokens sinks .. end - 1 for one query; returns how many."""
    codes, scales = codes_of(layer, b, head), scales_of(layer, b, head)
    query, total = ints_at(scratch.words + place * step.size), ints_at(scratch.totals)[place]
    for at in range(step.sinks, end, LANES):
        scale = compare_tokens(form, step, codes, layer.codes_w, scales, at, query, 1, scratch)
        store(ranked, at - step.sinks, rank_of(load(ints_at(scratch.sums), 0), total, scale, step.manhattan))
        for lane in range(LANES):
            ranked_at[at - step.sinks + lane] = at + lane
    return max(0, end - step.sinks)
