"""What a sparse step takes on data made to defeat its selection.

    python docs/measure_selection.py [SHAPES] [LENGTHS] [BUDGETS] [cpu|cuda] [KINDS]

Prints microseconds per step for each kind of keys, and the slowest kind over the fastest, with both names. On
a CPU, kinds take turns, and the shortest time of each counts, so that another program's load does not. KINDS
are numbers of columns from 1 on, all by default. On a GPU most of the time is compiling, once for each cell:

    python docs/measure_selection.py 14/2x64 32768 128,768 cuda
    python docs/measure_selection.py 32/8x128 131072 1472 cuda
    python docs/measure_selection.py 32/8x128 512,2048 128 cuda 1,3,4,5,7,9
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from adamas_kernels.contract import Backend, LayerCache, SparseSettings, allocate_codes, fit_codebook
from adamas_kernels.dispatch import load, pick
from adamas_kernels.reference import query_power
from torch import Tensor

from adamas_cli.lab.bench.clock import microseconds
from adamas_cli.lab.bench.table import markdown_head, markdown_row
from adamas_cli.lab.hardware import device_name
from adamas_cli.planning.choice import budget_for

ROUNDS, QUERIES, ROOM = 12, 6, 64


def random_keys(shape: tuple[int, ...]) -> Tensor:
    """As from a model without structure."""
    return torch.randn(shape)


def along_one_key(factors: Callable[[int], Tensor]) -> Callable[[tuple[int, ...]], Tensor]:
    """Multiples of one key for each head: the tokens' factors are their ranks, or the reverse."""
    return lambda shape: torch.randn(*shape[:2], 1, shape[3]) * factors(shape[2])[:, None]


KINDS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "random": random_keys,
    "random, new query": random_keys,
    "all equal": torch.ones,
    "two values": along_one_key(lambda n: torch.randint(1, 3, (n,)).float()),
    "rising": along_one_key(lambda n: torch.linspace(-2, 2, n)),
    "falling": along_one_key(lambda n: torch.linspace(2, -2, n)),
    "all magnitudes": along_one_key(lambda n: torch.exp(-30 * torch.rand(n))),
    # The best tokens are in few of the groups to which a selection deals them, on a CPU and on a GPU.
    "60 of 4,096": along_one_key(
        lambda n: torch.where(torch.arange(n) % 4096 < 60, 1 + torch.rand(n), -torch.rand(n))
    ),
    "few groups": along_one_key(
        lambda n: torch.where(torch.arange(n) % 64 < 16, 1 + 3 * torch.rand(n), -torch.rand(n))
    ),
}


class Steps:
    """Steps of one layer over keys of one kind."""

    def __init__(self, backend: Backend, kind: str, heads: str, length: int, budget: int) -> None:
        counts, dim = heads.split("x")
        query_heads, kv_heads = (int(count) for count in counts.split("/"))
        size = int(dim)
        self.backend, self.settings, self.scaling = backend, SparseSettings(budget=budget), size**-0.5
        self.cache = self._cache(KINDS[kind]((1, kv_heads, length, size)).bfloat16(), query_heads)
        self.entry = torch.randn(1, kv_heads, 1, size).bfloat16()
        queries = [torch.randn(1, query_heads, 1, size).bfloat16() for _ in range(QUERIES)]
        if not kind.endswith("new query"):
            # A GPU's step depends on nothing before it, and the clock repeats it.
            queries = queries[:1] * (1 if self.entry.is_cuda else QUERIES)
        self.queries = queries
        self.shortest = [float("inf")] * len(queries)

    def _cache(self, keys: Tensor, query_heads: int) -> LayerCache:
        batch, kv_heads, length, size = keys.shape
        buffers = [torch.zeros(batch, length + ROOM, kv_heads, size).bfloat16() for _ in range(2)]
        own, values = (x.transpose(1, 2) for x in buffers)
        own[:, :, :length] = keys
        values.normal_()
        codes, scales = allocate_codes(own, length + ROOM)
        book = fit_codebook(keys, query_power(torch.randn(1, query_heads, 4, size), kv_heads), self.settings)
        self.backend.encode_keys(own, book, codes, scales)
        total = values[:, :, :length].sum(2, dtype=torch.float32)
        return LayerCache(own, values, codes, scales, total, book, torch.tensor([length], dtype=torch.int32))

    def run(self) -> None:
        """A step with each query, always over the same tokens."""
        for place, query in enumerate(self.queries):
            if self.entry.is_cuda:
                seconds = microseconds(partial(self._step, query), self.entry.device) / 1e6
            else:
                start = time.perf_counter()
                self._step(query)
                seconds = time.perf_counter() - start
            self.shortest[place] = min(self.shortest[place], seconds)

    def _step(self, query: Tensor) -> None:
        self.backend.decode_step(query, self.entry, self.entry, self.cache, self.scaling, self.settings)

    @property
    def microseconds(self) -> float:
        """Microseconds of the slowest query."""
        return max(self.shortest) * 1e6


def main(
    shapes: str = "14/2x64,9/3x64,12/2x128,32/8x128",
    lengths: str = "4096,16384,30000",
    budgets: str = "128,default",
    device: str = "cpu",
    kinds: str = "",
) -> None:
    """Print the table."""
    torch.manual_seed(0)
    torch.set_default_device(device)
    name, _ = pick("auto", torch.device(device))
    backend = load(name, print)
    rounds = ROUNDS if device == "cpu" else 1
    names = list(KINDS)
    if kinds:
        names = [names[int(number) - 1] for number in kinds.split(",")]
    print(f"{device_name(torch.device(device))}, bfloat16\n")
    print(markdown_head(("heads", "context", "budget", *names, "slowest / fastest", "which")))
    for heads in shapes.split(","):
        for length in map(int, lengths.split(",")):
            for chosen in budgets.split(","):
                budget = budget_for(length) if chosen == "default" else int(chosen)
                steps = {kind: Steps(backend, kind, heads, length, budget) for kind in names}
                for _ in range(rounds):
                    for step in steps.values():
                        step.run()
                times = {kind: step.microseconds for kind, step in steps.items()}
                slowest, fastest = max(times, key=times.__getitem__), min(times, key=times.__getitem__)
                ratio = f"{times[slowest] / times[fastest]:.2f}"
                figures = [f"{t:.1f}" for t in times.values()]
                which = f"{slowest} / {fastest}"
                print(markdown_row((heads, f"{length:,}", str(budget), *figures, ratio, which)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
