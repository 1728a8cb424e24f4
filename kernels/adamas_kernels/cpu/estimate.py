"""One pass over the codes gives a rank for every token, and the highest rank of each group of tokens.

Each token has its own lane. The codes are read once for all queries of a KV head.
"""

from __future__ import annotations

import numpy as np

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.floats import Float16, to_float
from adamas_kernels.cpu.lanes import (
    LANES,
    count_bits,
    load,
    load_splat,
    mask_of_bits,
    splat,
    store,
    to_floats,
    where,
)
from adamas_kernels.cpu.largest import LEAST, LOWEST
from adamas_kernels.cpu.product import dot4
from adamas_kernels.cpu.records import REGION, SEGMENT, floats_at, ints_at, numbers_at
from adamas_kernels.reference import CODES_PER_WORD

ALL = (1 << LANES) - 1
CODES = 0x03030303
PLANE = 0x55555555
ZERO = np.float32(0)


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
    """A mask of the lanes first .. last - 1, clipped to existing lanes."""
    return ALL & ((1 << max(0, min(last, LANES))) - 1) & ~((1 << max(0, min(first, LANES))) - 1)


@njit
def compare_block(form, codes, at, codes_w, words, query, query_at, rows, sums, planes, manhattan):
    """Products of codes 0..3 with queries, or distances, int32 sums [rows * LANES].

    Tokens have `words` code words each, from codes[at] on; queries have 4 * words words each, from
    query[query_at] on, and distances use the first quarter of them. planes: int32 [4 * words * LANES], a
    buffer for unpacked codes.
    """
    if manhattan:
        for row in range(rows):
            total = splat(0)
            for w in range(words):
                other = load_splat(query, query_at + 4 * row * words + w)
                total = total + distance(load(codes, at + w * codes_w), other)
            store(sums, row * LANES, total)
        return
    for w in range(words):
        word = load(codes, at + w * codes_w)
        for i in range(4):
            store(planes, (4 * w + i) * LANES, (word >> splat(2 * i)) & splat(CODES))
    for row in range(0, rows - 1, 2):  # two queries share loaded codes
        first, second = query_at + 4 * row * words, query_at + 4 * (row + 1) * words
        even = odd = other_even = other_odd = splat(0)  # independent sums, so that none waits for another
        for i in range(0, 4 * words, 2):
            plane, next_plane = load(planes, i * LANES), load(planes, (i + 1) * LANES)
            even = dot4(form, even, plane, load_splat(query, first + i))
            odd = dot4(form, odd, next_plane, load_splat(query, first + i + 1))
            other_even = dot4(form, other_even, plane, load_splat(query, second + i))
            other_odd = dot4(form, other_odd, next_plane, load_splat(query, second + i + 1))
        store(sums, row * LANES, even + odd)
        store(sums, (row + 1) * LANES, other_even + other_odd)
    if rows % 2:
        first = query_at + 4 * (rows - 1) * words
        even = odd = splat(0)
        for i in range(0, 4 * words, 2):
            even = dot4(form, even, load(planes, i * LANES), load_splat(query, first + i))
            odd = dot4(form, odd, load(planes, (i + 1) * LANES), load_splat(query, first + i + 1))
        store(sums, (rows - 1) * LANES, even + odd)


@njit
def rank_of(found, total, scale, manhattan):
    """The reference's rank of one query from the sums of `compare_block`: higher is nearer."""
    if manhattan:
        return to_floats(splat(0) - found)
    return to_floats(found + found - splat(3 * total)) * scale


@njit
def compare_tokens(form, step, codes, codes_w, scales, at, query, rows, scratch):
    """`compare_block` of LANES tokens from `at` on into scratch.found; returns their scales, one per lane.

    codes, scales: of one KV head. After the last token, zeros replace the contents of the cache.
    """
    sums, planes = ints_at(scratch.found), ints_at(scratch.block)
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
def ranked_range(step, n):
    """The first token that the n-th new query ranks, and the one after the last. Visible tokens before are
    its sinks, and those after are its recents.
    """
    seen = step.length + n + 1
    first = min(step.sinks, seen)
    return first, max(first, seen - step.recents)


@njit
def estimate(form, step, layer, scratch, b, head, segment):
    """Rank one segment of the tokens of one KV head for all queries of its group.

    Query n ranks the tokens it sees, except sinks and recents, which get LEAST. Writes rank, and peaks: the
    highest rank of each group. The tokens of a group are `groups` apart, so that neighbours, which often rank
    high together, fall into different groups.
    """
    codes, scales = codes_of(layer, b, head), scales_of(layer, b, head)
    rows = step.group * step.new
    place = (b * step.kv_heads + head) * rows
    query, totals = ints_at(scratch.words + place * step.size), ints_at(scratch.totals + 4 * place)
    region = place * step.room + segment
    rank = floats_at(scratch.rank + 4 * region * REGION)
    peaks = floats_at(scratch.peaks + 4 * (place * step.peak_room + segment * step.groups))
    sums = ints_at(scratch.found)
    manhattan, groups = step.manhattan, step.groups
    rank_row, peak_row = step.room * REGION, step.peak_room
    for row in range(rows):
        for group in range(0, groups, LANES):
            store(peaks, row * peak_row + group, splat(LEAST))
    first, (_, last_end) = segment * SEGMENT, ranked_range(step, step.new - 1)
    _, first_end = ranked_range(step, 0)
    for at in range(first, min(first + SEGMENT, last_end), LANES):
        scale = compare_tokens(form, step, codes, layer.codes_w, scales, at, query, rows, scratch)
        whole = at >= step.sinks and at + LANES <= first_end
        group = (at - first) & (groups - 1)
        for row in range(rows):
            ranks = rank_of(load(sums, row * LANES), totals[row], scale, manhattan)
            ranks = where(ranks > splat(LOWEST), ranks, splat(LOWEST))  # also replaces NaN
            if not whole:
                begin, end = ranked_range(step, row % step.new)
                ranks = where(mask_of_bits(lanes_between(begin - at, end - at)), ranks, splat(LEAST))
            store(rank, row * rank_row + at - first, ranks)
            peak = load(peaks, row * peak_row + group)
            store(peaks, row * peak_row + group, where(ranks > peak, ranks, peak))
