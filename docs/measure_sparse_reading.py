"""Measures sparse reading of one layer's chunk on a GPU, against dense reading, for docs/performance.md.

    python docs/measure_sparse_reading.py [--heads 32/8x128] [--new 8192] [--lengths 32768,131072]
        [--densities 0.3,0.1,0.05] [--flex]

The choice is made on random numbers, which takes as long as on others; attention then reads the given share
of blocks, at random. --flex: also torch's flex_attention, without means, over as many blocks of 128 x 128.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from adamas_kernels.reading import KEY_BLOCK, QUERY_BLOCK, BlockMeans, ReadSettings, blocks_of, near_block
from adamas_kernels.softmax import PLAIN
from adamas_kernels.triton.prefill import causal_attention
from adamas_kernels.triton.reading import WORD, choose_blocks, summarize
from adamas_kernels.triton.sparse_prefill import attend_to_blocks
from torch import Tensor

DEVICE = torch.device("cuda")
FLEX_BLOCK = 128
REPEATS, IN_A_ROW = 7, 5
BUSY = 8192  # rows and columns of a product that keeps the GPU busy while the host prepares launches


def milliseconds(run: Callable[[], object]) -> float:
    """The median of several runs, in GPU time."""
    square = torch.zeros(BUSY, BUSY, dtype=torch.bfloat16, device=DEVICE)
    for _ in range(2):
        run()
    spent = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        square @ square
        start.record()
        for _ in range(IN_A_ROW):
            run()
        end.record()
        torch.cuda.synchronize()
        spent.append(start.elapsed_time(end) / IN_A_ROW)
    return statistics.median(spent)


def random_choice(heads: int, new: int, size: int, density: float) -> tuple[Tensor, Tensor, Tensor]:
    """Random blocks and those that are always read, as `choose_blocks` writes them."""
    past, pitch = size - new, -(-blocks_of(size) // WORD) * WORD
    starts = range(past, size, QUERY_BLOCK)
    whole = torch.tensor([start // KEY_BLOCK for start in starts], device=DEVICE)[:, None]
    near = torch.tensor([near_block(start) for start in starts], device=DEVICE)[:, None]
    block = torch.arange(pitch, device=DEVICE)
    chosen = torch.rand(1, heads, len(starts), pitch, device=DEVICE) < density
    chosen |= (block == 0) | (block >= near)
    listed = chosen & (block < whole)
    bits = (chosen.unflatten(-1, (-1, WORD)).long() << torch.arange(WORD, device=DEVICE)).sum(-1)
    lists = listed.int().argsort(dim=-1, descending=True, stable=True).int()
    return bits, lists, listed.sum(-1).int()


def flex_run(
    queries: Tensor, keys: Tensor, values: Tensor, density: float
) -> tuple[Callable[[], object], float]:
    """flex_attention over random blocks, and the number of scores that it computes."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    heads, new, size = queries.shape[1], queries.shape[2], keys.shape[2]
    past, across = size - new, new // FLEX_BLOCK
    own = past // FLEX_BLOCK + torch.arange(across, device=DEVICE)[:, None]
    block = torch.arange(size // FLEX_BLOCK, device=DEVICE)
    full = (torch.rand(heads, across, len(block), device=DEVICE) < density) & (block < own)
    partial = (block == own).expand_as(full)
    numbers = [x.sum(-1, dtype=torch.int32)[None] for x in (partial, full)]
    lists = [x.int().argsort(dim=-1, descending=True, stable=True).int()[None] for x in (partial, full)]
    mask = BlockMask.from_kv_blocks(
        numbers[0], lists[0], numbers[1], lists[1], BLOCK_SIZE=(FLEX_BLOCK, FLEX_BLOCK),
        mask_mod=lambda b, h, row, column: row + past >= column, seq_lengths=(new, size),
    )  # fmt: skip
    attend = torch.compile(flex_attention, dynamic=False)
    scores = (int(full.sum()) + 0.5 * int(partial.sum())) * FLEX_BLOCK**2
    return lambda: attend(queries, keys, values, block_mask=mask, enable_gqa=True, return_lse=True), scores


def measure(
    heads: int, kv_heads: int, dim: int, new: int, size: int, densities: list[float], flex: bool
) -> None:
    """Print the rows of one length."""
    queries = torch.randn(1, new, heads, dim, dtype=torch.bfloat16, device=DEVICE).transpose(1, 2)
    keys, values = (
        torch.randn(1, size, kv_heads, dim, dtype=torch.bfloat16, device=DEVICE).transpose(1, 2)
        for _ in range(2)
    )
    scaling, settings = dim**-0.5, ReadSettings()
    means = BlockMeans.empty(keys, values, blocks_of(size))
    summarize(keys, values, means, 0)
    dense = milliseconds(partial(causal_attention, queries, keys, values, scaling, PLAIN))
    kept = milliseconds(partial(summarize, keys, values, means, size - new))
    choice = milliseconds(partial(choose_blocks, queries, keys, means, scaling, settings, PLAIN))
    for density in densities:
        chosen = random_choice(heads, new, size, density)
        sparse = milliseconds(partial(attend_to_blocks, queries, keys, values, means, chosen, scaling))
        scores = float(chosen[2].sum()) * QUERY_BLOCK * KEY_BLOCK
        scores += heads * new * (QUERY_BLOCK / 2 + (size - new / 2) / KEY_BLOCK * (1 - density))
        speed = 4 * dim * scores / sparse / 1e9
        whole = sparse + choice + kept
        row = (
            f"| {new:,} of {size:,} | {density:.0%} | {dense:.2f} | {sparse:.2f} ({speed:.0f}) | {choice:.2f}"
        )
        row += f" ({choice / sparse:.0%}) | {kept:.2f} | {whole:.2f} | {dense / whole:.2f}x |"
        if flex:
            run, scores = flex_run(queries, keys, values, density)
            spent = milliseconds(run)
            row += f" {spent:.2f} ({4 * dim * scores / spent / 1e9:.0f}) |"
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", default="32/8x128")
    parser.add_argument("--new", type=int, default=8192)
    parser.add_argument("--lengths", default="32768,131072")
    parser.add_argument("--densities", default="0.3,0.1,0.05")
    parser.add_argument("--flex", action="store_true")
    options = parser.parse_args()
    heads, kv_heads, dim = map(int, options.heads.replace("/", "x").split("x"))
    columns = ["new of all", "blocks", "dense, ms", "attention, ms (TFLOP/s)", "choice (share)", "means"]
    columns += ["all", "faster"] + (["flex (TFLOP/s)"] if options.flex else [])
    print(f"| {' | '.join(columns)} |\n|---{'|---:' * (len(columns) - 1)}|")
    for size in map(int, options.lengths.split(",")):
        densities = [float(part) for part in options.densities.split(",")]
        measure(heads, kv_heads, dim, options.new, size, densities, options.flex)


if __name__ == "__main__":
    main()
