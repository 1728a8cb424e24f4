"""Encodes chunks of keys that enter the cache in prefill."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.coding import clear_rows, encode_block, load_rows, multiply_rows, rotate
from adamas_kernels.cpu.floats import Float16, Kind, put_float
from adamas_kernels.cpu.lanes import LANES, store
from adamas_kernels.cpu.records import chunks_at, floats_at, ints_at, numbers_at
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.reference import CODES_PER_WORD

SHARE = 256  # keys of one head per task


@njit
def encode_rows(
    keys, key_at, key_n, rows, dim, size, mean, edge, balance, codes, codes_at, codes_n, codes_w,
    scales, scale_at, block, words, lengths,
):  # fmt: skip
    """Encode up to LANES keys of one head, from keys[key_at] to codes[codes_at] and scales[scale_at]."""
    load_rows(keys, key_at, key_n, rows, dim, size, block, 0)
    clear_rows(size, block, rows)
    multiply_rows(block, dim, balance)
    rotate(block, size)
    store(lengths, 0, encode_block(block, size, mean, edge, words))
    for w in range(size // CODES_PER_WORD):
        for row in range(rows):
            codes[codes_at + row * codes_n + w * codes_w] = words[w * LANES + row]
    for row in range(rows):
        put_float(scales, scale_at + row, lengths[row])


@njit
def encode_share(kind, chunk, pair, first):
    """Encode SHARE keys of one head, from `first` on."""
    b, head = pair // chunk.heads, pair % chunk.heads
    block = np.empty(chunk.size * LANES, np.float32)
    words = np.empty(chunk.size // CODES_PER_WORD * LANES, np.int32)
    lengths = np.empty(LANES, np.float32)
    key_at = b * chunk.keys_b + head * chunk.keys_h
    codes_at = b * chunk.codes_b + head * chunk.codes_h
    for row in range(first, min(first + SHARE, chunk.count), LANES):
        encode_rows(
            numbers_at(chunk.keys, kind), key_at + row * chunk.keys_n, chunk.keys_n,
            min(LANES, chunk.count - row), chunk.dim, chunk.size,
            floats_at(chunk.mean + 4 * pair * chunk.size), floats_at(chunk.edge)[pair],
            floats_at(chunk.balance + 4 * pair * chunk.size),
            ints_at(chunk.codes), codes_at + row * chunk.codes_n, chunk.codes_n, chunk.codes_w,
            numbers_at(chunk.scales, Float16()), b * chunk.scales_b + head * chunk.scales_h + row,
            block, words, lengths,
        )  # fmt: skip


@lru_cache(maxsize=None, typed=True)  # kinds are empty tuples that differ only in type
def build_encode(kind: Kind) -> int:
    """Compile the stage that encodes a share of keys of this kind; its first record is a CHUNK."""
    stamp = source_stamp()

    def encode_task(task, thread, address, unused, unused_too):
        _ = stamp
        chunk = chunks_at(address)[0]
        parts = (chunk.count + SHARE - 1) // SHARE
        encode_share(kind, chunk, task // parts, task % parts * SHARE)

    return stage(encode_task, STAGE)
