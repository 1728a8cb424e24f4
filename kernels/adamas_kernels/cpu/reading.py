"""Sparse reading of a chunk in compiled blocks: the products of `prefill.py`, for chosen blocks only.

Each query block first chooses its key blocks, then attends to the means of all others as if they were keys,
and finally, one range of keys after the other, to the chosen blocks.
"""

from __future__ import annotations

from functools import lru_cache
from math import log
from typing import NamedTuple

import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.floats import (
    KINDS,
    LEAST,
    LN2,
    ONE,
    ZERO,
    Kind,
    exp,
    exp_one,
    put_float,
    to_float,
)
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
from adamas_kernels.cpu.prefill import BLOCK, build_pack, cap_scores, pack_keys, put_query, weigh_row
from adamas_kernels.cpu.records import (
    FLASH,
    READ,
    bytes_at,
    flashes_at,
    floats_at,
    numbers_at,
    reads_at,
)
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.cpu.tile import (
    FACTORS,
    ROWS,
    TILE,
    Form,
    Shorts,
    Singles,
    form_of,
    key_words,
    multiply_panel,
    per_word,
    value_words,
    weights_for,
    zero_numbers,
)
from adamas_kernels.reading import (
    DEVIATIONS,
    KEY_BLOCK,
    QUERY_BLOCK,
    QUERY_STRIDE,
    BlockMeans,
    ReadSettings,
    blocks_of,
    count_blocks,
    near_block,
)
from adamas_kernels.softmax import PLAIN, Softmax

