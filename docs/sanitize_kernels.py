"""Runs every Triton kernel on a small cache, for NVIDIA's compute-sanitizer on a machine with a GPU.

compute-sanitizer --tool memcheck python docs/sanitize_kernels.py
compute-sanitizer --tool racecheck python docs/sanitize_kernels.py
"""

from __future__ import annotations

import torch
from adamas_kernels.contract import LayerCache, SparseSettings, allocate_codes, fit_codebook
from adamas_kernels.reference import query_power
from adamas_kernels.triton.backend import TritonBackend

LENGTH, CAPACITY = 3000, 3100
# scorer, query heads, KV heads, head_dim, new tokens, budget
CASES = (
    ("dot", 8, 2, 128, 1, 32),
    ("manhattan", 4, 2, 64, 3, 32),
    ("dot", 4, 4, 64, 16, 300),
)


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda")
    for scorer, heads, kv_heads, dim, new, budget in CASES:
        settings, backend = SparseSettings(budget=budget, scorer=scorer), TritonBackend()
        keys, values = (torch.randn(1, kv_heads, CAPACITY, dim).half() for _ in range(2))
        codes, scales = allocate_codes(keys, CAPACITY)
        book = fit_codebook(keys[:, :, :LENGTH], query_power(keys, kv_heads), settings)
        backend.encode_keys(keys, book, codes, scales)
        total = values[:, :, :LENGTH].sum(2, dtype=torch.float32)
        length = torch.tensor([LENGTH], dtype=torch.int32)
        cache = LayerCache(keys, values, codes, scales, total, book, length)
        tally = torch.zeros(1, 2, CAPACITY)
        for _ in range(3):
            q, k, v = (torch.randn(1, count, new, dim).half() for count in (heads, kv_heads, kv_heads))
            out, _ = backend.decode_step(q, k, v, cache, dim**-0.5, settings, tally)
            cache.length += new
        torch.cuda.synchronize()
        print(f"{scorer}, {heads}/{kv_heads} heads of {dim}, {new} new: finite {out.isfinite().all().item()}")


if __name__ == "__main__":
    main()
