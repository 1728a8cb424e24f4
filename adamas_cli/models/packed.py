"""Weights in 8 or 4 bits for CPUs: packed once, kept on disk, and mapped into memory by later starts.

Embeddings and norms stay as they are. What is kept is keyed by the model's fingerprint and number format.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from adamas_kernels.cpu import CpuBackend
from adamas_kernels.weights import FORMAT, STRIP, PackedWeight
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.places import FINGERPRINT_DIGITS, exclusive, packed_directory
from adamas_cli.progress import Progress

log = logging.getLogger(__name__)

HEADER = "weights"  # the metadata that says what the tensors are


class PackedLinear(nn.Module):
    """`nn.Linear` with a packed weight, for inference. backend: shared by the layers of a model."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None, backend: CpuBackend) -> None:
        super().__init__()
        self.packed = weight
        self.in_features, self.out_features = weight.columns, weight.rows
        self.bias: Tensor | None = None  # float32, filled up to whole strips
        if bias is not None:
            self.bias = torch.zeros(len(weight.codes) * STRIP)
            self.bias[: weight.rows] = bias
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features] in the same number format."""
        return self.backend.linear(x, self.packed, self.bias)


def pack_model(model: nn.Module, fingerprint: str, progress: Progress) -> None:
    """Replace the linear layers of a model on the CPU by packed ones, from disk where they are known."""
    backend = CpuBackend(progress.note)
    linears = dict(_linears(model))
    dtype = str(next(iter(linears.values())).weight.dtype).removeprefix("torch.") if linears else ""
    file = packed_directory() / f"{fingerprint[:FINGERPRINT_DIGITS]}-{dtype}-{FORMAT}.safetensors"
    weights = _read(file, linears)
    if weights is None:
        weights = _pack(linears, backend, progress)
        _write(file, weights, progress)
        weights = _read(file, linears) or weights  # mapped memory can be dropped under pressure
    _replace(model, linears, weights, backend)
    if log.isEnabledFor(logging.INFO):
        progress.note(describe(model))


def pack_in_memory(model: nn.Module, progress: Progress) -> None:
    """The same for a model that has no file: nothing is kept."""
    backend = CpuBackend(progress.note)
    linears = dict(_linears(model))
    _replace(model, linears, _pack(linears, backend, progress), backend)


def describe(model: nn.Module) -> str:
    """One line about the packed weights of a model, or that there are none."""
    packed = [module.packed for module in model.modules() if isinstance(module, PackedLinear)]
    if not packed:
        return "weights as they are in the model's files"
    total = sum(weight.bytes for weight in packed)
    four = sum(weight.bytes for weight in packed if weight.bits == 4)
    return f"weights packed for this CPU: {total / 1e6:,.0f} MB, {four / total:.0%} of it in 4 bits"


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that can be packed: not those of a subclass, which compute something else."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module.weight.is_floating_point():
            yield name, module


def _replace(
    model: nn.Module, linears: dict[str, nn.Linear], weights: dict[str, PackedWeight], backend: CpuBackend
) -> None:
    for name, module in linears.items():
        bias = None if module.bias is None else module.bias.detach()
        model.set_submodule(name, PackedLinear(weights[name], bias, backend))


def _pack(linears: dict[str, nn.Linear], backend: CpuBackend, progress: Progress) -> dict[str, PackedWeight]:
    total = sum(module.weight.numel() for module in linears.values())
    packed = {}
    with progress.task("packing weights for this CPU, once", total, "weights") as advance:
        for name, module in linears.items():
            packed[name] = backend.pack(module.weight.detach())
            advance(module.weight.numel())
    return packed


def _write(file: Path, weights: dict[str, PackedWeight], progress: Progress) -> None:
    """Keep packed weights on disk; a full or read-only disk is no reason to stop."""
    tensors, facts = {}, {}
    for name, weight in weights.items():
        facts[name] = {"unit": weight.unit, "rows": weight.rows, "columns": weight.columns}
        tensors[f"{name}.codes"], tensors[f"{name}.scales"] = weight.codes, weight.scales
        if weight.offsets is not None:
            tensors[f"{name}.offsets"] = weight.offsets
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with exclusive(file, progress):
            save_file(tensors, unfinished, metadata={HEADER: json.dumps(facts)})
            os.replace(unfinished, file)
    except (OSError, SafetensorError, ModelUnavailableError) as error:
        progress.note(f"packed weights are not kept for the next start: {str(error).splitlines()[0]}")
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _read(file: Path, linears: dict[str, nn.Linear]) -> dict[str, PackedWeight] | None:
    """What an earlier start has packed, mapped; None unless it is whole and for these layers."""
    try:
        with safe_open(file, framework="pt") as stored:
            facts: dict[str, Any] = json.loads((stored.metadata() or {}).get(HEADER, "{}"))
            names = set(stored.keys())
            if facts.keys() != linears.keys():
                return None
            return {
                name: PackedWeight(
                    stored.get_tensor(f"{name}.codes"),
                    stored.get_tensor(f"{name}.scales"),
                    stored.get_tensor(f"{name}.offsets") if f"{name}.offsets" in names else None,
                    **facts[name],
                )
                for name in linears
            }
    except (OSError, ValueError, SafetensorError):
        return None