ROOM = -(-QUERY_BLOCK // ROWS) * ROWS  # rows of a query block, in whole tiles
SAMPLED = QUERY_BLOCK // QUERY_STRIDE  # queries of a block that are sampled to choose
SAMPLED_ROOM = -(-SAMPLED // ROWS) * ROWS
FLASH_BYTES = FLASH.itemsize  # from the record of means to the record of spreads
PANELS = BLOCK // TILE
RANGE = 16 * BLOCK  # keys that are repacked at a time, enough for the chosen ones to fill blocks
AT_ONCE = 4  # keys whose scores are summed side by side, to hide the latency of additions
assert KEY_BLOCK == TILE  # a panel holds a key block
assert SAMPLED == LANES  # and a vector holds the sampled queries of a query block

_near_block, _blocks_of = njit(near_block), njit(blocks_of)


@njit
def rows_of(flash, block):
    """The first query of a block, and its number of queries."""
    first = block * QUERY_BLOCK
    return first, min(QUERY_BLOCK, flash.new - first)


@njit
def sample_queries(kind, flash, head, first, count):
    """Every QUERY_STRIDE-th query of a block, then zeros: float32 [D, SAMPLED], one vector per coordinate."""
    source, sampled = numbers_at(flash.query, kind), np.zeros(SAMPLED * flash.dim, np.float32)
    for row in range(0, count, QUERY_STRIDE):
        at = head * flash.query_h + (first + row) * flash.query_n
        for d in range(flash.dim):
            sampled[d * SAMPLED + row // QUERY_STRIDE] = to_float(source[at + d])
    return sampled


@njit
def multiply_keys(kept, flash, sampled, kv_head, key, scores, at):
    """Scores of AT_ONCE keys from `key` on with all sampled queries, one vector per key."""
    keys = numbers_at(flash.key, kept)
    place, step = kv_head * flash.key_h + key * flash.key_n, flash.key_n
    a, b, c, e = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    for d in range(flash.dim):
        query = load(sampled, d * SAMPLED)
        a = multiply_add(splat(to_float(keys[place + d])), query, a)
        b = multiply_add(splat(to_float(keys[place + step + d])), query, b)
        c = multiply_add(splat(to_float(keys[place + 2 * step + d])), query, c)
        e = multiply_add(splat(to_float(keys[place + 3 * step + d])), query, e)
    store(scores, at, a)
    store(scores, at + SAMPLED, b)
    store(scores, at + 2 * SAMPLED, c)
    store(scores, at + 3 * SAMPLED, e)


@njit
def score_always(kept, flash, sampled, kv_head, first, count, near, tops):
    """Scores of sampled queries with the keys that are always read. Writes each query's largest to tops,
    float32 [SAMPLED], and returns the sums of exponentials relative to it.
    """
    end, start = flash.past + first + count, near * KEY_BLOCK
    found = np.empty((KEY_BLOCK + end - start + AT_ONCE) * SAMPLED, np.float32)
    for key in range(0, KEY_BLOCK, AT_ONCE):
        multiply_keys(kept, flash, sampled, kv_head, key, found, key * SAMPLED)
    # The last group ends at the last key and may overlap the one before: nothing after the end may be read.
    for key in range(start, end, AT_ONCE):
        key = min(key, end - AT_ONCE)
        multiply_keys(kept, flash, sampled, kv_head, key, found, (KEY_BLOCK + key - start) * SAMPLED)
    total = KEY_BLOCK + end - start
    scaling, cap = np.float32(flash.scaling), np.float32(flash.softcap)
    if cap:
        cap_scores(found, 0, total * SAMPLED, scaling, cap)
    unit, top = ONE if cap else scaling, splat(LEAST)
    for i in range(total):
        score = load(found, i * SAMPLED) * splat(unit)
        if i >= KEY_BLOCK:  # a query sees its own token and those before it
            key = start + i - KEY_BLOCK - flash.past - first
            score = where(lane_numbers() * splat(QUERY_STRIDE) < splat(key), splat(LEAST), score)
        store(found, i * SAMPLED, score)
        top = where(score > top, score, top)
    store(tops, 0, top)
    sums = splat(ZERO)
    for i in range(total):
        sums = sums + exp(load(found, i * SAMPLED) - top)
    store(found, 0, sums)
    return found[:SAMPLED]


@njit
def multiply_sampled(form, flash, sampled, squared, statistics, kv_head, tiles):
    """Products of sampled queries, or their squares, with the means or spreads of blocks: float32
    [SAMPLED_ROOM, tiles * TILE].
    """
    rows, words = zero_numbers(form, SAMPLED_ROOM * flash.dim), flash.dim // per_word(form)
    for row in range(SAMPLED):
        for d in range(flash.dim):
            number = sampled[d * SAMPLED + row]
            put_float(rows, row * flash.dim + d, number * number if squared else number)
    found = np.empty(SAMPLED_ROOM * tiles * TILE, np.float32)
    for tile in range(tiles):
        panel = statistics.packed_keys + 4 * (kv_head * statistics.room + tile) * TILE * words
        for top in range(0, SAMPLED_ROOM, ROWS):
            multiply_panel(
                form, rows.ctypes.data + 4 * top * words, 4 * words, panel, 4 * TILE,
                found.ctypes.data + 4 * (top * tiles + tile) * TILE, 4 * tiles * TILE, words, TILE, 0, 0,
            )  # fmt: skip
    return found


@njit
def add_spread(products, spreads, at, near):
    """Turn one query's products with the means into the assumed largest products of each block, in place."""
    for i in range(at, at + near):
        products[i] += np.float32(DEVIATIONS) * np.sqrt(max(spreads[i], ZERO))


@njit
def share(scores, at, near, unit, top, always, shares):
    """Update the largest shares of blocks from one query's scores from `at` on. top, always: its largest
    score with the keys that are always read, and the sum of exponentials relative to it.
    """
    scores[at] = LEAST  # exclude the first block and everything after the last
    for i in range(near, -(-near // LANES) * LANES):
        scores[at + i] = LEAST
    highest = splat(LEAST)
    for i in range(0, near, LANES):
        score = load(scores, at + i)
        highest = where(score > highest, score, highest)
    base = max(top, max_lanes(highest) * unit)
    total = splat(ZERO)
    for i in range(0, near, LANES):
        weight = exp(multiply_add(load(scores, at + i), splat(unit), splat(-base)))
        store(scores, at + i, weight)
        total = total + weight
    factor = splat(ONE / (always * exp_one(top - base) + sum_lanes(total)))
    for i in range(0, near, LANES):
        found, before = load(scores, at + i) * factor, load(shares, i)
        store(shares, i, where(found > before, found, before))


@njit
def choose(kind, kept, form, flash, means, spreads, read, head, block):
    """Write which key blocks a query block reads, see `reading.choose_blocks`."""
    first, count = rows_of(flash, block)
    near, end = _near_block(flash.past + first), _blocks_of(flash.past + first + count)
    chosen = bytes_at(read.chosen + (head * read.query_blocks + block) * read.blocks)
    for i in range(read.blocks):
        chosen[i] = i < end
    if near == 1:
        return
    kv_head, tiles = head // flash.group, -(-near // TILE)
    sampled, tops = sample_queries(kind, flash, head, first, count), np.empty(SAMPLED, np.float32)
    always = score_always(kept, flash, sampled, kv_head, first, count, near, tops)
    scores = multiply_sampled(form, flash, sampled, False, means, kv_head, tiles)
    of_spreads = multiply_sampled(form, flash, sampled, True, spreads, kv_head, tiles)
    shares = np.zeros(tiles * TILE, np.float32)
    cap, unit = np.float32(flash.softcap), np.float32(flash.scaling)
    for row in range(-(-count // QUERY_STRIDE)):
        at = row * tiles * TILE
        add_spread(scores, of_spreads, at, near)
        if cap:
            cap_scores(scores, at, near, unit, cap)
        share(scores, at, near, ONE if cap else unit, tops[row], always[row], shares)
    for i in range(1, near):
        chosen[i] = shares[i] > np.float32(read.tolerance)


@njit
def query_rows(kind, form, flash, head, first, count):
    """The queries of a block, in the format of words, then zeros: [ROOM, D]; and their units."""
    rows, units = zero_numbers(form, ROOM * flash.dim), np.zeros(ROOM * FACTORS, np.float32)
    source = numbers_at(flash.query, kind)
    for row in range(count):
        at = head * flash.query_h + (first + row) * flash.query_n
        put_query(form, source, at, flash.dim, rows, row * flash.dim, units, row)
    return rows, units


@njit
def multiply_panels(form, flash, rows, units, top, tiles, panels, scores, rests):
    """Products of ROWS queries, from `top` on, with the keys of packed tiles: float32 [ROWS, BLOCK]. rests:
    gets the addresses after the words of each tile.
    """
    words = flash.dim // per_word(form)
    for panel in range(panels):
        keys = flash.packed_keys + 4 * tiles[panel] * key_words(form, flash.dim)
        rests[panel] = keys + 4 * words * TILE
        multiply_panel(
            form, rows.ctypes.data + 4 * top * words, 4 * words, keys, 4 * TILE,
            scores.ctypes.data + 4 * panel * TILE, 4 * BLOCK, words, TILE, 0,
            units.ctypes.data + 4 * top * FACTORS,
        )  # fmt: skip


def add_panels(form, flash, weights, factors, tiles, panels, summed):
    """Add the weighted values of packed tiles to the sums of ROWS queries. factors: see `weigh_row`."""
    raise NotImplementedError


@overload(add_panels)
def _add_panels(form, flash, weights, factors, tiles, panels, summed):
    is_short = form.instance_class is Shorts  # then each tile has its own factors

    def add(form, flash, weights, factors, tiles, panels, summed):
        words, value_n = TILE // per_word(form), 4 * flash.dim_v
        panel = 0
        while panel < panels:
            end = panel + 1
            while not is_short and end < panels and tiles[end] == tiles[end - 1] + 1:
                end += 1
            multiply_panel(
                form, weights.ctypes.data + 4 * panel * words, 4 * BLOCK // per_word(form),
                flash.packed_values + 4 * tiles[panel] * value_words(form, flash.dim_v), value_n,
                summed, value_n, (end - panel) * words, flash.dim_v, 1,
                factors.ctypes.data + 4 * panel,
            )  # fmt: skip
            panel = end

    return add


@njit
def attend_to_means(kind, form, flash, means, read, head, block):
    """Attend from a query block to the means of the blocks that it skips; this starts its sums."""
    first, count = rows_of(flash, block)
    place = (head * read.query_blocks + block) * ROOM
    highest, sums = floats_at(flash.highest + 4 * place), floats_at(flash.sums + 4 * place)
    summed = flash.sum + 4 * place * flash.dim_v
    floats = floats_at(summed)
    for row in range(ROOM):
        highest[row], sums[row] = LEAST, ZERO
    for i in range(ROOM * flash.dim_v):
        floats[i] = ZERO
    near = _near_block(flash.past + first)
    chosen = bytes_at(read.chosen + (head * read.query_blocks + block) * read.blocks)
    scaling, cap = np.float32(flash.scaling), np.float32(flash.softcap)
    unit = ONE if cap else scaling
    rows, units = query_rows(kind, form, flash, head, first, count)
    scores = np.empty(ROWS * BLOCK, np.float32)
    weights, factors = weights_for(form, scores), np.empty(ROWS * FACTORS, np.float32)
    rests = np.zeros(PANELS, np.int64)
    shift, tiles = np.empty(BLOCK, np.float32), np.empty(PANELS, np.int64)
    for start in range(0, near, BLOCK):
        left = 0
        for i in range(BLOCK):
            is_left = 1 <= start + i < near and not chosen[start + i]
            shift[i] = np.float32(log(KEY_BLOCK)) / unit if is_left else LEAST
            left += is_left
        if not left:
            continue
        panels = min(PANELS, -(-(near - start) // TILE))
        for panel in range(panels):
            tiles[panel] = (head // flash.group) * means.room + start // TILE + panel
        for top in range(0, count, ROWS):
            multiply_panels(form, means, rows, units, top, tiles, panels, scores, rests)
            for row in range(ROWS):
                at = row * BLOCK
                if cap:
                    cap_scores(scores, at, panels * TILE, scaling, cap)
                for i in range(0, panels * TILE, LANES):
                    store(scores, at + i, load(scores, at + i) + load(shift, i))
                sum_row = floats_at(summed + 4 * (top + row) * flash.dim_v)
                width = panels * TILE
                weigh_row(
                    form, scores, at, weights, rests, factors, row * FACTORS, unit, width, width,
                    highest, sums, top + row, sum_row, flash.dim_v,
                )  # fmt: skip
            add_panels(form, means, weights, factors, tiles, panels, summed + 4 * top * flash.dim_v)


@njit
def attend_to_chosen(kind, form, flash, read, head, block):
    """Attend from a query block to its chosen blocks in the packed range of keys."""
    first, count = rows_of(flash, block)
    chosen = bytes_at(read.chosen + (head * read.query_blocks + block) * read.blocks + flash.first)
    tiles, found = np.empty(RANGE // TILE, np.int64), 0
    for tile in range(flash.count):
        if chosen[tile]:
            tiles[found] = tile
            found += 1
    place = (head * read.query_blocks + block) * ROOM
    highest, sums = floats_at(flash.highest + 4 * place), floats_at(flash.sums + 4 * place)
    summed = flash.sum + 4 * place * flash.dim_v
    if found:
        attend_to_tiles(kind, form, flash, head, first, count, tiles[:found], highest, sums, summed)
    if flash.last:
        out, floats = numbers_at(flash.out, kind), floats_at(summed)
        for row in range(count):
            at = head * flash.out_h + (first + row) * flash.out_n
            factor = ONE / sums[row]
            for i in range(flash.dim_v):
                put_float(out, at + i, floats[row * flash.dim_v + i] * factor)


@njit
def attend_to_tiles(kind, form, flash, head, first, count, chosen, highest, sums, summed):
    """Attend causally from `count` queries of a head, from `first` on, to the chosen packed tiles, given by
    their indices in the range.
    """
    rows, units = query_rows(kind, form, flash, head, first, count)
    scores = np.empty(ROWS * BLOCK, np.float32)
    weights, factors = weights_for(form, scores), np.empty(ROWS * FACTORS, np.float32)
    rests = np.zeros(PANELS, np.int64)
    scaling, cap = np.float32(flash.scaling), np.float32(flash.softcap)
    tiles = (head // flash.group) * flash.room + chosen
    for start in range(0, len(tiles), PANELS):
        panels = min(PANELS, len(tiles) - start)
        for top in range(0, count, ROWS):
            own = flash.past + first + top
            if (flash.first + chosen[start]) * TILE > own + ROWS - 1:
                continue
            multiply_panels(form, flash, rows, units, top, tiles[start:], panels, scores, rests)
            for row in range(ROWS):
                at = row * BLOCK
                if cap:
                    cap_scores(scores, at, panels * TILE, scaling, cap)
                for panel in range(panels):
                    seen = own + row + 1 - (flash.first + chosen[start + panel]) * TILE
                    for i in range(max(0, seen), TILE):
                        scores[at + panel * TILE + i] = LEAST
                sum_row = floats_at(summed + 4 * (top + row) * flash.dim_v)
                width, unit = panels * TILE, ONE if cap else scaling
                weigh_row(
                    form, scores, at, weights, rests, factors, row * FACTORS, unit, width, width,
                    highest, sums, top + row, sum_row, flash.dim_v,
                )  # fmt: skip
            add_panels(form, flash, weights, factors, tiles[start:], panels, summed + 4 * top * flash.dim_v)


class ReadStages(NamedTuple):
    """Addresses of the compiled stages. Tasks are tiles of a KV head for packing, and query blocks of a head
    otherwise.
    """

    pack: int
    pack_means: int
    pack_spreads: int
    choose: int
    attend_to_means: int
    attend_to_chosen: int


def form_of_means(form: Form) -> Form:
    """How means are multiplied, which are few: variances of keys have too wide a range for integers."""
    return Singles() if isinstance(form, Shorts) else form


@lru_cache(maxsize=None, typed=True)  # kinds are empty tuples that differ only in type
def build_reading(kind: Kind, kept: Kind, form: Form) -> ReadStages:
    """Compile the stages for queries and means of one kind, and keys and values of another, multiplied in
    this form.
    """
    stamp, of_means = source_stamp(), form_of_means(form)

    def pack_spreads_task(task, thread, flash_at, unused, unused_too):
        _ = stamp
        flash = flashes_at(flash_at)[0]
        pack_keys(kind, of_means, flash, task // flash.count, task % flash.count)

    def choose_task(task, thread, flash_at, means_at, read_at):
        _ = stamp
        read, spreads_at = reads_at(read_at)[0], means_at + FLASH_BYTES
        choose(
            kind, kept, of_means,
            flashes_at(flash_at)[0], flashes_at(means_at)[0], flashes_at(spreads_at)[0], read,
            task // read.query_blocks, task % read.query_blocks,
        )  # fmt: skip

    def means_task(task, thread, flash_at, means_at, read_at):
        _ = stamp
        read = reads_at(read_at)[0]
        attend_to_means(
            kind, of_means, flashes_at(flash_at)[0], flashes_at(means_at)[0], read,
            task // read.query_blocks, task % read.query_blocks,
        )  # fmt: skip

    def chosen_task(task, thread, flash_at, read_at, unused):
        _ = stamp
        read = reads_at(read_at)[0]
        attend_to_chosen(
            kind, form, flashes_at(flash_at)[0], read,
            task // read.query_blocks, task % read.query_blocks,
        )  # fmt: skip

    tasks = pack_spreads_task, choose_task, means_task, chosen_task
    return ReadStages(
        build_pack(kept, form), build_pack(kind, of_means), *(stage(task, STAGE) for task in tasks)
    )


def read_sparsely(
    runner: Runner,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    means: BlockMeans,
    scaling: float,
    settings: ReadSettings,
    softmax: Softmax = PLAIN,
    computed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`Backend.prefill_sparsely` for one sequence, without learned sinks; only for chunks without a
    `prefill.obstacle`. means: in the queries' dtype.

    Returns [1, H, N, D_v] in the queries' dtype, with the heads of a token side by side, and the log-sum-exp
    float32 [1, H, N].
    """
    heads, new, dim = queries.shape[1:]
    kv_heads, size, dim_v = values.shape[1:]
    kind, kept = KINDS[queries.dtype], KINDS[keys.dtype]
    form = form_of(kind, kept)
    query_blocks, whole = -(-new // QUERY_BLOCK), size // KEY_BLOCK
    out = torch.empty(1, new, heads, dim_v, dtype=queries.dtype).transpose(1, 2)
    chosen = torch.empty(1, heads, query_blocks, blocks_of(size), dtype=torch.uint8)
    rows = query_blocks * ROOM
    state = torch.empty(heads * rows * (dim_v + 2))
    highest, sums, summed = state.split([heads * rows, heads * rows, heads * rows * dim_v])
    shared = (
        rows, highest.data_ptr(), sums.data_ptr(), summed.data_ptr(), 0, scaling, softmax.softcap,
    )  # fmt: skip

    def record(
        form: Form, keys: Tensor, values: Tensor, past: int, new: int, room: int
    ) -> tuple[np.ndarray, Tensor]:
        """The record for attention to these keys and values, and the tensor for their packed tiles."""
        of_keys, of_values = (kv_heads * room * x for x in (key_words(form, dim), value_words(form, dim_v)))
        packed = torch.empty(of_keys + of_values)
        found = np.zeros(1, FLASH)
        found[0] = (
            queries.data_ptr(), *queries.stride()[1:3], keys.data_ptr(), *keys.stride()[1:3],
            values.data_ptr(), *values.stride()[1:3], out.data_ptr(), *out.stride()[1:3],
            kv_heads, heads // kv_heads, new, past, dim, dim_v,
            packed.data_ptr(), packed.data_ptr() + 4 * of_keys,
            room, 0, room, 0, *shared,
        )  # fmt: skip
        return found, packed

    tiles, tiles_of_means = blocks_of(size), -(-whole // TILE)
    flash, _packed = record(form, keys, values, size - new, new, RANGE // TILE)
    of_means = form_of_means(form)
    left, _packed_means = record(of_means, means.keys, means.values, 0, whole, tiles_of_means)
    spreads, _packed_spreads = record(of_means, means.spreads, means.values, 0, whole, tiles_of_means)
    statistics = np.concatenate([left, spreads])
    read = np.zeros(1, READ)
    read[0] = (chosen.data_ptr(), query_blocks, tiles, settings.tolerance)
    flash_at, means_at, read_at = (x.ctypes.data for x in (flash, statistics, read))
    stages = runner.compiled(build_reading, kind, kept, form)
    blocks = heads * query_blocks
    runner.run(
        (stages.pack_means, kv_heads * tiles_of_means, means_at, 0, 0),
        (stages.pack_spreads, kv_heads * tiles_of_means, means_at + FLASH_BYTES, 0, 0),
        (stages.choose, blocks, flash_at, means_at, read_at),
        (stages.attend_to_means, blocks, flash_at, means_at, read_at),
    )
    for first in range(0, tiles, RANGE // TILE):
        count = min(RANGE // TILE, tiles - first)
        flash["first"], flash["count"], flash["last"] = first, count, first + count == tiles
        runner.run(
            (stages.pack, kv_heads * count, flash_at, 0, 0),
            (stages.attend_to_chosen, blocks, flash_at, read_at, 0),
        )
    if computed is not None:
        count_blocks(chosen, new, size, computed)
    highest, sums = (
        x.view(heads, query_blocks, ROOM)[:, :, :QUERY_BLOCK].flatten(1)[:, :new] for x in (highest, sums)
    )
    return out, (LN2 * highest + sums.log()).unsqueeze(0)
