"""One sparse decode step of a layer against the fastest full attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from adamas_kernels.contract import Backend, LayerCache, SparseSettings
from adamas_kernels.reference import CODES_PER_WORD, padded_dim

from adamas_cli.cache.placement import placement_on
from adamas_cli.lab.bench.caches import coded_cache
from adamas_cli.lab.bench.clock import microseconds
from adamas_cli.lab.bench.dense import fastest

LAYERS = 4  # alternating caches, so that none stays in the processor's cache
NEW_ROOM = 64  # room in tokens after the measured ones
SHORTEST, LONGEST = 512, 65536  # range in which the break-even is sought


@dataclass(frozen=True)
class Shape:
    """Heads of a layer. `32/8x128` is 32 query heads, 8 KV heads, 128 coordinates each."""

    heads: int
    kv_heads: int
    dim: int = 128

    def __str__(self) -> str:
        return f"{self.heads}/{self.kv_heads}x{self.dim}"


@dataclass(frozen=True)
class KernelRow:
    """One line of the table. Times in microseconds per layer; stages are None if they are not separate.
    attended: average number of tokens per query head.
    """

    device: str
    backend: str
    dtype: str
    shape: str
    budget: int
    error: float | None
    attended: float
    context: int
    dense: float
    dense_kernel: str
    enter: float | None
    estimate: float | None
    attend: float | None
    step: float
    ratio: float
    code_bytes_per_s: float | None
    share_of_copy: float | None


@dataclass
class KernelBench:
    """Measures on one device with one backend. copy: its copy bandwidth, in bytes per second."""

    backend: Backend
    device: torch.device
    dtype: torch.dtype
    settings: SparseSettings
    name: str
    copy: float

    def row(self, shape: Shape, length: int) -> KernelRow:
        """Measure one context length."""
        layers = [self._layer(shape, length) for _ in range(LAYERS)]
        queries = self._random(1, shape.heads, 1, shape.dim)
        dense, kernel = fastest(queries, layers, length, microseconds)
        stages = self._stages(shape, queries, layers)
        step = stages[-1]
        enter, estimate, attend = (
            (stages[0], stages[1] - stages[0], step - stages[1]) if len(stages) == 3 else (None, None, None)
        )
        codes = shape.kv_heads * length * (padded_dim(shape.dim) // CODES_PER_WORD * 4 + 2)
        rate = codes / (estimate * 1e-6) if estimate else None
        return KernelRow(
            self.name,
            self.backend.name,
            str(self.dtype).removeprefix("torch."),
            str(shape),
            self.settings.budget,
            self.settings.error,
            self._attended(shape, queries, layers),
            length,
            dense,
            kernel,
            enter,
            estimate,
            attend,
            step,
            dense / step,
            rate,
            rate / self.copy if rate else None,
        )

    def break_even(self, shape: Shape) -> int | None:
        """The context from which a sparse step is faster, interpolated between measured powers of two; None
        if it is slower up to LONGEST.
        """
        before: tuple[int, float] | None = None
        length = SHORTEST
        while length <= LONGEST:
            layers = [self._layer(shape, length) for _ in range(LAYERS)]
            queries = self._random(1, shape.heads, 1, shape.dim)
            dense, _ = fastest(queries, layers, length, microseconds)
            gain = math.log(dense / microseconds(self._call(shape, queries, layers), self.device) * LAYERS)
            if gain >= 0:
                if before is None:
                    return length
                shorter, loss = before
                return round(2 ** (math.log2(shorter) + loss / (loss - gain)))
            before = length, gain
            length *= 2
        return None

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=self.dtype, device=self.device)

    def _layer(self, shape: Shape, length: int) -> LayerCache:
        """A cache of `length` random tokens, with the engine's memory layout."""
        one, place = self._random(1, shape.kv_heads, 1, shape.dim), placement_on(self.device)
        keys, values = (place.buffer(one, length + NEW_ROOM).tensor.normal_() for _ in range(2))
        queries = self._random(1, shape.heads, LAYERS, shape.dim)
        return coded_cache(keys, values, length, queries, self.backend, self.settings)

    def _call(
        self, shape: Shape, queries: torch.Tensor, layers: list[LayerCache], **stages: int
    ) -> Callable[[], None]:
        """A step of every layer, already compiled."""
        key, value = (self._random(1, shape.kv_heads, 1, shape.dim) for _ in range(2))
        step: Any = self.backend.decode_step  # Triton's backend can run only some of its launches

        def call(**stages: int) -> None:
            for layer in layers:
                step(queries, key, value, layer, shape.dim**-0.5, self.settings, **stages)

        call()
        return lambda: call(**stages)

    def _attended(self, shape: Shape, queries: torch.Tensor, layers: list[LayerCache]) -> float:
        """The average number of tokens that a query head attends to."""
        key, value = (self._random(1, shape.kv_heads, 1, shape.dim) for _ in range(2))
        tally = torch.zeros(1, 2, layers[0].keys.shape[2], device=self.device)
        for layer in layers:
            self.backend.decode_step(queries, key, value, layer, shape.dim**-0.5, self.settings, tally)
        return float(tally[0, 0].sum()) / (shape.heads * len(layers))

    def _stages(self, shape: Shape, queries: torch.Tensor, layers: list[LayerCache]) -> list[float]:
        """Microseconds per layer of the first, the first two and all launches; or only of all."""
        partial = [{"stages": 1}, {"stages": 2}] if self.backend.name == "triton" else []
        return [
            microseconds(self._call(shape, queries, layers, **stages), self.device) / LAYERS
            for stages in [*partial, {}]
        ]
