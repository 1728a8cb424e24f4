"""Attention of a chunk of queries over all keys before it, at the speed of bfloat16 matrix products.

Blocks of queries meet blocks of keys; scores, maxima and sums are float32 and leave the cache for no longer
than a block (FlashAttention, arXiv 2205.14135). Keys and values are repacked once per chunk, not once per
query block: a range of them at a time, so that the memory for it does not grow with the context. Blocks in
the future of all of a block's queries are skipped. Queries of one KV head share its keys; nothing is
repeated.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from adamas_kernels.contract import Facts
from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.features import MULTIPLIES_BFLOAT16
from adamas_kernels.cpu.floats import Bfloat16, capped, exp, put_float
from adamas_kernels.cpu.lanes import (
    LANES,
    first_lane,
    lane_numbers,
    load,
    max_lanes,
    multiply_add,
    splat,
    store,
    sum_lanes,
    where,
)
from adamas_kernels.cpu.records import FLASH, first_seen, flashes_at, floats_at, ints_at, numbers_at
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.cpu.tile import ROWS, multiply_narrow, multiply_wide
from adamas_kernels.softmax import PLAIN, Softmax

TILE = 64  # keys side by side in a packed panel
BLOCK = 4 * TILE  # keys whose scores are kept at a time
RANGE = 4 * BLOCK  # keys that are repacked at a time
BLOCK_ROWS = 8 * ROWS  # queries of one head to a task
LEAST = np.float32(-np.inf)
ZERO, ONE = np.float32(0), np.float32(1)


@njit
def pack_keys(flash, head, tile):
    """Repack TILE keys of one KV head: pairs of coordinates of a key to a word."""
    first, total = (flash.first + tile) * TILE, flash.past + flash.new
    keys = numbers_at(flash.key, Bfloat16())
    key_words = ints_at(flash.packed_keys + 4 * (head * flash.room + tile) * TILE * (flash.dim // 2))
    for i in range(TILE):
        at = head * flash.key_h + (first + i) * flash.key_n
        for d in range(flash.dim // 2):
            word = np.int32(0)
            if first + i < total:
                word = np.int32(keys[at + 2 * d]) | np.int32(keys[at + 2 * d + 1]) << np.int32(16)
            key_words[d * TILE + i] = word


@njit
def pack_values(flash, head, tile):
    """Repack TILE values of one KV head: pairs of values to a word."""
    first, total = (flash.first + tile) * TILE, flash.past + flash.new
    values = numbers_at(flash.value, Bfloat16())
    value_words = ints_at(flash.packed_values + 4 * (head * flash.room + tile) * (TILE // 2) * flash.dim_v)
    for i in range(0, TILE, 2):
        at = head * flash.value_h + (first + i) * flash.value_n
        out = i // 2 * flash.dim_v
        if first + i + 1 < total:
            for d in range(flash.dim_v):
                upper = np.int32(values[at + flash.value_n + d]) << np.int32(16)
                value_words[out + d] = np.int32(values[at + d]) | upper
        else:
            for d in range(flash.dim_v):
                value_words[out + d] = np.int32(values[at + d]) if first + i < total else np.int32(0)


@njit
def cap_scores(scores, at, count, scaling, cap):
    """Products -> soft-capped scores, in place. Writes up to the next block of lanes."""
    for i in range(0, count, LANES):
        store(scores, at + i, capped(load(scores, at + i) * splat(scaling), cap))


@njit
def hide_before(scores, at, hidden):
    """No weight for the first scores, `hidden` of them."""
    for i in range(hidden):
        scores[at + i] = LEAST


@njit
def weigh_row(scores, at, weights, scaling, seen, width, highest, sums, row, sum_row, dim_v):
    """Scores of one query -> its weights, bfloat16; its maximum, its sum and what it has summed up are
    brought along.

    seen: how many of the `width` keys, whole vectors of them, the query attends to.
    """
    top = splat(LEAST)
    whole = min(seen, width) // LANES * LANES
    for i in range(0, whole, LANES):
        part = load(scores, at + i)
        top = where(part > top, part, top)
    if whole < min(seen, width):
        inside = lane_numbers() < splat(seen - whole)
        part = where(inside, load(scores, at + whole), splat(LEAST))
        store(scores, at + whole, part)
        top = where(part > top, part, top)
    for i in range(max(0, -(-min(seen, width) // LANES) * LANES), width, LANES):
        store(scores, at + i, splat(LEAST))
    found = max_lanes(top) * scaling
    before = highest[row]
    if found > before:
        factor = first_lane(exp(splat(before - found)))
        highest[row] = found
        sums[row] *= factor
        for i in range(0, dim_v, LANES):
            store(sum_row, i, load(sum_row, i) * splat(factor))
    base = splat(-highest[row] if highest[row] > LEAST else ZERO)
    total = splat(ZERO)
    for i in range(0, width, LANES):
        weight = exp(multiply_add(load(scores, at + i), splat(scaling), base))
        total = total + weight
        store(weights, at + i, weight)
    sums[row] += sum_lanes(total)


@njit
def add_values(flash, weights, tile, summed, panels):
    """Add the values of some tiles with their weights, ROWS queries at a time, to what has been summed."""
    row_n, pairs = 4 * flash.dim_v, panels * TILE // 2
    values = flash.packed_values + 2 * tile * TILE * flash.dim_v
    if flash.dim_v % TILE == 0:
        for at in range(0, row_n, 4 * TILE):
            multiply_wide(weights, 2 * BLOCK, values + at, row_n, summed + at, row_n, pairs, 1)
    else:
        for at in range(0, row_n, 4 * LANES):
            multiply_narrow(weights, 2 * BLOCK, values + at, row_n, summed + at, row_n, pairs, 1)


@njit
def attend_block(flash, head, block):
    """Attend from BLOCK_ROWS queries of one head to the range of keys that is packed."""
    first_row = block * BLOCK_ROWS
    count = min(BLOCK_ROWS, flash.new - first_row)
    query = np.zeros(BLOCK_ROWS * flash.dim, np.uint16)
    scores, weights = np.empty(ROWS * BLOCK, np.float32), np.empty(ROWS * BLOCK, np.uint16)
    source = numbers_at(flash.query, Bfloat16())
    for row in range(count):
        at = head * flash.query_h + (first_row + row) * flash.query_n
        for d in range(flash.dim):
            query[row * flash.dim + d] = source[at + d]
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
    scaling, cap = np.float32(flash.scaling), np.float32(flash.softcap)
    for start in range(0, flash.count * TILE, BLOCK):
        key = flash.first * TILE + start
        tile = tiles + start // TILE
        if key > flash.past + first_row + count - 1:
            break
        panels = min(BLOCK, flash.count * TILE - start) // TILE
        for top in range(0, count, ROWS):
            if key > flash.past + first_row + top + ROWS - 1:
                continue
            if key + panels * TILE <= first_seen(flash.window, flash.past + first_row + top):
                continue  # before the windows of all these rows
            for panel in range(panels):
                multiply_wide(
                    query.ctypes.data + 2 * top * flash.dim, 2 * flash.dim,
                    flash.packed_keys + 4 * (tile + panel) * TILE * (flash.dim // 2), 4 * TILE,
                    scores.ctypes.data + 4 * panel * TILE, 4 * BLOCK, flash.dim // 2, 0,
                )  # fmt: skip
            for row in range(ROWS):
                own = flash.past + first_row + top + row
                seen = max(0, min(panels * TILE, own + 1 - key))
                if cap:
                    cap_scores(scores, row * BLOCK, seen, scaling, cap)
                hidden = first_seen(flash.window, own) - key
                if hidden > 0:
                    hide_before(scores, row * BLOCK, min(hidden, seen))
                sum_row = floats_at(summed + 4 * (top + row) * flash.dim_v)
                weigh_row(
                    scores,
                    row * BLOCK,
                    weights,
                    ONE if cap else scaling,
                    seen,
                    BLOCK,
                    highest,
                    sums,
                    top + row,
                    sum_row,
                    flash.dim_v,
                )
            add_values(flash, weights.ctypes.data, tile, summed + 4 * top * flash.dim_v, panels)
    if flash.last:
        out, floats = numbers_at(flash.out, Bfloat16()), floats_at(summed)
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


@cache
def build_flash() -> FlashStages:
    """Compile the stages."""
    stamp = source_stamp()

    def pack_task(task, thread, flash_at, unused, unused_too):
        _ = stamp
        flash = flashes_at(flash_at)[0]
        pack_keys(flash, task // flash.count, task % flash.count)
        pack_values(flash, task // flash.count, task % flash.count)

    def attend_task(task, thread, flash_at, unused, unused_too):
        _ = stamp
        flash = flashes_at(flash_at)[0]
        blocks = -(-flash.new // BLOCK_ROWS)
        # The last blocks see most keys: begin with them, so that threads end together.
        attend_block(flash, task // blocks, blocks - 1 - task % blocks)

    return FlashStages(stage(pack_task, STAGE), stage(attend_task, STAGE))


def flash_attention(
    runner: Runner, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax = PLAIN
) -> tuple[Tensor, Tensor]:
    """Causal attention of the newest N tokens, queries [1, H, N, D], over keys and values [1, K, S, D], all
    bfloat16; without learned sinks.

    Returns bfloat16 [1, H, N, D_v], whose heads lie side by side, and the log-sum-exp float32 [1, H, N]. See
    `obstacle`.
    """
    heads, new, dim = queries.shape[1:]
    kv_heads, size, dim_v = values.shape[1:]
    rows = -(-new // BLOCK_ROWS) * BLOCK_ROWS
    out = torch.empty(1, new, heads, dim_v, dtype=queries.dtype).transpose(1, 2)
    state = torch.empty(heads * rows * (dim_v + 2))
    packed = torch.empty(kv_heads * RANGE * (dim + dim_v) // 2)
    sums_at = state.data_ptr() + 4 * heads * rows
    record = np.zeros(1, FLASH)
    record[0] = (
        queries.data_ptr(), *queries.stride()[1:3], keys.data_ptr(), *keys.stride()[1:3],
        values.data_ptr(), *values.stride()[1:3], out.data_ptr(), *out.stride()[1:3],
        kv_heads, heads // kv_heads, new, size - new, dim, dim_v,
        packed.data_ptr(), packed.data_ptr() + 2 * kv_heads * RANGE * dim,
        RANGE // TILE, 0, 0, 0, rows, state.data_ptr(), sums_at, sums_at + 4 * heads * rows,
        softmax.window or 0, scaling, softmax.softcap,
    )  # fmt: skip
    stages = runner.compiled(build_flash)
    tiles, blocks = -(-size // TILE), heads * rows // BLOCK_ROWS
    for first in range(0, tiles, RANGE // TILE):
        count = min(RANGE // TILE, tiles - first)
        record["first"], record["count"], record["last"] = first, count, first + count == tiles
        runner.run(
            (stages.pack, kv_heads * count, record.ctypes.data, 0, 0),
            (stages.attend, blocks, record.ctypes.data, 0, 0),
        )
    highest, sums = state[: 2 * heads * rows].view(2, heads, rows)[:, :, :new]
    return out, (highest + sums.log()).unsqueeze(0)


def obstacle(facts: Facts) -> str | None:
    """Why `flash_attention` does not compute this on a CPU, in a few words, or None where it does."""
    if facts.dtype != torch.bfloat16:
        return "queries, keys and values are not all bfloat16"
    if not MULTIPLIES_BFLOAT16:
        return "this CPU has no product of bfloat16 pairs"
    if facts.dim % 2 or facts.dim_v % LANES:
        return f"heads of {facts.dim} and {facts.dim_v} do not fill its vectors"
    return None if facts.rows else "rows are not contiguous"
