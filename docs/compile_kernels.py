"""Compile every Triton kernel for the supported NVIDIA generations, on any machine, and print what it takes.

    python docs/compile_kernels.py [--generations 80,90,120] [--kinds Q4_K,Q6_K] [--no-apart]

Exits with 1 if a kernel spills more registers to its stack than the limit recorded here, or if numbers are
not in the lanes that the assembly of tile.py and fragments.py expects.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from adamas_kernels import reference as ref
from adamas_kernels.blocks import BlockWeight, row_bytes
from adamas_kernels.contract import (
    APART_FIELDS,
    LARGEST_STEP,
    ApartCache,
    DenseCache,
    LayerCache,
    SparseSettings,
    allocate_codes,
)
from adamas_kernels.hot import HotRows
from adamas_kernels.packed import is_packed, row_size
from adamas_kernels.reading import BlockMeans, ReadSettings, blocks_of
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.triton.backend import TritonBackend
from adamas_kernels.triton.experts import Experts, Gate
from adamas_kernels.triton.fetch import fetch_kernel
from adamas_kernels.triton.launch import CHAINING_CAPABILITY
from adamas_kernels.triton.packed_dense import packed_dense_kernel
from adamas_kernels.triton.packed_rows import turn_kernel
from adamas_kernels.triton.plain_rows import plain_rows_kernel
from adamas_kernels.triton.plane_tiles import MANY_ROWS, MOST_IN_TILES
from adamas_kernels.triton.planes import PlaneWeight, split
from adamas_kernels.triton.prefill import banded_attention, merge_into
from adamas_kernels.triton.reading import choose_blocks, summarize
from adamas_kernels.triton.scratch import group_count
from adamas_kernels.triton.sparse_prefill import attend_to_blocks
from adamas_kernels.triton.sums import SLOTS, Sums
from adamas_kernels.triton.unpacking import unpack_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from adamas_cli.cache.hosted import HostRows

# Bytes of stack for spilled registers. Products of one row spill only with float32 inputs, those of a few
# only on the oldest generation, where they add a residual.
STACK_LIMIT = {
    "dense_kernel": 8,
    "latent_kernel": 104,
    "fetch_kernel": 8,
    "banded_kernel": 8,
    "plane_product_kernel": 32,
    "plane_tiles_kernel": 16,
    "sparse_prefill_kernel": 40,
    "select_kernel": 16,  # heads of 256
    "attend_once_kernel": 16,
    "merge_kernel": 8,
}
# Bytes of shared memory available to a program.
SHARED_LIMIT = {80: 166912, 90: 232448, 120: 101376}
CAPACITY = 131072  # tokens of the largest cache that kernels are made for
# The only layout allowed for operands of assembly that names lanes: number i in thread i.
IN_ORDER = r"(#\w+) = #ttg.blocked<{sizePerThread = \[1\], threadsPerWarp = \[32\],"
NAMING_LANES = ("estimate_tiles_kernel", "plane_tiles_kernel")
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "launch_pdl", "maxnreg")
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Weight types that together have all forms, and the products: outputs, inputs, rows.
KINDS = ("Q4_0", "Q4_K", "Q5_1", "Q6_K", "Q2_K", "Q8_0", "IQ4_XS")
PRODUCTS = (
    (4096, 4096, 1), (1536, 8960, 1), (1536, 8960, 8), (32768, 1024, 8), (4096, 4096, 16), (4096, 4096, 64)
)  # fmt: skip
ERROR = 2.0**-11
# As in gpt-oss and Gemma 2, besides windows.
WITH_SINKS, CAPPED = Softmax(sinks=torch.zeros(64, dtype=torch.bfloat16)), Softmax(softcap=50.0)
# Shapes set how much is unrolled, much alike for every generation, and compiling them takes minutes. So each
# is compiled for the generation of the measurements and one other, and each form of a kernel for all three.
EVERY, OLDER, NEWER = (80, 90, 120), (80, 90), (90, 120)
# scorer, dtype, query heads, KV heads, head_dim, new tokens, budget, error, softmax, generations
CASES = (
    ("dot", torch.float16, 32, 8, 128, 1, 128, None, PLAIN, NEWER),
    ("dot", torch.float16, 32, 32, 128, 1, 128, None, PLAIN, EVERY),
    ("dot", torch.float16, 32, 32, 128, 1, 128, ERROR, PLAIN, EVERY),
    ("dot", torch.bfloat16, 32, 8, 128, 1, 1472, None, PLAIN, OLDER),
    ("dot", torch.bfloat16, 32, 8, 128, 1, 1472, ERROR, PLAIN, NEWER),
    ("manhattan", torch.bfloat16, 14, 2, 64, 1, 64, None, PLAIN, EVERY),
    ("dot", torch.float32, 4, 1, 256, 16, 1024, None, PLAIN, NEWER),
    ("dot", torch.float32, 4, 1, 256, 16, 1024, ERROR, PLAIN, OLDER),
    ("dot", torch.bfloat16, 64, 8, 64, 1, 128, None, WITH_SINKS, EVERY),
    ("dot", torch.bfloat16, 8, 4, 256, 1, 1472, None, CAPPED, EVERY),
)
# Sparse reading: dtype, query heads, KV heads, head_dim, softmax
READINGS = (
    (torch.bfloat16, 32, 8, 128, PLAIN),
    (torch.bfloat16, 8, 4, 256, CAPPED),
)
# Formats of keys and values that are fetched from host memory: a model's own, and both packed ones.
KEPT = ((torch.bfloat16, torch.bfloat16), (torch.int8, torch.int8), (torch.int8, torch.uint8))
Launch = tuple[JITFunction, dict[str, Any], dict[str, Any]]


def launches(
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    new: int,
    settings: SparseSettings,
    softmax: Softmax,
    generation: int,
) -> list[Launch]:
    """The launches of a decode step, sparse and full, and of joining the parts of a chunk, as (kernel,
    arguments, options), recorded instead of run.
    """
    words = torch.zeros(1, kv_heads, ref.padded_dim(dim) // 16, 4096, dtype=torch.int32)
    keys = torch.zeros(1, kv_heads, 4096, dim, dtype=dtype)
    book = ref.fit_codebook(torch.randn(1, kv_heads, 8, dim), power=torch.ones(1, kv_heads, dim))
    cache = LayerCache(
        keys,
        keys.clone(),
        words.transpose(-1, -2),
        torch.zeros(1, kv_heads, 4096, dtype=torch.float16),
        torch.zeros(1, kv_heads, dim),
        book,
        torch.zeros(1, dtype=torch.int32),
    )
    q, k = torch.zeros(1, heads, new, dim, dtype=dtype), torch.zeros(1, kv_heads, new, dim, dtype=dtype)
    chained = generation >= 10 * CHAINING_CAPABILITY
    groups = group_count(torch.device("cuda"), settings.budget, CAPACITY)
    backend = TritonBackend(fast=True, chained=chained, groups=groups)
    out, lse = torch.zeros(1, heads, new, dim, dtype=dtype), torch.zeros(1, heads, new)
    with recorded() as found:
        backend.encode_keys(keys, book, cache.codes, cache.scales)
        backend.decode_step(q, k, k, cache, 0.1, settings, torch.zeros(1, 2, 4096), softmax)
        one_q, one_k = q[:, :, :1], k[:, :, :1]
        backend.dense_step(one_q, one_k, one_k, cache, 0.1, softmax)
        few_q, few_k = (x[:, :, :1].repeat(1, 1, LARGEST_STEP, 1) for x in (q, k))
        backend.dense_step(few_q, few_k, few_k, cache, 0.1, softmax)
        if softmax is not PLAIN:
            banded = replace(softmax, window=1024)
            backend.dense_step(one_q, one_k, one_k, cache, 0.1, banded)
            banded_attention(few_q, keys, keys, 0.1, banded)
        backend.linear(torch.zeros(1, heads * dim, dtype=dtype), torch.zeros(64, heads * dim, dtype=dtype))
        merge_into(out, lse, out, lse)
    return found


def kept_steps(formats: tuple[torch.dtype, torch.dtype], generation: int) -> list[Launch]:
    """The launches of a sparse and a full step over rows of keys and values in these formats, in memory that
    is slow to read, without those that do not differ from other steps', and of reading packed rows.
    """
    heads, kv_heads, dim, size, settings = 32, 8, 128, 4096, SparseSettings(budget=1472)
    rows = [
        torch.zeros(size, 1, kv_heads, row_size(dim, kind), dtype=kind).permute(1, 2, 0, 3)
        for kind in formats
    ]
    codes, scales = allocate_codes(rows[0], size)
    sums = torch.zeros(1, kv_heads, dim)
    book = ref.fit_codebook(torch.randn(1, kv_heads, 8, dim), power=torch.ones(1, kv_heads, dim))
    apart = HostRows(rows, size).seen
    hot = HotRows.beside(*apart, torch.device("cpu"), size, 4)
    hot = replace(hot, token=torch.zeros(1, kv_heads, size * heads, dtype=torch.int32))
    length = torch.zeros(1, dtype=torch.int32)
    cache = LayerCache(*apart, codes, scales, sums, book, length, sums.clone(), hot)
    q, k = (torch.zeros(1, count, 1, dim, dtype=torch.bfloat16) for count in (heads, kv_heads))
    groups = group_count(torch.device("cuda"), settings.budget, CAPACITY)
    backend = TritonBackend(fast=True, chained=generation >= 10 * CHAINING_CAPABILITY, groups=groups)
    with recorded() as found:
        backend.decode_step(q, k, k, cache, 0.1, settings)
        backend.dense_step(q, k, k, replace(cache, keys=rows[0], values=rows[1]), 0.1)
        for x, centre in zip(rows, (cache.centre, None), strict=True):
            if is_packed(x.dtype):
                backend.read_rows(x, torch.bfloat16, centre)
    others = (turn_kernel, fetch_kernel, plain_rows_kernel, packed_dense_kernel)
    return [it for it in found if it[0] in others or it[1].get("HOT") or it[1].get("PACKED")]


def latents(generation: int) -> list[Launch]:
    """The same of a token that attends to latents, with the widths of DeepSeek V3."""
    kept, rank = torch.zeros(1, 1, 4096, 576, dtype=torch.bfloat16), 512
    cache = DenseCache(kept, kept[..., :rank], torch.zeros(1, 1, rank), torch.zeros(1, dtype=torch.int32))
    chained, shared = generation >= 10 * CHAINING_CAPABILITY, SHARED_LIMIT[generation]
    backend = TritonBackend(chained=chained, shared=shared)
    queries, new = torch.zeros(1, 128, 1, 576, dtype=torch.bfloat16), kept[:, :, :1].clone()
    with recorded() as found:
        backend.dense_step(queries, new, new[..., :rank], cache, 0.1)
    return found


def batches(generation: int) -> list[Launch]:
    """The launches of steps of several sequences whose buffers lie apart."""
    heads, kv_heads, dim, count = 32, 8, 128, 16
    codes = torch.zeros(1, kv_heads, dim // 16, 4096, dtype=torch.int32).transpose(-1, -2)
    keys = torch.zeros(1, kv_heads, 4096, dim, dtype=torch.bfloat16)
    scales, total = torch.zeros(1, kv_heads, 4096, dtype=torch.float16), torch.zeros(1, kv_heads, dim)
    book = ref.fit_codebook(torch.randn(1, kv_heads, 8, dim), power=torch.ones(1, kv_heads, dim))
    length = torch.zeros(count, dtype=torch.int32)
    like = LayerCache(keys, keys.clone(), codes, scales, total, book, length[:1])
    places = torch.zeros(count + 1, len(APART_FIELDS), dtype=torch.int64)
    cache = ApartCache(like, length, places, 4096, shares=True)
    q, k = (torch.zeros(count, n, 1, dim, dtype=torch.bfloat16) for n in (heads, kv_heads))
    groups = group_count(torch.device("cuda"), 128, CAPACITY)
    backend = TritonBackend(fast=True, chained=generation >= 10 * CHAINING_CAPABILITY, groups=groups)
    with recorded() as found:
        for budget in (128, 1472):
            settings = SparseSettings(budget=budget)
            backend.decode_step(q, k, k, cache, 0.1, settings, torch.zeros(1, 2, 4096))
        backend.dense_step(q, k, k, cache, 0.1)
        backend.dense_step(q, k, k, cache, 0.1, Softmax(window=1024))
    return found


def readings(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int, softmax: Softmax, generation: int
) -> list[Launch]:
    """The launches of reading a chunk sparsely."""
    new, size = 2048, 4096
    queries = torch.zeros(1, heads, new, dim, dtype=dtype)
    keys = torch.zeros(1, kv_heads, size, dim, dtype=dtype)
    means = BlockMeans.empty(keys, keys, blocks_of(size))
    with recorded() as found:
        summarize(keys, keys, means, 0)
        chosen = choose_blocks(queries, keys, means, 0.1, ReadSettings(), softmax)
        attend_to_blocks(queries, keys, keys, means, chosen, 0.1, softmax, generation == 90)
    return found


def products(kind: str, outputs: int, inputs: int, rows: int, generation: int) -> list[Launch]:
    """The launches of products with a weight of this type."""
    blocks = torch.zeros(outputs, row_bytes(kind, inputs), dtype=torch.uint8)
    weight = split(BlockWeight(kind, blocks, inputs), torch.device("cpu"))
    assert isinstance(weight, PlaneWeight)
    x = torch.zeros(rows, inputs, dtype=torch.bfloat16)
    backend = TritonBackend(chained=generation >= 10 * CHAINING_CAPABILITY)
    few = 1 < rows <= MOST_IN_TILES
    adds = few and outputs < MANY_ROWS  # a residual, as a layer's last products do
    with recorded() as found:
        backend.linear(x, weight, x.new_zeros(rows, outputs) if adds else None)
        if few and kind == "Q4_K":
            backend.gated(x, weight)
            backend.norm(x, x[0], 1e-6)
        if rows == 1:
            backend.gated(x, weight)
            backend.linear(x.float(), weight)
    return found


def mixtures(generation: int) -> list[Launch]:
    """The launches of a layer's experts, for one token and for many."""
    count, hidden, inner, choices, many = 8, 512, 256, 2, 512
    weights = [
        split(
            BlockWeight(
                "Q4_K", torch.zeros(count * rows, row_bytes("Q4_K", columns), dtype=torch.uint8), columns
            ),
            torch.device("cpu"),
        )
        for rows, columns in ((2 * inner, hidden), (hidden, inner))
    ]
    gate_up, down = (weight for weight in weights if isinstance(weight, PlaneWeight))
    biases = (torch.zeros(count, rows, dtype=torch.bfloat16) for rows in (2 * inner, hidden))
    experts = Experts(count, [gate_up], down, *biases, Gate())
    backend = TritonBackend(chained=generation >= 10 * CHAINING_CAPABILITY)
    with recorded() as found:
        for tokens in (1, many):
            chosen = torch.zeros(tokens, choices, dtype=torch.int64)
            shares = torch.zeros(tokens, choices, dtype=torch.bfloat16)
            backend.mix(torch.zeros(tokens, hidden, dtype=torch.bfloat16), experts, chosen, shares)
    return [launch for launch in found if launch[0] is not unpack_kernel]  # products launch it too


