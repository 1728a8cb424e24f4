"""Sparse reading of a chunk in compiled blocks: the same products as `prefill.py`'s, of chosen blocks only.

First every block of queries chooses its blocks of keys, then it attends to the means of all others, as to
keys of their own, and at last, a range of keys after the other, to what it has chosen.
"""

from __future__ import annotations

from functools import cache
from math import log
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.floats import Bfloat16, exp, exp_one, put_float, to_float
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
from adamas_kernels.cpu.prefill import (
    BLOCK,
    LEAST,
    ONE,
    TILE,
    ZERO,
    add_values,
    cap_scores,
    pack_keys,
    pack_values,
    weigh_row,
)
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
from adamas_kernels.cpu.tile import ROWS, multiply_wide
from adamas_kernels.reading import (
    KEY_BLOCK,
    KEY_PART,
    QUERY_BLOCK,
    QUERY_PART,
    BlockMeans,
    ReadSettings,
    blocks_of,
    count_blocks,
    near_block,
)
from adamas_kernels.softmax import PLAIN, Softmax

ROOM = -(-QUERY_BLOCK // ROWS) * ROWS  # rows of a block of queries, whole tiles
POOLED = QUERY_BLOCK // QUERY_PART  # means of a block of queries
POOLED_ROOM = -(-POOLED // ROWS) * ROWS
PARTS = KEY_BLOCK // KEY_PART
PANELS = BLOCK // TILE
RANGE = 32 * BLOCK  # keys that are repacked at a time, so many that those chosen of them fill blocks
AT_ONCE = 4  # keys whose scores are summed side by side, to hide how long one addition takes
assert KEY_BLOCK == TILE  # a panel holds a block
assert POOLED == LANES  # and a vector the means of a block of queries

_near_block, _blocks_of = njit(near_block), njit(blocks_of)


@njit
def rows_of(flash, block):
    """The first query of a block, and how many they are."""
    first = block * QUERY_BLOCK
    return first, min(QUERY_BLOCK, flash.new - first)


@njit
def pool_queries(flash, head, first, count):
    """The means of each QUERY_PART queries, zeros behind the last: float32 [D, POOLED], a vector for each
    coordinate.
    """
    source, means = numbers_at(flash.query, Bfloat16()), np.zeros(POOLED * flash.dim, np.float32)
    for row in range(count):
        at, mean = head * flash.query_h + (first + row) * flash.query_n, row // QUERY_PART
        share = ONE / np.float32(min(QUERY_PART, count - mean * QUERY_PART))
        for d in range(flash.dim):
            means[d * POOLED + mean] += to_float(source[at + d]) * share
    return means


@njit
def multiply_keys(flash, means, kv_head, key, scores, at):
    """Scores of AT_ONCE keys, from one on, with all means of queries, each a vector."""
    keys = numbers_at(flash.key, Bfloat16())
    place, step = kv_head * flash.key_h + key * flash.key_n, flash.key_n
    a, b, c, e = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    for d in range(flash.dim):
        mean = load(means, d * POOLED)
        a = multiply_add(splat(to_float(keys[place + d])), mean, a)
        b = multiply_add(splat(to_float(keys[place + step + d])), mean, b)
        c = multiply_add(splat(to_float(keys[place + 2 * step + d])), mean, c)
        e = multiply_add(splat(to_float(keys[place + 3 * step + d])), mean, e)
    store(scores, at, a)
    store(scores, at + POOLED, b)
    store(scores, at + 2 * POOLED, c)
    store(scores, at + 3 * POOLED, e)


@njit
def score_always(flash, means, kv_head, first, count, near, tops):
    """The scores of means of queries with the keys that are always read: of each mean the largest, float32
    [POOLED], to tops; returned is the sum of the exponentials relative to that.
    """
    end, start = flash.past + first + count, near * KEY_BLOCK
    found = np.empty((KEY_BLOCK + end - start + AT_ONCE) * POOLED, np.float32)
    for key in range(0, KEY_BLOCK, AT_ONCE):
        multiply_keys(flash, means, kv_head, key, found, key * POOLED)
    # The last keys that fill a group are before the others: what lies behind the end is nobody's.
    for key in range(start, end, AT_ONCE):
        key = min(key, end - AT_ONCE)
        multiply_keys(flash, means, kv_head, key, found, (KEY_BLOCK + key - start) * POOLED)
    total = KEY_BLOCK + end - start
    scaling, cap = np.float32(flash.scaling), np.float32(flash.softcap)
    if cap:
        cap_scores(found, 0, total * POOLED, scaling, cap)
    unit, top = ONE if cap else scaling, splat(LEAST)
    for i in range(total):
        score = load(found, i * POOLED) * splat(unit)
        if i >= KEY_BLOCK:  # the last query of a mean sees its own token and those before it
            key = start + i - KEY_BLOCK - flash.past - first
            score = where(lane_numbers() < splat(key // QUERY_PART), splat(LEAST), score)
        store(found, i * POOLED, score)
        top = where(score > top, score, top)
    store(tops, 0, top)
    sums = splat(ZERO)
    for i in range(total):
        sums = sums + exp(load(found, i * POOLED) - top)
    store(found, 0, sums)
    return found[:POOLED]


@njit
def score_parts(flash, planes, means, kv_head, tiles):
    """Scores of means of queries with the means of parts of blocks, float32 [POOLED_ROOM, PARTS, tiles *
    TILE].
    """
    rows, width = np.zeros(POOLED_ROOM * flash.dim, np.uint16), tiles * TILE
    for row in range(POOLED):
        for d in range(flash.dim):
            put_float(rows, row * flash.dim + d, means[d * POOLED + row])
    found = np.empty(POOLED_ROOM * PARTS * width, np.float32)
    for part in range(PARTS):
        place = (kv_head * PARTS + part) * planes.room
        for tile in range(tiles):
            panel = planes.packed_keys + 4 * (place + tile) * TILE * (flash.dim // 2)
            for top in range(0, POOLED_ROOM, ROWS):
                multiply_wide(
                    rows.ctypes.data + 2 * top * flash.dim, 2 * flash.dim, panel, 4 * TILE,
                    found.ctypes.data + 4 * ((top * PARTS + part) * width + tile * TILE),
                    4 * PARTS * width, flash.dim // 2, 0,
                )  # fmt: skip
    return found


@njit
def lose(scores, at, width, near, unit, top, always, losses):
    """Bring along the largest losses of blocks by the scores of one mean of queries with their parts, [PARTS,
    width] from `at` on. top, always: the largest score with what is always read, and the sum of exponentials
    relative to it.
    """
    for part in range(PARTS):
        scores[at + part * width] = LEAST
        for i in range(near, -(-near // LANES) * LANES):
            scores[at + part * width + i] = LEAST
    highest = splat(LEAST)
    for part in range(PARTS):
        for i in range(0, near, LANES):
            score = load(scores, at + part * width + i)
            highest = where(score > highest, score, highest)
    base = max(top, max_lanes(highest) * unit)
    total = always * exp_one(top - base)
    masses = splat(ZERO)
    for i in range(0, near, LANES):
        mass, score = splat(ZERO), splat(ZERO)
        for part in range(PARTS):
            one = load(scores, at + part * width + i)
            mass = mass + exp(multiply_add(one, splat(unit), splat(-base)))
            score = score + one
        mass = mass * splat(np.float32(KEY_PART))
        of_mean = exp(multiply_add(score, splat(unit / np.float32(PARTS)), splat(-base)))
        store(scores, at + i, mass - of_mean * splat(np.float32(KEY_BLOCK)))
        masses = masses + mass
    share = ONE / (total + sum_lanes(masses))
    for i in range(0, near, LANES):
        loss = load(scores, at + i) * splat(share)
        before = load(losses, i)
        store(losses, i, where(loss > before, loss, before))


@njit
def choose(flash, planes, read, head, block):
    """Write which blocks of keys a block of queries reads, see `reading.choose_blocks`."""
    first, count = rows_of(flash, block)
    near, end = _near_block(flash.past + first), _blocks_of(flash.past + first + count)
    chosen = bytes_at(read.chosen + (head * read.query_blocks + block) * read.blocks)
    for i in range(read.blocks):
        chosen[i] = i < end
    if near == 1:
        return
    means, tops = pool_queries(flash, head, first, count), np.empty(POOLED, np.float32)
    always = score_always(flash, means, head // flash.group, first, count, near, tops)
    tiles = -(-near // TILE)
    width, scores = tiles * TILE, score_parts(flash, planes, means, head // flash.group, tiles)
    losses = np.zeros(width, np.float32)
    cap, unit = np.float32(flash.softcap), np.float32(flash.scaling)
    for row in range(-(-count // QUERY_PART)):
        at = row * PARTS * width
        if cap:
            cap_scores(scores, at, PARTS * width, unit, cap)
        lose(scores, at, width, near, ONE if cap else unit, tops[row], always[row], losses)
    for i in range(1, near):
        chosen[i] = losses[i] > np.float32(read.tolerance)


@njit
def rows_as_stored(flash, head, first, count):
    """Queries of a block, side by side, zeros behind the last: bfloat16 [ROOM, D]."""
    rows, source = np.zeros(ROOM * flash.dim, np.uint16), numbers_at(flash.query, Bfloat16())
    for row in range(count):
        at = head * flash.query_h + (first + row) * flash.query_n
        for d in range(flash.dim):
            rows[row * flash.dim + d] = source[at + d]
    return rows


@njit
def multiply_panels(flash, rows, top, tiles, panels, scores):
    """Products of ROWS queries, from `top` on, with the keys of packed tiles: float32 [ROWS, BLOCK]."""
    for panel in range(panels):
        multiply_wide(
            rows.ctypes.data + 2 * top * flash.dim, 2 * flash.dim,
            flash.packed_keys + 4 * tiles[panel] * TILE * (flash.dim // 2), 4 * TILE,
            scores.ctypes.data + 4 * panel * TILE, 4 * BLOCK, flash.dim // 2, 0,
        )  # fmt: skip


@njit
def add_panels(flash, weights, tiles, panels, summed):
    """Add the values of packed tiles with their weights to what ROWS queries have summed up."""
    panel = 0
    while panel < panels:
        end = panel + 1
        while end < panels and tiles[end] == tiles[end - 1] + 1:
            end += 1
        add_values(flash, weights.ctypes.data + 2 * panel * TILE, tiles[panel], summed, end - panel)
        panel = end


@njit
def attend_to_means(flash, means, read, head, block):
    """Attend from a block of queries to the means of the blocks that it leaves out, as the first that it
    attends to.
    """
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
    rows = rows_as_stored(flash, head, first, count)
    scores, weights = np.empty(ROWS * BLOCK, np.float32), np.empty(ROWS * BLOCK, np.uint16)
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
            multiply_panels(means, rows, top, tiles, panels, scores)
            for row in range(ROWS):
                at = row * BLOCK
                if cap:
                    cap_scores(scores, at, panels * TILE, scaling, cap)
                for i in range(0, panels * TILE, LANES):
                    store(scores, at + i, load(scores, at + i) + load(shift, i))
                sum_row = floats_at(summed + 4 * (top + row) * flash.dim_v)
                width = panels * TILE
                weigh_row(
                    scores, at, weights, unit, width, width, highest, sums, top + row, sum_row, flash.dim_v
                )
            add_panels(means, weights, tiles, panels, summed + 4 * top * flash.dim_v)


@njit
def attend_to_chosen(flash, read, head, block):
    """Attend from a block of queries to what it has chosen of the range of keys that is packed."""
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
        attend_to_tiles(flash, head, first, count, tiles[:found], highest, sums, summed)
    if flash.last:
        out, floats = numbers_at(flash.out, Bfloat16()), floats_at(summed)
        for row in range(count):
            at = head * flash.out_h + (first + row) * flash.out_n
            factor = ONE / sums[row]
            for i in range(flash.dim_v):
                put_float(out, at + i, floats[row * flash.dim_v + i] * factor)


@njit
def attend_to_tiles(flash, head, first, count, chosen, highest, sums, summed):
    """Attend from queries of a head, `count` from the first on, causally to packed tiles, by their numbers in
    the range.
    """
    rows = rows_as_stored(flash, head, first, count)
    scores, weights = np.empty(ROWS * BLOCK, np.float32), np.empty(ROWS * BLOCK, np.uint16)
    scaling, cap = np.float32(flash.scaling), np.float32(flash.softcap)
    tiles = (head // flash.group) * flash.room + chosen
    for start in range(0, len(tiles), PANELS):
        panels = min(PANELS, len(tiles) - start)
        for top in range(0, count, ROWS):
            own = flash.past + first + top
            if (flash.first + chosen[start]) * TILE > own + ROWS - 1:
                continue
            multiply_panels(flash, rows, top, tiles[start:], panels, scores)
            for row in range(ROWS):
                at = row * BLOCK
                if cap:
                    cap_scores(scores, at, panels * TILE, scaling, cap)
                for panel in range(panels):
                    seen = own + row + 1 - (flash.first + chosen[start + panel]) * TILE
                    for i in range(max(0, seen), TILE):
                        scores[at + panel * TILE + i] = LEAST
                sum_row = floats_at(summed + 4 * (top + row) * flash.dim_v)
                weigh_row(
                    scores,
                    at,
                    weights,
                    ONE if cap else scaling,
                    panels * TILE,
                    panels * TILE,
                    highest,
                    sums,
                    top + row,
                    sum_row,
                    flash.dim_v,
                )
            add_panels(flash, weights, tiles[start:], panels, summed + 4 * top * flash.dim_v)


class ReadStages(NamedTuple):
    """Addresses of the compiled stages. Tasks are tiles of a KV head where something is packed, blocks of
    queries of a head elsewhere.
    """

    pack_keys: int
    pack: int
    choose: int
    attend_to_means: int
    attend_to_chosen: int


@cache
def build_reading() -> ReadStages:
    """Compile the stages."""
    stamp = source_stamp()

    def pack_keys_task(task, thread, flash_at, unused, unused_too):
        _ = stamp
        flash = flashes_at(flash_at)[0]
        pack_keys(flash, task // flash.count, task % flash.count)

    def pack_task(task, thread, flash_at, unused, unused_too):
        _ = stamp
        flash = flashes_at(flash_at)[0]
        pack_keys(flash, task // flash.count, task % flash.count)
        pack_values(flash, task // flash.count, task % flash.count)

    def choose_task(task, thread, flash_at, planes_at, read_at):
        _ = stamp
        read = reads_at(read_at)[0]
        choose(
            flashes_at(flash_at)[0], flashes_at(planes_at)[0], read,
            task // read.query_blocks, task % read.query_blocks,
        )  # fmt: skip

    def means_task(task, thread, flash_at, means_at, read_at):
        _ = stamp
        read = reads_at(read_at)[0]
        attend_to_means(
            flashes_at(flash_at)[0], flashes_at(means_at)[0], read,
            task // read.query_blocks, task % read.query_blocks,
        )  # fmt: skip

    def chosen_task(task, thread, flash_at, read_at, unused):
        _ = stamp
        read = reads_at(read_at)[0]
        attend_to_chosen(flashes_at(flash_at)[0], read, task // read.query_blocks, task % read.query_blocks)

    tasks = pack_keys_task, pack_task, choose_task, means_task, chosen_task
    return ReadStages(*(stage(task, STAGE) for task in tasks))


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
    """`Backend.prefill_sparsely` of one sequence, all bfloat16, without learned sinks; for chunks that
    `prefill.obstacle` has nothing against.

    Returns bfloat16 [1, H, N, D_v], whose heads lie side by side, and the log-sum-exp float32 [1, H, N].
    """
    heads, new, dim = queries.shape[1:]
    kv_heads, size, dim_v = values.shape[1:]
    query_blocks, whole = -(-new // QUERY_BLOCK), size // KEY_BLOCK
    out = torch.empty(1, new, heads, dim_v, dtype=queries.dtype).transpose(1, 2)
    chosen = torch.empty(1, heads, query_blocks, blocks_of(size), dtype=torch.uint8)
    rows = query_blocks * ROOM
    state = torch.empty(heads * rows * (dim_v + 2))
    highest, sums, summed = state.split([heads * rows, heads * rows, heads * rows * dim_v])
    shared = (
        rows, highest.data_ptr(), sums.data_ptr(), summed.data_ptr(), 0, scaling, softmax.softcap,
    )  # fmt: skip

    def record(keys: Tensor, values: Tensor, past: int, new: int, room: int) -> tuple[np.ndarray, Tensor]:
        """What attends to these keys and values, in packed tiles, for which there is room in the tensor."""
        packed = torch.empty(len(keys[0]) * room * TILE * (dim + dim_v) // 2)
        found = np.zeros(1, FLASH)
        found[0] = (
            queries.data_ptr(), *queries.stride()[1:3], keys.data_ptr(), *keys.stride()[1:3],
            values.data_ptr(), *values.stride()[1:3], out.data_ptr(), *out.stride()[1:3],
            kv_heads, heads // kv_heads, new, past, dim, dim_v,
            packed.data_ptr(), packed.data_ptr() + 2 * len(keys[0]) * room * TILE * dim,
            room, 0, room, 0, *shared,
        )  # fmt: skip
        return found, packed

    parts = means.parts[:, :, : whole * PARTS].unflatten(2, (-1, PARTS)).transpose(2, 3).flatten(1, 2)
    tiles, tiles_of_means = blocks_of(size), -(-whole // TILE)
    flash, _packed = record(keys, values, size - new, new, RANGE // TILE)
    planes, _packed_parts = record(parts, parts, 0, whole, tiles_of_means)
    left, _packed_means = record(means.keys, means.values, 0, whole, tiles_of_means)
    read = np.zeros(1, READ)
    read[0] = (chosen.data_ptr(), query_blocks, tiles, settings.tolerance)
    flash_at, planes_at, left_at, read_at = (x.ctypes.data for x in (flash, planes, left, read))
    stages = runner.compiled(build_reading)
    blocks = heads * query_blocks
    runner.run(
        (stages.pack_keys, kv_heads * PARTS * tiles_of_means, planes_at, 0, 0),
        (stages.choose, blocks, flash_at, planes_at, read_at),
        (stages.pack, kv_heads * tiles_of_means, left_at, 0, 0),
        (stages.attend_to_means, blocks, flash_at, left_at, read_at),
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
    of_rows = (highest + sums.log()).view(heads, query_blocks, ROOM)[:, :, :QUERY_BLOCK]
    return out, of_rows.flatten(1)[:, :new].unsqueeze(0)
