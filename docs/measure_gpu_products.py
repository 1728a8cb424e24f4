"""Time products with weights in a file's own bits on a GPU, beside a device copy and the same in bfloat16.

    python docs/measure_gpu_products.py --check
    python docs/measure_gpu_products.py --shapes 8b,1.5b --kinds Q4_K,Q6_K --rows 4,8 --warps 2,4
    python docs/measure_gpu_products.py --shapes 8b --kinds Q4_0,Q4_1,Q4_K --torch 128,32
    python docs/measure_gpu_products.py --few 2,4,16,32 --tiles 1x8x2,2x4x4 --numbers
    python docs/measure_gpu_products.py --unpack
    python docs/measure_gpu_products.py --experts 1,8,64,512,4096 --kinds Q4_K,MXFP4

A time is the shortest of several replays of a CUDA graph of LAUNCHES products, which cycle through more
weights than fit into the L2 cache. The time of one row includes rounding x, and that of few rows arranging
it. --tiles: tiles of a program, the warps that share them, and the chunks that each loads at once. --torch:
also torch's own 4-bit product, tinygemm, with groups of this many inputs. --experts: the experts of one layer
of MIXTURES for this many tokens, with random choices. --check: compares every kernel and weight type with the
reference in float64.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from adamas_kernels.blocks import BlockWeight, block_size, row_bytes, unpack
from adamas_kernels.triton import plane_product
from adamas_kernels.triton.backend import TritonBackend
from adamas_kernels.triton.experts import Experts, Gate, add_chosen
from adamas_kernels.triton.grouped import add_grouped
from adamas_kernels.triton.linear import multiply_vector
from adamas_kernels.triton.plane_product import Tiling
from adamas_kernels.triton.plane_rows import multiply_numbers, multiply_rows
from adamas_kernels.triton.plane_tiles import TilesTiling, multiply_tiles, takes_tiles
from adamas_kernels.triton.planes import FORMS, PlaneWeight, split
from adamas_kernels.triton.unpacking import embed, unpack_rows
from torch import Tensor

# Outputs, inputs, and whether the outputs are a gate's and its other half's.
SHAPES = {
    "8b": (
        (6144, 4096, False),
        (4096, 4096, False),
        (28672, 4096, True),
        (4096, 14336, False),
        (128256, 4096, False),
    ),
    "1.5b": (
        (2048, 1536, False),
        (1536, 1536, False),
        (17920, 1536, True),
        (1536, 8960, False),
        (151936, 1536, False),
    ),
}


@dataclass(frozen=True)
class Mixture:
    """Widths of a layer's experts, their number, how many a token chooses, and the model's layers."""

    hidden: int
    inner: int
    count: int
    choices: int
    layers: int


MIXTURES = {
    "qwen3-30b-a3b": Mixture(2048, 768, 128, 8, 48),
    "gpt-oss-20b": Mixture(2880, 2880, 32, 4, 24),
    "mixtral-8x7b": Mixture(4096, 14336, 8, 2, 32),
}
LAUNCHES = 20
REPLAYS = 30
BEYOND_CACHE = 200 << 20  # bytes of all weights that a graph cycles through
PARTS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q8_M": (0, 2), "Q4_K": (0, 2),
         "Q5_K": (0, 2), "Q6_K": (208,), "MXFP4": ()}  # fmt: skip
INNER_TILES = 8  # of 16 inputs, stored together in tinygemm's weights
BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
Shape = tuple[int, int, bool]


def some_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> BlockWeight:
    """Random codes, with scales of ordinary size."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows, row_bytes(kind, columns)), dtype=np.uint8)
    blocks = raw.reshape(rows, -1, block_size(kind)[1])
    for at in PARTS.get(kind, (0,)):
        scales = random.normal(0, 0.01, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    if kind == "F8":  # without the two NaN codes
        blocks[..., 2:] = np.where(blocks[..., 2:] & 127 == 127, 5, blocks[..., 2:])
    if kind == "MXFP4":
        blocks[..., 0] = random.integers(115, 125, blocks.shape[:2])
    return BlockWeight(kind, torch.from_numpy(raw), columns)


def some_planes(kind: str, rows: int, columns: int) -> PlaneWeight:
    """Random bits on the GPU; only their number matters for timing."""
    form, chunks = FORMS[kind], columns // 32

    def bits(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randint(0, 100, shape, dtype=dtype, device="cuda")

    low = bits(torch.int32, rows, chunks, 4)
    high = bits(BYTES[form.high], rows, chunks, 4) if form.high else None
    scales = bits(torch.int8, rows, chunks, form.parts)
    units = None
    if form.units:
        units = torch.rand(rows, chunks // 8, 1 + form.minimum, dtype=torch.float16, device="cuda")
    else:
        scales = scales.half()
    table = torch.rand(16, device="cuda") if form.table else None
    return PlaneWeight(kind, columns, low, high, scales, units, table)


def microseconds(call: Callable[[int], object], launches: int = LAUNCHES) -> float:
    """Microseconds of one of `launches` calls in a CUDA graph, each told its number; least of REPLAYS."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call(0)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(launches):
            call(number)
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times) * 1000 / launches


def copy_rate() -> float:
    """Bytes/s that a device copy reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / microseconds(lambda _: target.copy_(source), 4) * 1e6


def copies(nbytes: int) -> int:
    """How many weights of this many bytes a graph cycles through."""
    return max(1, min(LAUNCHES, -(-BEYOND_CACHE // nbytes)))


def compile_one(kind: str, shape: Shape, tiles: Tiling, chained: bool) -> None:
    """Fill Triton's cache on disk, from a separate process."""
    _, columns, gated = shape
    weight, x = some_planes(kind, 64, columns), torch.randn(1, columns, dtype=torch.bfloat16, device="cuda")
    plane_product.multiply_vector(x, weight, gated=gated, tiles=tiles, chained=chained)
    torch.cuda.synchronize()


def vectors(options: argparse.Namespace) -> None:
    """Times of one row, for all shapes, kinds and tilings."""
    shapes = [shape for name in options.shapes for shape in SHAPES[name]]
    tilings = [
        Tiling(rows, sharing, beside)
        for rows, sharing, beside in itertools.product(options.rows, options.warps, options.beside)
    ]
    runs = list(itertools.product(options.kinds, shapes, tilings, options.chained))
    inputs = {(kind, (64, shape[1], shape[2]), tiles, chained) for kind, shape, tiles, chained in runs}
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, *zip(*inputs, strict=True)))
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}: a copy reads and writes {rate / 1e9:,.0f} GB/s\n")
    print("| shape | kind | rows | warps | beside | chained | us | GB/s | of a copy | times bfloat16 |")
    print("|---|---|---:|---:|---:|---|---:|---:|---:|---:|")
    best: dict[tuple[str, Shape], tuple[float, str]] = {}
    for shape in shapes:
        rows, columns, gated = shape
        x = torch.randn(1, columns, dtype=torch.bfloat16, device="cuda")
        number = copies(2 * rows * columns)
        plain = [torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda") for _ in range(number)]
        wide = microseconds(lambda i, x=x, plain=plain: multiply_vector(x, plain[i % len(plain)]))
        del plain
        name = f"{columns} to {rows}{' gated' if gated else ''}"
        print(f"| {name} | bfloat16 |  |  |  |  | {wide:.2f} | {2 * rows * columns / wide / 1e3:,.0f} | "
              f"{2e6 * rows * columns / wide / rate:.2f} | 1.00 |", flush=True)  # fmt: skip
        for group in options.torch:
            us, size = tinygemm(x, rows, columns, group)
            print(f"| {name} | torch, groups of {group} |  |  |  |  | {us:.2f} | {size / us / 1e3:,.0f} | "
                  f"{size * 1e6 / us / rate:.2f} | {wide / us:.2f} |", flush=True)  # fmt: skip
        for kind in options.kinds:
            first = some_planes(kind, rows, columns)
            weights = [first] + [some_planes(kind, rows, columns) for _ in range(copies(first.bytes) - 1)]
            for tiles, chained in itertools.product(tilings, options.chained):
                us = microseconds(
                    lambda i, x=x, w=weights, g=gated, t=tiles, c=chained: plane_product.multiply_vector(
                        x, w[i % len(w)], gated=g, tiles=t, chained=c
                    )
                )
                line = (
                    f"| {name} | {kind} | {tiles.rows} | {tiles.sharing} | {tiles.beside} | "
                    f"{bool(chained)} | "
                    f"{us:.2f} | {first.bytes / us / 1e3:,.0f} | "
                    f"{first.bytes * 1e6 / us / rate:.2f} | {wide / us:.2f} |"
                )
                print(line, flush=True)
                best[kind, shape] = min(best.get((kind, shape), (us, line)), (us, line))
    print("\nThe best of each:\n")
    for _, line in best.values():
        print(line)


def tinygemm(x: Tensor, rows: int, columns: int, group: int) -> tuple[float, int]:
    """Microseconds of torch's 4-bit product of one row, and the bytes that it reads for a weight."""

    def packed() -> tuple[Tensor, Tensor]:
        codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
        scales = torch.rand(columns // group, rows, 2, dtype=torch.bfloat16, device="cuda")
        return torch.ops.aten._convert_weight_to_int4pack(codes, INNER_TILES), scales

    first = packed()
    size = sum(part.nbytes for part in first)
    weights = [first] + [packed() for _ in range(copies(size) - 1)]

    def product(i: int) -> Tensor:
        weight, scales = weights[i % len(weights)]
        found: Tensor = torch.ops.aten._weight_int4pack_mm(x, weight, group, scales)
        return found

    return microseconds(product), size


def compile_few(kind: str, columns: int, few: int, tiles: TilesTiling | None) -> None:
    """Fill Triton's cache on disk, from a separate process. tiles: None for the kernel of numbers."""
    weight, x = some_planes(kind, 64, columns), torch.randn(few, columns, dtype=torch.bfloat16, device="cuda")
    if tiles is None:
        multiply_numbers(x, weight)
    else:
        multiply_tiles(x, weight, tiles=tiles)
    torch.cuda.synchronize()


def few_rows(options: argparse.Namespace) -> None:
    """Times of products of few rows with each tiling, beside one row, products of unpacked numbers, and
    unpacking with cuBLAS. Each result is compared with a product in float32.
    """
    begin = time.perf_counter()
    shapes = [shape[:2] for name in options.shapes for shape in SHAPES[name]]
    tilings = [TilesTiling(*map(int, text.split("x"))) for text in options.tiles]
    ways = [*tilings, None] if options.numbers else tilings
    inputs = {
        # One variant serves up to eight rows.
        (kind, columns, max(few, 8), way)
        for kind, (_, columns), few, way in itertools.product(options.kinds, shapes, options.few, ways)
    }
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_few, *zip(*inputs, strict=True)))
    print(f"{torch.cuda.get_device_name()}; compiled in {time.perf_counter() - begin:.0f} s; us\n")
    heads = [f"{tiles.tiles}x{tiles.warps}x{tiles.group}" for tiles in tilings]
    print("| shape | kind | rows of x | one row | cuBLAS | numbers | default | "
          f"{' | '.join(heads)} | best, GB/s | of one row | error |")  # fmt: skip
    print("|---|---|" + "---:|" * (8 + len(heads)))
    for (rows, columns), kind in itertools.product(shapes, options.kinds):
        first = some_planes(kind, rows, columns)
        weights = [first] + [some_planes(kind, rows, columns) for _ in range(copies(first.bytes) - 1)]
        buffer = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")
        exact = torch.empty(rows, columns, dtype=torch.float32, device="cuda")
        unpack_rows(first, exact)
        one = torch.randn(1, columns, dtype=torch.bfloat16, device="cuda")
        vector = microseconds(lambda i, w=weights, x=one: plane_product.multiply_vector(x, w[i % len(w)]))
        for few in options.few:
            x = torch.randn(few, columns, dtype=torch.bfloat16, device="cuda")

            def unpacked(i: int, w=weights, x=x, buffer=buffer) -> Tensor:
                unpack_rows(w[i % len(w)], buffer)
                return torch.nn.functional.linear(x, buffer)

            calls: dict[str, Callable[[int], Tensor]] = {"cuBLAS": unpacked}
            if options.numbers:
                calls["numbers"] = lambda i, x=x, w=weights: multiply_numbers(x, w[i % len(w)])
            for name, tiles in (("default", None), *zip(heads, tilings, strict=True)):
                calls[name] = lambda i, x=x, w=weights, t=tiles: multiply_tiles(x, w[i % len(w)], tiles=t)
            us = {name: microseconds(call) for name, call in calls.items()}
            expected = x.float() @ exact.T
            errors = [
                ((calls[name](0).float() - expected).abs().max() / expected.abs().max()).item()
                for name in ("default", *heads)
            ]
            assert max(errors) <= torch.finfo(x.dtype).eps, (rows, columns, kind, few, errors)
            best = min(us[name] for name in ("default", *heads))
            times = " | ".join(f"{us.get(name, float('nan')):.2f}" for name in ("numbers", "default", *heads))
            print(f"| {columns} to {rows} | {kind} | {few} | {vector:.2f} | {us['cuBLAS']:.2f} | {times} | "
                  f"{first.bytes / best / 1e3:,.0f} | {best / vector:.2f} | {max(errors):.1e} |",
                  flush=True)  # fmt: skip
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


def unpacking(options: argparse.Namespace) -> None:
    """Times of unpacking a weight, which precedes a product of many rows."""
    rate = copy_rate()
    print("| shape | kind | us | GB/s | of a copy |\n|---|---|---:|---:|---:|")
    for shape in (shape for name in options.shapes for shape in SHAPES[name]):
        rows, columns, _ = shape
        buffer = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")
        for kind in options.kinds:
            weight = some_planes(kind, rows, columns)
            us = microseconds(lambda _, w=weight, b=buffer: unpack_rows(w, b))
            moved = weight.bytes + buffer.nbytes
            print(f"| {columns} to {rows} | {kind} | {us:.2f} | {moved / us / 1e3:,.0f} | "
                  f"{moved * 1e6 / us / rate:.2f} |", flush=True)  # fmt: skip


def mixtures(options: argparse.Namespace) -> None:
    """Times of one layer's experts, as computed by default and in each of two ways, the first of which reads
    the bits for each choice, and the share of a copy's speed at which those bits are read.
    """
    rate, backend = copy_rate(), TritonBackend()
    print(f"{torch.cuda.get_device_name()}: a copy reads and writes {rate / 1e9:,.0f} GB/s\n")
    print("| experts of | kind | tokens | us a layer | by choice, us | by expert, us | TFLOP/s | GB/s "
          "| of a copy | all layers, ms |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    for (name, shape), kind in itertools.product(MIXTURES.items(), options.kinds):
        flops = 6 * shape.inner * shape.hidden * shape.choices  # per token
        if FORMS[kind].units and (shape.hidden % 256 or shape.inner % 256):
            continue  # files have other types there
        gate_up = some_planes(kind, shape.count * 2 * shape.inner, shape.hidden)
        down = some_planes(kind, shape.count * shape.hidden, shape.inner)
        experts = Experts(shape.count, [gate_up], down, None, None, Gate())
        each = (gate_up.bytes + down.bytes) / shape.count
        for tokens in options.experts:
            x = torch.randn(tokens, shape.hidden, dtype=torch.bfloat16, device="cuda") / 100
            launches = LAUNCHES if tokens <= 64 else 4
            chosen = torch.rand(launches, tokens, shape.count, device="cuda").topk(shape.choices).indices
            shares = torch.rand(tokens, shape.choices, device="cuda").bfloat16()
            calls: dict[str, Callable[[int], Tensor]] = {
                "mix": lambda i, x=x, e=experts, c=chosen, s=shares: backend.mix(x, e, c[i], s),
                "choice": lambda i, x=x, e=experts, c=chosen, s=shares: add_chosen(x, e, c[i], s),
                "expert": lambda i, x=x, e=experts, c=chosen, s=shares: add_grouped(
                    x, e, c[i], s, lambda n: backend._buffer(x, n), options.unpacked
                ),
            }
            if tokens * shape.choices > 64 * shape.count:
                del calls["choice"]  # takes too long
            us = {way: microseconds(call, launches) for way, call in calls.items()}
            read = each * (shape.choices if tokens == 1 else min(shape.count, tokens * shape.choices))
            print(
                f"| {name} | {kind} | {tokens} | {us['mix']:.2f} | {us.get('choice', float('nan')):.2f} | "
                f"{us['expert']:.2f} | {flops * tokens / us['mix'] / 1e6:.1f} | "
                f"{read / us['mix'] / 1e3:,.0f} | {read * 1e6 / us['mix'] / rate:.2f} | "
                f"{us['mix'] * shape.layers / 1e3:.2f} |",
                flush=True,
            )
        del experts, gate_up, down


def check_experts(kind: str) -> None:
    """Check both ways to compute experts against float64; raises AssertionError if one is wrong."""
    count, hidden, inner, device = 5, 512, 256, torch.device("cuda")
    blocks = [
        some_blocks(kind, count * rows, width) for rows, width in ((2 * inner, hidden), (hidden, inner))
    ]
    planes = [split(weight, device) for weight in blocks]
    gate_up, down = (unpack(weight).double().to(device).unflatten(0, (count, -1)) for weight in blocks)
    gate = Gate(limit=2.0, slope=1.7, shift=1.0)
    experts = Experts(count, planes[:1], planes[1], None, None, gate)
    for tokens, dtype in itertools.product((1, 3, 700), (torch.bfloat16, torch.float16)):
        x = (torch.randn(tokens, hidden, device=device) / 16).to(dtype)
        chosen = torch.rand(tokens, count, device=device).topk(2).indices
        shares = torch.rand(tokens, 2, device=device).to(dtype)
        middle = gate(torch.einsum("tckh,th->tck", gate_up[chosen], x.double()))
        expected = torch.einsum("tcok,tck,tc->to", down[chosen], middle, shares.double())
        for found in (
            add_chosen(x, experts, chosen, shares),
            add_grouped(x, experts, chosen, shares, lambda n, x=x: x.new_full((n,), torch.nan), 1 << 18),
        ):
            error = ((found.double() - expected).abs().max() / expected.abs().max()).item()
            assert error <= 4 * torch.finfo(dtype).eps, (kind, "experts", tokens, dtype, error)


def check(kind: str) -> str:
    """Check every kernel for a weight type against float64; raises AssertionError if one is wrong."""
    device = torch.device("cuda")
    check_experts(kind)
    for (rows, columns), dtype in itertools.product(
        ((70, 1536), (34, 14336)), (torch.bfloat16, torch.float16, torch.float32)
    ):
        blocks = some_blocks(kind, rows, columns)
        weight, exact = split(blocks, device), unpack(blocks).double().to(device)
        epsilon = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
        x = torch.randn(5, columns, device=device).to(dtype) / 16
        bias = torch.randn(rows, device=device).to(dtype)
        expected = x.double() @ exact.T
        one = expected[:1]
        gate, up = one.chunk(2, -1)
        numbers = torch.full((rows, columns), torch.nan, dtype=dtype, device=device)
        unpack_rows(weight, numbers)
        found = {
            "vector": (plane_product.multiply_vector(x[:1], weight, chained=False), one),
            "vector, chained": (plane_product.multiply_vector(x[:1], weight, chained=True), one),
            "bias": (plane_product.multiply_vector(x[:1], weight, bias), one + bias.double()),
            "gated": (
                plane_product.multiply_vector(x[:1], weight, gated=True),
                torch.nn.functional.silu(gate) * up,
            ),
            "few rows": (multiply_rows(x, weight), expected),
            "few rows of numbers": (multiply_numbers(x, weight), expected),
            "unpacked": (numbers, exact),
            "embedded": (embed(weight, torch.tensor([3, 0], device=device), dtype), exact[[3, 0]]),
        }
        if takes_tiles(dtype, weight):
            many = torch.randn(45, columns, device=device).to(dtype) / 16
            for few, tiles, chained in itertools.product((2, 9, 24, 45), (1, 2), (False, True)):
                got = multiply_tiles(many[:few], weight, bias, TilesTiling(tiles, 4), chained)
                found[f"{few} rows in {tiles} tiles"] = got, many[:few].double() @ exact.T + bias.double()
        for name, (got, want) in found.items():
            error = ((got.double() - want).abs().max() / want.abs().max()).item()
            limit = 4 * epsilon if name == "gated" else epsilon
            assert error <= limit, (kind, rows, columns, dtype, name, error)
    return f"{kind}: right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--torch", type=numbers, default=())
    parser.add_argument("--experts", type=numbers, default=())
    parser.add_argument("--unpacked", type=int, default=1 << 27, help="numbers of experts at a time")
    parser.add_argument("--few", type=numbers, default=())
    parser.add_argument("--tiles", type=words, default=("1x4x4", "1x8x4", "1x8x2", "2x4x4", "2x8x4"))
    parser.add_argument("--numbers", action="store_true", help="also few rows by unpacked numbers")
    parser.add_argument("--shapes", type=words, default=("8b", "1.5b"))
    parser.add_argument("--kinds", type=words, default=("Q4_K", "Q6_K", "Q8_0"))
    parser.add_argument("--rows", type=numbers, default=(1, 2, 4))
    parser.add_argument("--warps", type=numbers, default=(1, 2, 4))
    parser.add_argument("--beside", type=numbers, default=(1, 2))
    parser.add_argument("--chained", type=numbers, default=(0, 1))
    parser.add_argument("--processes", type=int, default=12)
    options = parser.parse_args()
    if options.check:
        with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
            for line in pool.map(check, FORMS):
                print(line, flush=True)
    elif options.unpack:
        unpacking(options)
    elif options.experts:
        mixtures(options)
    elif options.few:
        few_rows(options)
    else:
        vectors(options)


def words(text: str) -> list[str]:
    """A comma-separated list."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """A comma-separated list of numbers."""
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
