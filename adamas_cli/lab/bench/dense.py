"""Full attention of one query by every kernel on this machine, including ours, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from adamas_kernels.contract import DenseCache, LayerCache
from adamas_kernels.dispatch import load, obstacle
from adamas_kernels.torch.backend import TorchBackend
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Run = Callable[[], object]


def dense_kernels(queries: Tensor, layers: Sequence[LayerCache], length: int) -> Iterator[tuple[str, Run]]:
    """Pairs of a name and a call that attends from queries [1, H, 1, D] over `length` tokens of each layer.

    A call raises RuntimeError if its kernel does not support the shape.
    """
    views = [(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in layers]
    if queries.device.type == "cuda":
        yield from _on_cuda(queries, views)
        yield from _own(queries, layers)
    else:
        yield "sdpa", lambda: [_sdpa(queries, k, v) for k, v in views]
        scaling = queries.shape[-1] ** -0.5
        yield "products", lambda: [TorchBackend().prefill(queries, k, v, scaling) for k, v in views]


def _own(queries: Tensor, layers: Sequence[LayerCache]) -> Iterator[tuple[str, Run]]:
    """The engine's step with full attention, which appends a token like a sparse step."""
    if obstacle("triton", queries.device):
        return
    backend, scaling = load("triton"), queries.shape[-1] ** -0.5
    new = [(x.keys[:, :, :1].clone(), x.values[:, :, :1].clone()) for x in layers]
    caches = [DenseCache(x.keys, x.values, x.value_sum.clone(), x.length) for x in layers]

    def run() -> None:
        for cache, (key, value) in zip(caches, new, strict=True):
            backend.dense_step(queries, key, value, cache, scaling)

    yield "adamas full", run


def _sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=queries.shape[1] != keys.shape[1])


def _on_cuda(queries: Tensor, views: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[str, Run]]:
    def with_kernel(kernel: SDPBackend, queries: Tensor) -> Run:
        def run() -> None:
            with sdpa_kernel(kernel):
                for k, v in views:
                    _sdpa(queries, k, v)

        return run

    yield "sdpa flash", with_kernel(SDPBackend.FLASH_ATTENTION, queries)
    yield "sdpa cudnn", with_kernel(SDPBackend.CUDNN_ATTENTION, queries)
    kv_heads = views[0][0].shape[1]
    if queries.shape[1] != kv_heads:
        # One KV head's queries as rows of one head: elsewhere, flash attention's decoding does this itself.
        rows = queries.view(1, kv_heads, -1, queries.shape[-1])
        yield "sdpa flash, packed", with_kernel(SDPBackend.FLASH_ATTENTION, rows)
    if find_spec("flashinfer") is not None:
        yield from _flashinfer(queries, views)


def _flashinfer(queries: Tensor, views: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[str, Run]]:
    import flashinfer

    rows = [(k[0].contiguous(), v[0].contiguous()) for k, v in views]
    query = queries[0, :, 0]

    def with_cores(tensor_cores: bool) -> Run:
        def run() -> None:
            for k, v in rows:
                flashinfer.single_decode_with_kv_cache(
                    query, k, v, kv_layout="HND", use_tensor_cores=tensor_cores
                )

        return run

    yield "flashinfer", with_cores(False)
    yield "flashinfer, tensor cores", with_cores(True)


def fastest(
    queries: Tensor,
    layers: Sequence[LayerCache],
    length: int,
    clock: Callable[[Run, torch.device], float],
) -> tuple[float, str]:
    """Microseconds per layer of the fastest kernel, and its name. Raises RuntimeError if none runs."""
    found: list[tuple[float, str]] = []
    errors: list[str] = []
    for name, run in dense_kernels(queries, layers, length):
        try:
            found.append((clock(run, queries.device) / len(layers), name))
        except RuntimeError as error:
            errors.append(f"{name}: {str(error).splitlines()[0]}")
    if not found:
        raise RuntimeError("; ".join(errors))
    return min(found)