def sum_over(ranks: int, generation: int) -> Launch:
    """The launch that sums a token's numbers over this many GPUs."""
    inboxes = [torch.zeros(SLOTS.value, ranks, 4096, dtype=torch.int64)] * ranks
    with recorded() as found:
        Sums(0, inboxes, chained=generation >= 10 * CHAINING_CAPABILITY).add(
            torch.zeros(4096, dtype=torch.bfloat16)
        )
    return found[0]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Records launches instead of running them."""
    found: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        found.append((self, inspect.signature(self.fn).bind(*args, **kwargs).arguments, options))

    run, JITFunction.run = JITFunction.run, record
    try:
        yield found
    finally:
        JITFunction.run = run


def compiled(launch: Launch, generation: int) -> Any:
    """A recorded launch, compiled for a generation."""
    kernel, arguments, options = launch
    constants = {p.name for p in kernel.params if p.is_constexpr}
    free = {p.name for p in kernel.params if p.do_not_specialize or p.do_not_specialize_on_alignment}
    signature, values, known = {}, {}, {}
    for place, (name, value) in enumerate(arguments.items()):
        # As a launch tells the compiler: tensors begin at multiples of 16 bytes, and so do most strides.
        if isinstance(value, torch.Tensor) or (
            isinstance(value, int) and value % 16 == 0 and name not in free
        ):
            known[place,] = [["tt.divisibility", 16]]
        if name in constants:
            signature[name], values[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    known = {at: fact for at, fact in known.items() if list(arguments)[at[0]] not in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=known)
    return triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)


def resources(result: Any) -> tuple[int, int, int]:
    """Registers, bytes of stack (for spills) and bytes of shared memory, as reported by cuobjdump."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(result.asm["cubin"])
        told = subprocess.run(
            [CUOBJDUMP, "-res-usage", file], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", told)[1]) for name in ("REG", "STACK"))
    return registers, stack, result.metadata.shared


def lanes_in_order(result: Any) -> bool:
    """Whether all assembly of a compiled kernel has number i in thread i, in loops without moves there."""
    text = result.asm["ttgir"]
    layouts = re.findall(IN_ORDER, text)
    used = set(re.findall(r"elementwise_inline_asm .*tensor<\w+, (#\w+)>", text))
    loops = "".join(re.findall(r"scf\.for .*?scf\.yield", text, re.DOTALL))
    return len(layouts) == 1 and used == set(layouts) and "convert_layout" not in loops


def all_launches(generation: int, kinds: Sequence[str], *, apart: bool) -> Iterator[tuple[str, Launch]]:
    """Every launch to compile, with its purpose. kinds: weight types of products. apart: also of sequences
    that lie apart, whose kernels differ only in where they find them.
    """
    for scorer, dtype, heads, kv_heads, dim, new, budget, error, softmax, generations in CASES:
        if generation not in generations:
            continue
        settings = SparseSettings(budget=budget, scorer=scorer, error=error)
        shape = f"{scorer}, {heads}/{kv_heads} heads of {dim}, {new} new, {TYPES[dtype]}"
        shape += ", to an error" if error else ""
        shape += ", with sinks" if softmax.sinks is not None else ", capped" if softmax.softcap else ""
        for launch in launches(dtype, heads, kv_heads, dim, new, settings, softmax, generation):
            yield shape, launch
    for formats in KEPT:
        for launch in kept_steps(formats, generation):
            yield f"rows of {' and '.join(TYPES[kind] for kind in formats)} in the host", launch
    for dtype, heads, kv_heads, dim, softmax in READINGS:
        for launch in readings(dtype, heads, kv_heads, dim, softmax, generation):
            yield f"reading, {heads}/{kv_heads} heads of {dim}, {TYPES[dtype]}", launch
    for kind, (outputs, inputs, rows) in itertools.product(kinds, PRODUCTS):
        for launch in products(kind, outputs, inputs, rows, generation):
            yield f"{kind}, {inputs} to {outputs}, {rows} rows", launch
    for launch in latents(generation):
        yield "one token, 128 heads over latents of 512 and 64", launch
    for launch in mixtures(generation):
        yield "experts in Q4_K", launch
    for ranks in (2, 8):
        yield f"the sum of a token over {ranks} GPUs", sum_over(ranks, generation)
    for launch in batches(generation) if apart else ():
        yield "sequences apart", launch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", default="80,90,120")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--apart", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    spilled = misplaced = False
    print("| kernel | for | generation | registers | shared bytes | stack bytes |")
    print("|---|---|---:|---:|---:|---:|")
    for generation in map(int, options.generations.split(",")):
        for shape, launch in all_launches(generation, options.kinds.split(","), apart=options.apart):
            result = compiled(launch, generation)
            name, (registers, stack, shared) = launch[0].fn.__name__, resources(result)
            print(f"| {name} | {shape} | sm_{generation} | {registers} | {shared} | {stack} |", flush=True)
            spilled |= stack > STACK_LIMIT.get(name, 0) or shared > SHARED_LIMIT[generation]
            misplaced |= name in NAMING_LANES and not lanes_in_order(result)
    return int(spilled or misplaced)


if __name__ == "__main__":
    raise SystemExit(main())
