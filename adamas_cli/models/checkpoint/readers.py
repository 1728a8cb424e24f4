"""Reads the tensors of a quantized weight, for each form that checkpoints use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from adamas_cli.models.checkpoint import forms
from adamas_cli.models.checkpoint.forms import Form, Told
from adamas_cli.models.checkpoint.quantized import Floats, Integers, Microfloats, Quantized
from adamas_cli.models.checkpoint.words import integers

Parts = Mapping[str, Tensor]
Read = Callable[[Parts, Told], Quantized]
# Which of eight neighbouring outputs each position of an AWQ word holds, from the lowest bits on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _awq(parts: Parts, told: Told) -> Quantized:
    """qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales [groups, out]."""
    order = torch.tensor(AWQ_ORDER, device=parts[".qweight"].device).argsort()

    def outputs(words: Tensor) -> Tensor:
        return integers(words, 4).unflatten(1, (-1, 8))[..., order].flatten(1).T

    scales = parts[".scales"].float().T
    minimums = -scales * outputs(parts[".qzeros"])
    return Integers(4, outputs(parts[".qweight"]).contiguous(), scales, minimums)


def _gptq(parts: Parts, told: Told) -> Quantized:
    """qweight int32 [in bits / 32, out], qzeros int32 [groups, out bits / 32], scales [groups, out], g_idx
    int32 [in]: the group of each input, if they are not in order.
    """
    words, scales, group = parts[".qweight"].T, parts[".scales"].float().T, parts.get(".g_idx")
    bits = told.bits if group is None else 32 * words.shape[1] // len(group)
    assert bits is not None
    zeros = integers(parts[".qzeros"], bits)[:, : len(scales)].T
    zeros = zeros + told.zero_shift & (1 << bits) - 1
    return _in_groups(bits, integers(words, bits), scales, -scales * zeros, group)


def _packed(parts: Parts, told: Told) -> Quantized:
    """weight_packed int32 [out, in bits / 32], weight_scale [out, groups], weight_zero_point int32 [out bits
    / 32, groups], weight_shape [2], weight_g_idx int32 [in]; zero points refer to packed codes.
    """
    words = parts[".weight_packed"]
    rows, columns = parts[".weight_shape"].tolist()
    bits = 32 * words.shape[1] // columns
    scales = _by_row(parts[".weight_scale"], rows)
    zeros: Tensor | int = 1 << bits - 1
    if ".weight_zero_point" in parts:
        zeros = integers(parts[".weight_zero_point"].T, bits)[:, :rows].T
    codes = integers(words, bits)[:, :columns].contiguous()
    return _in_groups(bits, codes, scales, -scales * zeros, parts.get(".weight_g_idx"))


def _int8(parts: Parts, told: Told) -> Quantized:
    """weight int8 [out, in], weight_scale [out, 1 or groups] or [1], weight_zero_point of that shape."""
    codes = parts[".weight"]
    scales = _by_row(parts[".weight_scale"], len(codes))
    zeros: Tensor | int = 128
    if ".weight_zero_point" in parts:
        zeros = _by_row(parts[".weight_zero_point"], len(codes)) + 128
    return Integers(8, codes.view(torch.uint8) ^ 128, scales, -scales * zeros)


def _float8(parts: Parts, told: Told) -> Quantized:
    """weight float8_e4m3fn [out, in]; scales: a single one, [out] or [out, 1], or one for each block."""
    codes = parts[".weight"]
    scales = next(parts[end] for end in (".weight_scale_inv", ".weight_scale") if end in parts).float()
    rows, columns = codes.shape
    high, wide = told.block
    if scales.dim() == 2 and scales.shape == (-(-rows // high), -(-columns // wide)) != (rows, 1):
        scales = scales.repeat_interleave(high, 0)[:rows]
        if columns % wide:  # the last block is cut, but may still be a multiple of 32
            step = next(size for size in (32, 1) if wide % size == columns % size == 0)
            scales = scales.repeat_interleave(wide // step, 1)[:, : columns // step]
        return Floats(codes, scales)
    return Floats(codes, _by_row(scales, rows))


def _mlx(parts: Parts, told: Told) -> Quantized:
    """weight uint32 [out, in bits / 32], scales and biases [out, groups]; the biases are minimums."""
    assert told.bits is not None
    codes = integers(parts[".weight"], told.bits)
    return Integers(told.bits, codes, parts[".scales"].float(), parts[".biases"].float())


def _mxfp4_words(parts: Parts, told: Told) -> Quantized:
    """Floats of 4 bits [out, in / 2] bytes or [out, in / 8] words, and powers uint8 [out, in / 32]."""
    packed, powers = parts.values()
    return Microfloats(integers(packed.contiguous().view(torch.int32), 4), powers)


def _mxfp4_experts(parts: Parts, told: Told) -> Quantized:
    """_blocks uint8 [experts, out, in / 32, 16], _scales uint8 [experts, out, in / 32]."""
    codes = integers(parts["_blocks"].flatten(2).flatten(0, 1).contiguous().view(torch.int32), 4)
    return Microfloats(codes, parts["_scales"].flatten(0, 1))


def _by_row(values: Tensor, rows: int) -> Tensor:
    """A single value, one per row, or several, as float32 [rows, groups]."""
    values = values.float()
    return values.view(rows, -1) if values.numel() >= rows else values.view(1, 1).expand(rows, 1)


def _in_groups(bits: int, codes: Tensor, scales: Tensor, minimums: Tensor, group: Tensor | None) -> Integers:
    """Codes whose inputs belong to these groups; reordered so that each group's codes are adjacent, if groups
    have equal sizes.
    """
    if group is None or bool((group < 0).any()):  # compressed-tensors' initial values
        return Integers(bits, codes, scales, minimums)
    group = group.long()
    columns, groups = codes.shape[1], scales.shape[1]
    order = group.argsort(stable=True)
    if bool((group.bincount(minlength=groups) * groups != columns).any()):
        return Integers(bits, codes, scales[:, group], minimums[:, group])
    if torch.equal(order, torch.arange(columns, device=order.device)):
        return Integers(bits, codes, scales, minimums)
    return Integers(bits, codes[:, order], scales, minimums, order)


READERS: Mapping[Form, Read] = {
    forms.AWQ: _awq,
    forms.GPTQ: _gptq,
    forms.PACKED: _packed,
    forms.INT8: _int8,
    forms.FLOAT8: _float8,
    forms.FLOAT8_BLOCKS: _float8,
    forms.MLX: _mlx,
    forms.MLX_FLOATS: _mxfp4_words,
    forms.MXFP4_PACKED: _mxfp4_words,
    forms.MXFP4_EXPERTS: _mxfp4_experts,
}
