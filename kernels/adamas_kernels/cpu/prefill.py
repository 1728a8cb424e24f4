"""Attention of a chunk of queries over all keys before it, at the speed of matrix products.

Query blocks are multiplied by key blocks; scores, maxima and sums are float32, and only one block's scores
are kept at a time (FlashAttention, arXiv 2205.14135). Keys and values are repacked once per chunk, not once
per query block, one range at a time, so that this memory does not grow with the context. Key blocks in the
future of a whole query block are skipped. Queries of one KV head share its keys, without repeating them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from adamas_kernels.contract import Facts
from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.floats import KINDS, LEAST, LN2, LOG2_E, ONE, ZERO, Kind, capped, exp2, put_float
from adamas_kernels.cpu.lanes import (
    LANES,
    lane_numbers,
    load,
    max_lanes,
    multiply_add,
    splat,
    store,
    sum_lanes,
    where,
)
from adamas_kernels.cpu.records import FLASH, first_seen, flashes_at, floats_at, numbers_at
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.running import raise_highest
from adamas_kernels.cpu.shorts import pack_short_keys, pack_short_values, round_row, weigh_shorts
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.cpu.tile import (
    FACTORS,
    ROWS,
    TILE,
    Form,
    Shorts,
    form_of,
    key_words,
    multiply_panel,
    per_word,
    put_number,
    value_words,
    weights_for,
    word_of,
    words_at,
    zero_numbers,
)
from adamas_kernels.softmax import PLAIN, Softmax

BLOCK = 8 * TILE  # keys whose scores are kept at a time
SCORES = BLOCK + LANES  # stride between queries' scores: a power of two would cause L1 conflicts
RANGE = 4 * BLOCK  # keys that are repacked at a time
BLOCK_ROWS = 6 * ROWS  # queries of one head per task
ZERO_BITS = np.uint16(0)  # of a bfloat16


@njit
def pack_keys(kept, form, flash, head, tile):
    """Repack TILE keys of one KV head: coordinates of a key as words, keys side by side."""
    first, total = (flash.first + tile) * TILE, flash.past + flash.new
    place = (head * flash.room + tile) * key_words(form, flash.dim)
    put_keys(form, kept, flash, head, first, total, flash.packed_keys + 4 * place)


@njit
def pack_values(kept, form, flash, head, tile):
    """Repack TILE values of one KV head: neighbouring tokens as words."""
    first, total = (flash.first + tile) * TILE, flash.past + flash.new
    place = head * flash.room + tile
    of_keys = flash.packed_keys + 4 * (
        place * key_words(form, flash.dim) + flash.dim // per_word(form) * TILE
    )
    at = flash.packed_values + 4 * place * value_words(form, flash.dim_v)
    put_values(form, kept, flash, head, first, total, at, of_keys)


def put_keys(form, kept, flash, head, first, total, packed_at):
    """Write a packed tile of keys from `first` on to an address; keys from `total` on are zeros."""
    raise NotImplementedError


@overload(put_keys)
def _put_keys(form, kept, flash, head, first, total, packed_at):
    if form.instance_class is Shorts:
        return pack_short_keys

    def put(form, kept, flash, head, first, total, packed_at):
        keys, packed = numbers_at(flash.key, kept), words_at(form, packed_at)
        for i in range(TILE):
            at = head * flash.key_h + (first + i) * flash.key_n
            for word in range(flash.dim // per_word(form)):
                if first + i < total:
                    place = at + word * per_word(form)
                    packed[word * TILE + i] = word_of(form, keys[place], keys[place + per_word(form) - 1])
                else:
                    packed[word * TILE + i] = 0

    return put


def put_values(form, kept, flash, head, first, total, packed_at, of_keys):
    """The same of values. of_keys: the address of what follows the words of their keys, see `shorts.py`."""
    raise NotImplementedError


@overload(put_values)
def _put_values(form, kept, flash, head, first, total, packed_at, of_keys):
    if form.instance_class is Shorts:
        return pack_short_values

    def put(form, kept, flash, head, first, total, packed_at, of_keys):
        values, packed = numbers_at(flash.value, kept), words_at(form, packed_at)
        for word in range(TILE // per_word(form)):
            token = first + word * per_word(form)
            at, out = head * flash.value_h + token * flash.value_n, word * flash.dim_v
            upper = at + (per_word(form) - 1) * flash.value_n
            if token + per_word(form) <= total:
                for d in range(flash.dim_v):
                    packed[out + d] = word_of(form, values[at + d], values[upper + d])
            else:
                for d in range(flash.dim_v):
                    packed[out + d] = word_of(form, values[at + d], ZERO_BITS) if token < total else 0

    return put


def put_query(form, source, at, dim, query, place, units, row):
    """Write a query in the format of words, and its unit if the form has one."""
    raise NotImplementedError


@overload(put_query)
def _put_query(form, source, at, dim, query, place, units, row):
    if form.instance_class is Shorts:

        def put(form, source, at, dim, query, place, units, row):
            units[row * FACTORS] = round_row(source, at, dim, query, place)
    else:

        def put(form, source, at, dim, query, place, units, row):
            for d in range(dim):
                put_number(query, place + d, source[at + d])

    return put


@njit
def cap_scores(scores, at, count, scaling, cap):
    """Products -> soft-capped scores, in place. Writes up to the next block of lanes."""
    for i in range(0, count, LANES):
        store(scores, at + i, capped(load(scores, at + i) * splat(scaling), cap))


@njit
def hide_before(scores, at, hidden):
    """Give the first `hidden` scores no weight."""
    for i in range(hidden):
        scores[at + i] = LEAST


def weigh_row(
    form, scores, at, weights, tiles, factors, place, scaling, seen, width, highest, sums, row, sum_row, dim_v
):
    """Scores of one query -> its weights, in the format of words; updates its maximum, sum and summed values.

    seen: how many of the `width` keys, a multiple of TILE, the query attends to. Maxima are exponents of 2.
    tiles: see `shorts.py`. factors: float32; with `Shorts`, it has room for FACTORS from `place` on and gets
    what the weights of each tile are multiplied by.
    """
    raise NotImplementedError


@overload(weigh_row)
def _weigh_row(
    form, scores, at, weights, tiles, factors, place, scaling, seen, width, highest, sums, row, sum_row, dim_v
):
    return weigh_shorts if form.instance_class is Shorts else weigh_floats


def weigh_floats(
    form, scores, at, weights, tiles, factors, place, scaling, seen, width, highest, sums, row, sum_row, dim_v
):
    """`weigh_row`, with floats as weights."""
    scaling *= LOG2_E
    top = splat(LEAST)
    whole = seen // LANES * LANES
    for i in range(0, whole, LANES):
        part = load(scores, at + i)
        top = where(part > top, part, top)
    if whole < seen:
        inside = lane_numbers() < splat(seen - whole)
        part = where(inside, load(scores, at + whole), splat(LEAST))
        store(scores, at + whole, part)
        top = where(part > top, part, top)
    for i in range(-(-seen // LANES) * LANES, width, LANES):
        store(scores, at + i, splat(LEAST))
    found = max_lanes(top) * scaling
    raise_highest(found, highest, sums, row, sum_row, dim_v)
    base = splat(-highest[row] if highest[row] > LEAST else ZERO)
    total = splat(ZERO)
    for i in range(0, width, LANES):
        weight = exp2(multiply_add(load(scores, at + i), splat(scaling), base))
        total = total + weight
        store(weights, at + i, weight)
    sums[row] += sum_lanes(total)


@njit
def meet(flash, row, key, count):
    """Whether any of ROWS queries from `row` on sees any of `count` keys from `key` on."""
    first = flash.past + row
    return key <= first + ROWS - 1 and key + count > first_seen(flash.window, first)


@njit
def weigh_rows(
    form, flash, scores, weights, tiles, factors, first_row, rows, key, panels, highest, sums, summed
):
    """`weigh_row` for some queries and `panels` tiles of keys from `key` on."""
    scaling, cap = np.float32(flash.scaling), np.float32(flash.softcap)
    for top in range(0, rows, ROWS):
        if not meet(flash, first_row + top, key, panels * TILE):
            continue
        last = flash.past + first_row + top + ROWS - 1
        end = min(panels, (last - key) // TILE + 1) * TILE
        for row in range(top, top + ROWS):
            own = flash.past + first_row + row
            seen = max(0, min(end, own + 1 - key))
            if cap:
                cap_scores(scores, row * SCORES, seen, scaling, cap)
            hidden = first_seen(flash.window, own) - key
            if hidden > 0:
                hide_before(scores, row * SCORES, min(hidden, seen))
            factor, sum_row = ONE if cap else scaling, floats_at(summed + 4 * row * flash.dim_v)
            weigh_row(
                form, scores, row * SCORES, weights, tiles, factors, row * FACTORS, factor, seen, end,
                highest, sums, row, sum_row, flash.dim_v,
            )  # fmt: skip


@njit
def attend_block(kind, form, flash, head, block):
    """Attend from BLOCK_ROWS queries of one head to the packed range of keys.

    A tile of keys or values stays in the L1 cache while all these queries use it.
    """
    first_row = block * BLOCK_ROWS
    count = min(BLOCK_ROWS, flash.new - first_row)
    words, of_values, value_n = flash.dim // per_word(form), TILE // per_word(form), 4 * flash.dim_v
    rests = np.zeros(BLOCK // TILE, np.int64)  # addresses after the words of tiles of keys
    query, units = zero_numbers(form, BLOCK_ROWS * flash.dim), np.zeros(BLOCK_ROWS * FACTORS, np.float32)
    scores = np.empty(BLOCK_ROWS * SCORES, np.float32)
    weights, factors = weights_for(form, scores), np.empty(BLOCK_ROWS * FACTORS, np.float32)
    source = numbers_at(flash.query, kind)
    for row in range(count):
        at = head * flash.query_h + (first_row + row) * flash.query_n
        put_query(form, source, at, flash.dim, query, row * flash.dim, units, row)
    place = head * flash.rows + first_row
    highest, sums = floats_at(flash.highest + 4 * place), floats_at(flash.sums + 4 * place)
    summed = flash.sum + 4 * place * flash.dim_v
    if flash.first == 0:
        for row in range(BLOCK_ROWS):
            highest[row], sums[row] = LEAST, ZERO
        floats = floats_at(summed)
        for i in range(BLOCK_ROWS * flash.dim_v):
            floats[i] = ZERO
    tiles = (head // flash.group) * flash.room
    for start in range(0, flash.count * TILE, BLOCK):
        key = flash.first * TILE + start
        if key > flash.past + first_row + count - 1:
            break
        tile = tiles + start // TILE
        panels = min(BLOCK, flash.count * TILE - start) // TILE
        for panel in range(panels):
            keys = flash.packed_keys + 4 * (tile + panel) * key_words(form, flash.dim)
            rests[panel] = keys + 4 * words * TILE
            for top in range(0, count, ROWS):
                if meet(flash, first_row + top, key + panel * TILE, TILE):
                    multiply_panel(
                        form, query.ctypes.data + 4 * top * words, 4 * words, keys, 4 * TILE,
                        scores.ctypes.data + 4 * (top * SCORES + panel * TILE), 4 * SCORES, words, TILE, 0,
                        units.ctypes.data + 4 * top * FACTORS,
                    )  # fmt: skip
        weigh_rows(
            form, flash, scores, weights, rests, factors, first_row, count, key, panels, highest, sums, summed
        )
        for panel in range(panels):
            values = flash.packed_values + 4 * (tile + panel) * value_words(form, flash.dim_v)
            for top in range(0, count, ROWS):
                if meet(flash, first_row + top, key + panel * TILE, TILE):
                    place = (top * SCORES + panel * TILE) // per_word(form)
                    multiply_panel(
                        form, weights.ctypes.data + 4 * place, 4 * SCORES // per_word(form), values, value_n,
                        summed + top * value_n, value_n, of_values, flash.dim_v, 1,
                        factors.ctypes.data + 4 * (top * FACTORS + panel),
                    )  # fmt: skip
    if flash.last:
        out, floats = numbers_at(flash.out, kind), floats_at(summed)
        for row in range(count):
            at = head * flash.out_h + (first_row + row) * flash.out_n
            factor = ONE / sums[row]
            for i in range(flash.dim_v):
                put_float(out, at + i, floats[row * flash.dim_v + i] * factor)


class FlashStages(NamedTuple):
    """Addresses of the compiled stages for one range of keys: tasks are tiles of a KV head, then query
    blocks.
    """

    pack: int
    attend: int


@lru_cache(maxsize=None, typed=True)  # kinds are empty tuples that differ only in type
def build_pack(kept: Kind, form: Form) -> int:
    """Compile the stage that packs a range of keys and their values; tasks are tiles of a KV head."""
    stamp = source_stamp()

    def pack_task(task, thread, flash_at, unused, unused_too):
        _ = stamp
        flash = flashes_at(flash_at)[0]
        pack_keys(kept, form, flash, task // flash.count, task % flash.count)
        pack_values(kept, form, flash, task // flash.count, task % flash.count)

    return stage(pack_task, STAGE)


@lru_cache(maxsize=None, typed=True)
def build_flash(kind: Kind, kept: Kind, form: Form) -> FlashStages:
    """Compile the stages for queries of one kind, and keys and values of another, multiplied in this form."""
    stamp = source_stamp()

    def attend_task(task, thread, flash_at, unused, unused_too):
        _ = stamp
        flash = flashes_at(flash_at)[0]
        blocks = -(-flash.new // BLOCK_ROWS)
        # The last blocks see the most keys: start with them, so that threads end together.
        attend_block(kind, form, flash, task // blocks, blocks - 1 - task % blocks)

    return FlashStages(build_pack(kept, form), stage(attend_task, STAGE))


def flash_attention(
    runner: Runner, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax = PLAIN
) -> tuple[Tensor, Tensor]:
    """Causal attention of the newest N tokens, queries [1, H, N, D], over keys and values [1, K, S, D],
    without learned sinks.

    Returns [1, H, N, D_v] in the queries' dtype, with the heads of a token side by side, and the log-sum-exp
    float32 [1, H, N]. See `obstacle`.
    """
    kind, kept = KINDS[queries.dtype], KINDS[keys.dtype]
    form = form_of(kind, kept)
    heads, new, dim = queries.shape[1:]
    kv_heads, size, dim_v = values.shape[1:]
    rows = -(-new // BLOCK_ROWS) * BLOCK_ROWS
    out = torch.empty(1, new, heads, dim_v, dtype=queries.dtype).transpose(1, 2)
    state = torch.empty(heads * rows * (dim_v + 2))
    of_keys = kv_heads * RANGE // TILE * key_words(form, dim)
    of_values = kv_heads * RANGE // TILE * value_words(form, dim_v)
    packed = torch.empty(of_keys + of_values)
    sums_at = state.data_ptr() + 4 * heads * rows
    record = np.zeros(1, FLASH)
    record[0] = (
        queries.data_ptr(), *queries.stride()[1:3], keys.data_ptr(), *keys.stride()[1:3],
        values.data_ptr(), *values.stride()[1:3], out.data_ptr(), *out.stride()[1:3],
        kv_heads, heads // kv_heads, new, size - new, dim, dim_v,
        packed.data_ptr(), packed.data_ptr() + 4 * of_keys, RANGE // TILE, 0, 0, 0, rows,
        state.data_ptr(), sums_at, sums_at + 4 * heads * rows, softmax.window or 0, scaling, softmax.softcap,
    )  # fmt: skip
    stages = runner.compiled(build_flash, kind, kept, form)
    tiles, blocks = -(-size // TILE), heads * rows // BLOCK_ROWS
    for first in range(0, tiles, RANGE // TILE):
        count = min(RANGE // TILE, tiles - first)
        record["first"], record["count"], record["last"] = first, count, first + count == tiles
        runner.run(
            (stages.pack, kv_heads * count, record.ctypes.data, 0, 0),
            (stages.attend, blocks, record.ctypes.data, 0, 0),
        )
    highest, sums = state[: 2 * heads * rows].view(2, heads, rows)[:, :, :new]
    return out, (LN2 * highest + sums.log()).unsqueeze(0)


def obstacle(facts: Facts) -> str | None:
    """A short reason why `flash_attention` cannot compute this on a CPU, or None if it can."""
    if facts.dtype not in KINDS or (facts.kept not in KINDS):
        return "queries, or keys and values, are not of one number format of 16 or 32 bits"
    if facts.dim % 2 or facts.dim_v % LANES:
        return f"heads of {facts.dim} and {facts.dim_v} do not fill its vectors"
    return None if facts.rows else "rows are not contiguous"
