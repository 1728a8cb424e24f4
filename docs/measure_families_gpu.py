"""One full-attention layer's step at the widths of families with few KV heads or other head sizes, on a GPU:
the dense step beside each launch of the sparse one.

    python docs/measure_families_gpu.py [FAMILY ...] [--len 64k] [--budgets 128,256,512,default] [--json]

A row has microseconds per layer, by CUDA graphs over caches that together exceed the L2 cache: the dense step
with its best number of splits, the time to read the same bytes at the device's copy speed (`dense_bound`,
`sparse_bound`), and the launches of a sparse step: enter, estimate, select, attend and merge (with a small
budget, select does the work of the last three). gain: the dense step over the sparse one. Latents
(deepseek-v3) have a dense step only.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from adamas_kernels.contract import DenseCache, LayerCache, SparseSettings
from adamas_kernels.reference import CODES_PER_WORD, padded_dim
from adamas_kernels.softmax import Softmax
from adamas_kernels.triton import dense
from adamas_kernels.triton.backend import TritonBackend

from adamas_cli.cache.placement import placement_on
from adamas_cli.commands.bench.shared import parse_lengths
from adamas_cli.lab.bench.caches import coded_cache
from adamas_cli.lab.bench.clock import copy_bandwidth, microseconds
from adamas_cli.lab.bench.table import print_rows
from adamas_cli.lab.hardware import device_name
from adamas_cli.planning.choice import budget_for

DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16
CACHED_BYTES = 100e6  # of codes of all layers together, at least: twice the L2 cache of an H100
MOST_LAYERS = 12
NEW_ROOM = 64  # tokens
PROGRAMS = (1, 2, 4)  # per multiprocessor, in a dense step
LAUNCHES = ("enter", "estimate", "select", "attend", "merge")
Row = dict[str, object]


@dataclass(frozen=True)
class Shape:
    """The shape of a layer. sinks: whether its softmax has learned sinks."""

    heads: int
    kv_heads: int
    dim: int
    sinks: bool = False

    def token_bytes(self) -> int:
        """Bytes of a token's keys and values."""
        return self.kv_heads * 2 * self.dim * DTYPE.itemsize

    def code_bytes(self) -> int:
        """Bytes of a token's codes and scales."""
        return self.kv_heads * (padded_dim(self.dim) // CODES_PER_WORD * 4 + 2)


LATENTS = "deepseek-v3"
LATENT_HEADS, LATENT_RANK, LATENT_WIDTH = 128, 512, 576  # its heads, latents, and latents with rotary parts
FAMILIES = {
    "gpt-oss": Shape(64, 8, 64, sinks=True),
    "qwen3-next": Shape(16, 2, 256),
    "llama-3.1-8b": Shape(32, 8, 128),
}


@dataclass
class Bench:
    """A shape at one length. copy: bytes/s of a device copy."""

    shape: Shape
    length: int
    copy: float

    def __post_init__(self) -> None:
        shape = self.shape
        self.backend, self.settings = TritonBackend(), SparseSettings()
        count = min(MOST_LAYERS, max(3, round(CACHED_BYTES / (shape.code_bytes() * self.length))))
        self.layers = [self._layer() for _ in range(count)]
        self.queries = self._random(1, shape.heads, 1, shape.dim)
        self.new = [self._random(1, shape.kv_heads, 1, shape.dim) for _ in range(2)]
        sinks = self._random(shape.heads).float() if shape.sinks else None
        self.softmax = Softmax(sinks=sinks)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=DTYPE, device=DEVICE)

    def _layer(self) -> LayerCache:
        one, place = self._random(1, self.shape.kv_heads, 1, self.shape.dim), placement_on(DEVICE)
        keys, values = (place.buffer(one, self.length + NEW_ROOM).tensor.normal_() for _ in range(2))
        queries = self._random(1, self.shape.heads, 8, self.shape.dim)
        return coded_cache(keys, values, self.length, queries, self.backend, self.settings)

    def _timed(self, step: Callable[[LayerCache], object]) -> float:
        """Microseconds of one layer's step."""
        return microseconds(lambda: [step(layer) for layer in self.layers], DEVICE) / len(self.layers)

    def dense(self) -> float:
        """Microseconds of the dense step with the best number of programs."""

        def timed(programs: int) -> float:
            with mock.patch.object(dense, "PROGRAMS_PER_SM", programs):
                backend = TritonBackend()
                return self._timed(
                    lambda layer: backend.dense_step(
                        self.queries, *self.new, layer, self.shape.dim**-0.5, self.softmax
                    )
                )

        return min(map(timed, PROGRAMS))

    def launches(self, budget: int) -> dict[str, float]:
        """Microseconds of each launch of the sparse step, and of all of them (`sparse`)."""
        settings = replace(self.settings, budget=budget)

        def timed(stages: int) -> float:
            return self._timed(
                lambda layer: self.backend.decode_step(
                    self.queries, *self.new, layer, self.shape.dim**-0.5, settings, None, self.softmax, stages
                )
            )

        ends = [timed(stages) for stages in range(1, len(LAUNCHES) + 1)]
        each = [end - start for start, end in zip([0.0, *ends], ends, strict=False)]
        return dict(zip(LAUNCHES, each, strict=True)) | {"sparse": ends[-1]}

    def rows(self, budgets: Sequence[int]) -> Iterator[Row]:
        """One row for each budget."""
        shape, dense_time = self.shape, self.dense()
        for budget in budgets:
            found = self.launches(budget)
            chosen = shape.heads * budget * 2 * shape.dim * DTYPE.itemsize
            bounds = {
                "dense_bound": shape.token_bytes() * self.length / self.copy * 1e6,
                "sparse_bound": (shape.code_bytes() * self.length + chosen) / self.copy * 1e6,
            }
            times = {"dense": dense_time, **bounds, **found, "gain": dense_time / found["sparse"]}
            row: Row = {"tokens": self.length, "budget": budget, "layers": len(self.layers)}
            yield row | {name: round(value, 2) for name, value in times.items()}


