"""Fewer operations between a model's products while it reads on a CPU: RMSNorm, gates and rotation are one
compiled stage each, where they are what a model's own classes compute. Steps of one token do not come here,
see `steps/`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from adamas_kernels.cpu import CpuBackend
from torch import Tensor

from adamas_cli.engine.alike import epsilon_of, is_gated, norm_offset, rotate_by

Forward = Callable[..., Any]
Make = Callable[[Any, CpuBackend], Forward]
FEW = 16  # tokens from which a stage takes less time than starting it


@torch.no_grad()
def fuse_on_cpu(model: Any) -> None:
    """Let a model on a CPU use these stages from now on."""
    backend = CpuBackend()
    kinds: dict[type, Make | None] = {}
    for module in model.modules():
        kind = type(module)
        if kind not in kinds:
            kinds[kind] = _kind(module, model)
        make = kinds[kind]
        if make is not None:
            module.__dict__["forward"] = make(module, backend)
    _rotate_by_stages(sys.modules[type(model.get_decoder()).__module__], backend)


def _kind(module: Any, model: Any) -> Make | None:
    """A maker of forwards for a module's class; None if the class computes something else."""
    if norm_offset(module) is not None:
        return _norm
    return _gated if is_gated(module, model) else None


def _norm(module: Any, backend: CpuBackend) -> Forward:
    plain, eps, offset = module.forward, epsilon_of(module), bool(norm_offset(module))
    assert eps is not None

    def forward(x: Tensor) -> Tensor:
        if not _is_long(x) or not backend.reads_rows(x, module.weight):
            return plain(x)
        return backend.norm_rows(x, module.weight, eps, offset=offset)

    return forward


def _gated(module: Any, backend: CpuBackend) -> Forward:
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        if not _is_long(x):
            return plain(x)
        gate, up = module.gate_proj(x), module.up_proj(x)
        if not backend.reads_rows(gate, up):
            return module.down_proj(torch.nn.functional.silu(gate) * up)
        return module.down_proj(backend.gate_rows(gate, up))

    return forward


def _rotate_by_stages(place: Any, backend: CpuBackend) -> None:
    """Let the models of a module that rotate halves of heads do so in one stage."""

    def rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...] | None:
        if len(queries) == 1 and _is_long(queries) and backend.rotates(queries, keys, cos, sin):
            return tuple(backend.rotate_rows(x, cos, sin) for x in (queries, keys))
        return None

    rotate_by(rotate, place, "on_cpu")


def _is_long(x: Tensor) -> bool:
    """Whether activations [..., N, D] are of many tokens."""
    return x.dim() > 1 and x.shape[-2] >= FEW
