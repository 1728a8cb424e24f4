"""Microseconds of one sparse decode step per layer on this GPU, stage by stage, against the fastest dense
attention.

    python docs/measure_kernels.py [--heads 32/32,32/8] [--lengths 32k,128k] [--budget 128]

Each step is replayed from a CUDA graph over as many layers' caches as rotate through more memory than the L2
cache. The dense side is the fastest of torch's flash and cuDNN attention and, where it is installed,
FlashInfer.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from adamas_kernels.ops import LayerCache, SparseSettings
from adamas_kernels.reference import encode_keys, fit_codebook, padded_dim
from adamas_kernels.step import Scratch, decode_step
from torch.nn.attention import SDPBackend, sdpa_kernel

ROTATE_BYTES = 256 << 20
LAYERS = 4


def timed(run, repeats: int = 20) -> float:
    """Median microseconds of one call, from CUDA events around graph replays."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def copy_bandwidth() -> float:
    """Bytes read and written per second of a large device-to-device copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (timed(lambda: target.copy_(source)) * 1e-6)


def make_layer(heads: int, kv_heads: int, length: int, dim: int, settings: SparseSettings) -> LayerCache:
    """A cache with `length` random tokens and room for a few more."""
    capacity = length + 256
    keys = torch.randn(1, kv_heads, capacity, dim, dtype=torch.float16, device="cuda")
    values = torch.randn_like(keys)
    words = padded_dim(dim) // 16
    codes = torch.empty(1, kv_heads, words, capacity, dtype=torch.int32, device="cuda").transpose(-1, -2)
    scales = torch.empty(1, kv_heads, capacity, dtype=torch.float16, device="cuda")
    book = fit_codebook(keys[:, :, :2048], settings.edge, settings.centred)
    for at in range(0, capacity, 8192):
        part = slice(at, at + 8192)
        codes[:, :, part], scales[:, :, part] = encode_keys(keys[:, :, part], book)
    total = values[:, :, :length].float().sum(2)
    return LayerCache(
        keys, values, codes, scales, total, book, torch.tensor([length], dtype=torch.int32, device="cuda")
    )


def dense_candidates(q, layers, length):
    """Name and a call that attends densely in every layer, for each kernel that takes the shape."""
    views = [(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in layers]
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):

        def run(backend=backend):
            with sdpa_kernel(backend):
                for k, v in views:
                    F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

        yield backend.name.lower(), run
    group = q.shape[1] // views[0][0].shape[1]
    packed = q.view(1, -1, group, q.shape[-1])

    def run_packed():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            for k, v in views:
                F.scaled_dot_product_attention(packed, k, v)

    yield "flash_packed", run_packed


def measure(heads: int, kv_heads: int, length: int, settings: SparseSettings, bandwidth: float) -> str:
    """One row of the table."""
    dim = 128
    layers = [make_layer(heads, kv_heads, length, dim, settings) for _ in range(LAYERS)]
    q = torch.randn(1, heads, 1, dim, dtype=torch.float16, device="cuda")
    k = torch.randn(1, kv_heads, 1, dim, dtype=torch.float16, device="cuda")
    v = torch.randn_like(k)
    thresholds = [torch.full((1, heads), -1e30, device="cuda") for _ in layers]
    scratch = Scratch.allocate(q, layers[0], settings.budget)

    def sparse(stages=3):
        for layer, threshold in zip(layers, thresholds, strict=True):
            decode_step(q, k, v, layer, threshold, scratch, dim**-0.5, settings, stages=stages)

    for _ in range(3):
        sparse()
    torch.cuda.synchronize()
    counts = scratch.count.float()
    whole = timed(sparse) / LAYERS
    entered, estimated = timed(lambda: sparse(1)) / LAYERS, timed(lambda: sparse(2)) / LAYERS
    dense = {}
    for name, run in dense_candidates(q, layers, length):
        try:
            dense[name] = timed(run) / LAYERS
        except RuntimeError as error:
            dense[name] = math.inf
            print(f"{name}: {str(error).splitlines()[0]}")
    best = min(dense, key=dense.__getitem__)
    code_bytes = kv_heads * length * (dim // 4 + 2)
    share = code_bytes / ((estimated - entered) * 1e-6) / bandwidth
    stages = f"{entered:.1f} | {estimated - entered:.1f} | {whole - estimated:.1f} | {whole:.1f}"
    ratio = f"{dense[best] / whole:.2f}x | {share:.0%} | {counts.min():.0f}..{counts.max():.0f}"
    return f"| {heads}/{kv_heads} | {length // 1024}K | {dense[best]:.1f} ({best}) | {stages} | {ratio} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", default="32/32,32/8")
    parser.add_argument("--lengths", default="32k,128k")
    parser.add_argument("--budget", type=int, default=128)
    options = parser.parse_args()
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth / 1e12:.2f} TB/s")
    columns = [
        "heads",
        "length",
        "dense",
        "enter",
        "estimate",
        "attend",
        "step",
        "ratio",
        "of copy bandwidth",
    ]
    print(f"| {' | '.join(columns)} | candidates |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for shape in options.heads.split(","):
        heads, kv_heads = (int(part) for part in shape.split("/"))
        for length in options.lengths.split(","):
            tokens = int(length.rstrip("k")) * 1024
            print(
                measure(heads, kv_heads, tokens, SparseSettings(budget=options.budget), bandwidth), flush=True
            )
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
