"""AWQ's and GPTQ's files, turned back into numbers while they are read.

Both keep a linear layer as integers of few bits, with a scale and a zero point for each group of inputs:
`weight[o, i] = scales[g, o] (q[i, o] - zeros[g, o])`, g the group of input i. They differ in how integers lie
in words of 32 bits. transformers reads them only with packages that bring kernels of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from adamas_cli.models.folder import weight_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AWQ, GPTQ = "awq", "gptq"
INTEGERS = "qweight"  # the part of a layer that its weight is named after
PARTS = (INTEGERS, "qzeros", "scales", "g_idx")
# Which of its eight neighbouring outputs the places of an AWQ word hold, from the lowest bits on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Grid:
    """How the linear layers of a model lie in its files.

    method: AWQ or GPTQ. bits: of an integer. zero_shift: what zero points lack in the files.
    """

    method: str
    bits: int
    zero_shift: int = 0


def stored_grid(stored: Mapping[str, Any]) -> Grid | None:
    """The grid that a config's `quantization_config` describes; None where it is none that is read here."""
    method = stored.get("quant_method")
    bits = stored.get("bits") or stored.get("w_bit")
    if stored.get("dynamic") or stored.get("backend") == "llm-awq":  # layers of several kinds; another order
        return None
    version = str(stored.get("version") or stored.get("format") or "gemm").lower()
    if method == AWQ and bits == 4 and version == "gemm":
        return Grid(AWQ, 4)
    shifts = {"gptq": 1, "gptq_v2": 0}
    kind = "marlin" if stored.get("is_marlin_format") else stored.get("checkpoint_format")
    kind = str(kind or stored.get("format") or "gptq").lower()
    if method == GPTQ and bits in (2, 4, 8) and kind in shifts:
        return Grid(GPTQ, bits, shifts[kind])
    return None


def dequantized(layer: Mapping[str, Tensor], grid: Grid, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] of a layer in `dtype`, of its parts by their names in PARTS.

    qweight: int32, AWQ [in, out / n] and GPTQ [in / n, out] with n integers in a word; qzeros: int32 [groups,
    out / n]; scales: [groups, out]; g_idx: int32 [in], the group of each input where they are not in a row.
    Raises KeyError where a part is missing, RuntimeError where shapes do not fit together.
    """
    import torch

    numbers = _unpacked(layer[INTEGERS], grid.bits)
    zeros = _unpacked(layer["qzeros"], grid.bits)
    if grid.method == AWQ:
        order = torch.tensor(AWQ_ORDER, device=numbers.device).argsort()
        numbers, zeros = numbers[..., order].flatten(1), zeros[..., order].flatten(1)
    else:
        numbers, zeros = numbers.transpose(1, 2).flatten(0, 1), zeros.flatten(1)
    zeros = (zeros + grid.zero_shift) & ((1 << grid.bits) - 1)
    scales = layer["scales"].float()
    in_a_row = torch.arange(len(numbers), device=numbers.device) // (len(numbers) // len(scales))
    group = layer.get("g_idx", in_a_row)
    if torch.equal(group, in_a_row.to(group.dtype)):
        groups = numbers.unflatten(0, (len(scales), -1))
        weight = (groups - zeros.unsqueeze(1)).mul(scales.unsqueeze(1)).flatten(0, 1)
    else:
        weight = scales[group.long()] * (numbers - zeros[group.long()])
    return weight.T.to(dtype).contiguous()


def read_weights(
    directory: Path, grid: Grid, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """All tensors of a model folder by their names, in the host's memory: layers on a grid as their weight in
    `dtype`, which `device` computes, others as they are.

    Raises KeyError where a part of a layer is missing, OSError and safetensors' errors for damaged files.
    """
    weights: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}  # whose parts are not all there yet
    for name, tensor in _tensors(directory, device):
        layer, _, part = name.rpartition(".")
        if part not in PARTS:
            weights[name] = tensor.cpu()
            continue
        parts = layers.setdefault(layer, {})
        parts[part] = tensor
        if parts.keys() >= {*PARTS} - ({"g_idx"} if grid.method == AWQ else set()):
            weights[f"{layer}.weight"] = dequantized(layers.pop(layer), grid, dtype).cpu()
    for layer, parts in layers.items():  # those without g_idx
        weights[f"{layer}.weight"] = dequantized(parts, grid, dtype).cpu()
    return weights


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """int32 [rows, columns] -> its integers, int32 [rows, columns, n], from the lowest bits on."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)


def _tensors(directory: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    for file in weight_files(directory):
        with safe_open(file, framework="pt", device=str(device)) as stored:
            names = stored.keys()  # one cannot iterate over `stored` itself
            for name in names:
                yield name, stored.get_tensor(name)