def latent_row(length: int, copy: float) -> Row:
    """A full step over latents. copy: bytes/s of a device copy."""
    backend, count = TritonBackend(), max(3, round(CACHED_BYTES / (2 * LATENT_WIDTH * length)))

    def random(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(1, heads, tokens, LATENT_WIDTH, dtype=DTYPE, device=DEVICE)

    def cache(kept: torch.Tensor) -> DenseCache:
        lengths = torch.full((1,), length, dtype=torch.int32, device=DEVICE)
        return DenseCache(
            kept, kept[..., :LATENT_RANK], torch.zeros(1, 1, LATENT_RANK, device=DEVICE), lengths
        )

    caches = [cache(random(1, length + NEW_ROOM)) for _ in range(count)]
    queries, new = random(LATENT_HEADS, 1), random(1, 1)
    step = partial(backend.dense_step, queries, new, new[..., :LATENT_RANK])
    time = microseconds(lambda: [step(cache, LATENT_WIDTH**-0.5) for cache in caches], DEVICE) / count
    bound = caches[0].keys[:, :, :length].nbytes / copy * 1e6
    row: Row = {"family": LATENTS, "tokens": length, "budget": 0, "layers": count}
    return row | {"dense": round(time, 2), "dense_bound": round(bound, 2)}


def budgets_of(text: str, length: int) -> list[int]:
    """Budgets as given; `default` depends on the context."""
    return [budget_for(length) if part == "default" else int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, LATENTS, []], metavar="FAMILY")
    parser.add_argument("--len", dest="lengths", default="64k")
    parser.add_argument("--budgets", default="128,256,512,default")
    parser.add_argument("--json", action="store_true", help="a line for each row")
    options: Any = parser.parse_args()
    torch.manual_seed(0)
    copy = copy_bandwidth(DEVICE)
    print(f"{device_name(DEVICE)}, torch {torch.__version__}, copies {copy / 1e12:.2f} TB/s", file=sys.stderr)
    lengths = parse_lengths(options.lengths)
    families = options.families or [*FAMILIES, LATENTS]
    rows = (
        {"family": name} | row
        for name in families
        if name != LATENTS
        for length in lengths
        for row in Bench(FAMILIES[name], length, copy).rows(budgets_of(options.budgets, length))
    )
    latents = (latent_row(length, copy) for length in lengths if LATENTS in families)
    print_rows(itertools.chain(rows, latents), as_json=options.json)


if __name__ == "__main__":
    main()
