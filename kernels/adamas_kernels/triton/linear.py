"""One row times a weight matrix, at the speed of reading the weights: most of a decode step.

A program computes one output and reads its row of weights in coalesced blocks. On an H100 this reads 5 to
25 % faster than cuBLAS's product of one row (docs/performance.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.triton.launch import next_power

LARGEST_BLOCK = 2048  # inputs at a time
INPUTS_PER_WARP = 256


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, weight_n,
    INPUTS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Program (output): out[n] = weight[n] . x + bias[n], summed in float32."""
    n = tl.program_id(0)
    here = tl.arange(0, BLOCK)
    row = weight_ptr + n.to(tl.int64) * weight_n
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, INPUTS, BLOCK):
        inside = start + here < INPUTS
        weight = tl.load(row + start + here, mask=inside, other=0.0)
        x = tl.load(x_ptr + start + here, mask=inside, other=0.0)
        total += weight.to(tl.float32) * x.to(tl.float32)
    result = tl.sum(total, axis=0)
    if BIAS:
        result += tl.load(bias_ptr + n).to(tl.float32)
    tl.store(out_ptr + n, result.to(out_ptr.dtype.element_ty))


def multiply_vector(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of a single row, x [..., inputs]: [..., outputs] in its dtype.

    weight: [outputs, inputs], its rows contiguous; bias: [outputs].
    """
    outputs, inputs = weight.shape
    block = min(LARGEST_BLOCK, next_power(inputs))
    x = x.contiguous()
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    linear_kernel[(outputs,)](
        x, weight, bias if bias is not None else x, out, weight.stride(0),
        INPUTS=inputs, BLOCK=block, BIAS=bias is not None,
        num_warps=max(1, block // INPUTS_PER_WARP),
    )  # fmt: skip
    return out
