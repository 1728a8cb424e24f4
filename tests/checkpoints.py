"""Low-bit weights as checkpoints store them, written bit by bit, and tiny models made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conftest import byte_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from adamas_cli.models.folder import CONFIG, WEIGHTS

GROUP = 32  # inputs that share a scale
FLOATS_OF_4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def words(numbers: Tensor, bits: int) -> Tensor:
    """Integers [rows, columns] packed into 32-bit words along the columns."""
    each = (numbers.numpy()[..., None] >> np.arange(bits)) & 1
    packed = np.packbits(each.reshape(len(numbers), -1).astype(np.uint8), 1, bitorder="little")
    return torch.from_numpy(packed.view("<i4").copy())


def some_codes(rows: int, columns: int, bits: int) -> Tensor:
    return torch.randint(0, 1 << bits, (rows, columns))


def some_scales(rows: int, groups: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (torch.rand(rows, groups) * 0.01 + 0.001).to(dtype)


def spread(groups: Tensor, columns: int) -> Tensor:
    """Repeats each group's value for its columns."""
    return groups.repeat_interleave(columns // groups.shape[1], 1)


Parts = dict[str, Tensor]
Made = tuple[Parts, Tensor]  # tensors by the ends of their names, and the numbers they stand for


def awq(rows: int, columns: int) -> Made:
    codes, zeros = some_codes(rows, columns, 4), some_codes(rows, columns // GROUP, 4)
    scales = some_scales(rows, columns // GROUP)

    def turned(numbers: Tensor) -> Tensor:
        places = numbers.T.reshape(numbers.shape[1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(places.flatten(1), 4)

    parts = {".qweight": turned(codes), ".qzeros": turned(zeros), ".scales": scales.T.contiguous()}
    return parts, spread(scales.float(), columns) * (codes - spread(zeros, columns))


def gptq(
    rows: int, columns: int, bits: int = 4, shift: int = 1, symmetric: bool = False, order: str = "row"
) -> Made:
    """order: `row`, `shuffled` with groups of one size, or `uneven`."""
    codes, groups = some_codes(rows, columns, bits), columns // GROUP
    zeros = torch.full((rows, groups), 1 << bits - 1) if symmetric else some_codes(rows, groups, bits)
    scales, group = some_scales(rows, groups), torch.arange(columns) // GROUP
    if order != "row":
        group = group[torch.randperm(columns)]
    if order == "uneven":
        group[group == groups - 1] = 0
    numbers = scales.float()[:, group] * (codes - zeros[:, group])
    parts = {
        ".qweight": words(codes, bits).T.contiguous(),
        ".qzeros": words((zeros.T - shift) % (1 << bits), bits),
        ".scales": scales.T.contiguous(),
        ".g_idx": group.int(),
    }
    return parts, numbers


def packed(
    rows: int, columns: int, bits: int = 4, symmetric: bool = True, groups: int = 0, shuffled: bool = False
) -> Made:
    """Packs integers as compressed-tensors does; groups: 0 for groups of GROUP inputs."""
    groups = groups or columns // GROUP
    codes, scales = some_codes(rows, columns, bits), some_scales(rows, groups, torch.bfloat16)
    zeros = torch.full((rows, groups), 1 << bits - 1) if symmetric else some_codes(rows, groups, bits)
    parts = {
        ".weight_packed": words(codes, bits),
        ".weight_scale": scales,
        ".weight_shape": torch.tensor([rows, columns]),
    }
    if not symmetric:
        parts[".weight_zero_point"] = words(zeros.T, bits).T.contiguous()
    group = torch.arange(columns) // (columns // groups)
    if shuffled:
        group = group[torch.randperm(columns)]
        parts[".weight_g_idx"] = group.int()
    return parts, scales.float()[:, group] * (codes - zeros[:, group])


def int8(rows: int, columns: int, symmetric: bool = True) -> Made:
    codes, scales = some_codes(rows, columns, 8) - 128, some_scales(rows, 1, torch.bfloat16) / 16
    parts = {".weight": codes.to(torch.int8), ".weight_scale": scales}
    zeros = torch.zeros(rows, 1, dtype=torch.long)
    if not symmetric:
        zeros = some_codes(rows, 1, 5) - 16
        parts[".weight_zero_point"] = zeros.to(torch.int8)
    return parts, scales.float() * (codes - zeros)


def float8(rows: int, columns: int, scaled: str = "row", end: str = ".weight_scale") -> Made:
    """scaled: `all`, `row` or `block`; blocks are 32 by 32, cut off at the edges."""
    codes = (torch.randn(rows, columns) * 100).to(torch.float8_e4m3fn)
    size = {"all": (rows, columns), "row": (1, columns), "block": (32, 32)}[scaled]
    scales = some_scales(-(-rows // size[0]), -(-columns // size[1]), torch.float32) / 100
    whole = scales.repeat_interleave(size[0], 0)[:rows].repeat_interleave(size[1], 1)[:, :columns]
    return {".weight": codes, end: scales if scaled != "all" else scales.view(1)}, codes.float() * whole


def mlx(rows: int, columns: int, bits: int = 4) -> Made:
    codes, scales = some_codes(rows, columns, bits), some_scales(rows, columns // GROUP)
    least = -some_scales(rows, columns // GROUP) * 8
    parts = {".weight": words(codes, bits).view(torch.uint32), ".scales": scales, ".biases": least}
    return parts, spread(scales.float(), columns) * codes + spread(least.float(), columns)


def mxfp4(rows: int, columns: int, ends: tuple[str, str] = (".weight_packed", ".weight_scale")) -> Made:
    codes, powers = some_codes(rows, columns, 4), torch.randint(115, 122, (rows, columns // 32))
    numbers = FLOATS_OF_4[codes] * spread(2.0 ** (powers - 127), columns)
    return {ends[0]: words(codes, 4).view(torch.uint8), ends[1]: powers.byte()}, numbers


def mxfp4_words(rows: int, columns: int) -> Made:
    parts, numbers = mxfp4(rows, columns, (".weight", ".scales"))
    return {**parts, ".weight": parts[".weight"].view(torch.uint32)}, numbers


class Kind(NamedTuple):
    """A way to store weights. stored: its config entry; make: makes a weight of a shape; block: the type of
    its blocks; exact: whether these are lossless.
    """

    stored: dict[str, Any]
    make: Callable[..., Made]
    block: str
    exact: bool
    options: dict[str, Any] = {}  # noqa: RUF012 - read only

    def weight(self, rows: int, columns: int) -> Made:
        return self.make(rows, columns, **self.options)


def compressed(form: str, bits: int = 4, **weights: Any) -> dict[str, Any]:
    """What a config says about weights in compressed-tensors' formats."""
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, **weights}}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
MLX = {"quant_method": "mlx", "group_size": GROUP, "bits": 4}

KINDS = {
    "awq": Kind(AWQ, awq, "Q4_1", False),
    "gptq": Kind(GPTQ, gptq, "Q4_1", False),
    "gptq, symmetric": Kind({**GPTQ, "sym": True}, gptq, "Q4_0", True, {"symmetric": True}),
    "gptq, version 2": Kind({**GPTQ, "checkpoint_format": "GPTQ_v2"}, gptq, "Q4_1", False, {"shift": 0}),
    "gptq, 2 bits": Kind({**GPTQ, "bits": 2}, gptq, "Q4_1", False, {"bits": 2}),
    "gptq, 3 bits": Kind({**GPTQ, "bits": 3}, gptq, "Q4_1", False, {"bits": 3}),
    "gptq, 8 bits": Kind({**GPTQ, "bits": 8}, gptq, "Q8_M", False, {"bits": 8}),
    "gptq, 8 bits, symmetric": Kind(
        {**GPTQ, "bits": 8, "sym": True}, gptq, "Q8_0", True, {"bits": 8, "symmetric": True}
    ),
    "gptq, shuffled": Kind({**GPTQ, "desc_act": True}, gptq, "Q4_1", False, {"order": "shuffled"}),
    "gptq, uneven": Kind({**GPTQ, "desc_act": True}, gptq, "F32", True, {"order": "uneven"}),
    "int4": Kind(compressed("pack-quantized"), packed, "Q4_0", True),
    "int4, channels": Kind(compressed("pack-quantized"), packed, "Q4_0", True, {"groups": 1}),
    "int4, asymmetric": Kind(compressed("pack-quantized"), packed, "Q4_1", False, {"symmetric": False}),
    "int4, shuffled": Kind(compressed("pack-quantized"), packed, "Q4_0", True, {"shuffled": True}),
    "int8, packed": Kind(compressed("pack-quantized", 8), packed, "Q8_0", True, {"bits": 8}),
    "int8": Kind(compressed("int-quantized", 8), int8, "Q8_0", True),
    "int8, asymmetric": Kind(compressed("int-quantized", 8), int8, "Q8_M", False, {"symmetric": False}),
    "float8": Kind(compressed("float-quantized", 8), float8, "F8", False),
    "float8, one scale": Kind(
        {"quant_method": "modelopt", "quant_algo": "FP8"}, float8, "F8", False, {"scaled": "all"}
    ),
    "fp8": Kind(FP8, float8, "F8", False, {"scaled": "block", "end": ".weight_scale_inv"}),
    "float8, blocks": Kind(
        compressed("float-quantized", 8, block_structure=[32, 32]), float8, "F8", False, {"scaled": "block"}
    ),
    "mxfp4": Kind(compressed("mxfp4-pack-quantized"), mxfp4, "MXFP4", True),
    "mlx": Kind(MLX, mlx, "Q4_1", True),
    "mlx, 3 bits": Kind({**MLX, "bits": 3}, mlx, "Q4_1", True, {"bits": 3}),
    "mlx, 6 bits": Kind({**MLX, "bits": 6}, mlx, "Q8_M", False, {"bits": 6}),
    "mlx, mxfp4": Kind({**MLX, "mode": "mxfp4"}, mxfp4_words, "MXFP4", True),
}


def say(directory: Path, stored: dict[str, Any] | None, **more: Any) -> None:
    """Write into the config that the weights beside it are quantized."""
    config = json.loads((directory / CONFIG).read_text()) if (directory / CONFIG).exists() else {}
    if stored is not None and stored.get("quant_method") == "mlx":
        told: dict[str, Any] = {"quantization": {k: v for k, v in stored.items() if k != "quant_method"}}
    else:
        told = {"quantization_config": stored}
    (directory / CONFIG).write_text(json.dumps({**config, **told, **more}))


def write(directory: Path, model: Any, kind: Kind, ends: tuple[str, ...] = ("proj",)) -> dict[str, Tensor]:
    """Saves a model whose layers with such names are of a kind; returns its weights' values by name."""
    torch.manual_seed(0)
    model.bfloat16().save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    numbers, tensors = {}, {}
    for name, weight in load_file(directory / WEIGHTS).items():
        numbers[name] = tensors[name] = weight
        layer = name.removesuffix(".weight")
        if layer.endswith(ends) and weight.dim() == 2:
            parts, numbers[name] = kind.weight(*weight.shape)
            del tensors[name]
            tensors |= {layer + end: part.contiguous() for end, part in parts.items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    say(directory, kind.stored)
    return numbers
