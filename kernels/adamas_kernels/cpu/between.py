"""What many tokens pass through between a layer's products: RMSNorm, gates of MLPs, and rotation by position.

Each is one stage, where torch has five to ten operations with a wait of all threads after each. Numbers are
rounded to the model's format where transformers' own modules round them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.floats import KINDS, Bfloat16, Float32, Kind
from adamas_kernels.cpu.inner import SWISH, activate
from adamas_kernels.cpu.lanes import (
    LANES,
    load,
    multiply_add,
    reinterpret,
    splat,
    store,
    sum_lanes,
)
from adamas_kernels.cpu.records import BETWEEN, betweens_at, numbers_at
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.tasks import STAGE

ROWS_OF_TASK = 16
ONE, ZERO = np.float32(1), np.float32(0)
SERVED = (torch.float32, torch.bfloat16)


def serves(*tensors: Tensor) -> bool:
    """Whether the stages read these: all of one number format they know, with contiguous whole lanes, and
    without gradients.
    """
    first = tensors[0].dtype
    return first in SERVED and all(
        x.device.type == "cpu"
        and x.dtype == first
        and x.stride(-1) == 1
        and not x.shape[-1] % LANES
        and not x.requires_grad
        for x in tensors
    )


def rounded(kind, x):
    """LANES floats as the format of `kind` has them."""
    raise NotImplementedError


@overload(rounded)
def _rounded(kind, x):
    if kind.instance_class is Bfloat16:

        def to_bfloat16(kind, x):
            bits = reinterpret(x)
            up = ((bits >> splat(16)) & splat(1)) + splat(0x7FFF)
            return reinterpret((bits + up) & splat(-0x10000))

        return to_bfloat16
    assert kind.instance_class is Float32
    return lambda kind, x: x


@lru_cache(maxsize=None, typed=True)
def build_norm_rows(kind: Kind) -> int:
    """Compile the stage of RMSNorm: out = weight x / rms(x), or (offset) (1 + weight) x / rms(x)."""
    stamp = source_stamp()

    def norm_rows_task(task, thread, address, unused, unused_too):
        _ = stamp
        rows = betweens_at(address)[0]
        x, weight, out = numbers_at(rows.x, kind), numbers_at(rows.other, kind), numbers_at(rows.out, kind)
        first = task * ROWS_OF_TASK
        for row in range(first, min(first + ROWS_OF_TASK, rows.rows)):
            at, to = row * rows.x_n, row * rows.out_n
            squares = splat(ZERO)
            for i in range(0, rows.size, LANES):
                part = load(x, at + i)
                squares = multiply_add(part, part, squares)
            mean = sum_lanes(squares) / np.float32(rows.size)
            factor = splat(ONE / np.float32(math.sqrt(mean + np.float32(rows.eps))))
            for i in range(0, rows.size, LANES):
                part = load(x, at + i) * factor
                if rows.offset:
                    store(out, to + i, part * (splat(ONE) + load(weight, i)))
                else:
                    store(out, to + i, load(weight, i) * rounded(kind, part))

    return stage(norm_rows_task, STAGE)


@lru_cache(maxsize=None, typed=True)
def build_gate_rows(kind: Kind) -> int:
    """Compile the stage of SwiGLU: out = silu(x) other."""
    stamp = source_stamp()

    def gate_rows_task(task, thread, address, unused, unused_too):
        _ = stamp
        rows = betweens_at(address)[0]
        x, other, out = numbers_at(rows.x, kind), numbers_at(rows.other, kind), numbers_at(rows.out, kind)
        first = task * ROWS_OF_TASK
        for row in range(first, min(first + ROWS_OF_TASK, rows.rows)):
            for i in range(0, rows.size, LANES):
                gate = rounded(kind, activate(SWISH, ONE, load(x, row * rows.x_n + i)))
                store(out, row * rows.out_n + i, gate * load(other, row * rows.other_n + i))

    return stage(gate_rows_task, STAGE)


@lru_cache(maxsize=None, typed=True)
def build_rotate_rows(kind: Kind) -> int:
    """Compile the stage that rotates halves of the heads of tokens: cosines in `other`, sines in `sines`."""
    stamp = source_stamp()

    def rotate_rows_task(task, thread, address, unused, unused_too):
        _ = stamp
        rows = betweens_at(address)[0]
        x, out = numbers_at(rows.x, kind), numbers_at(rows.out, kind)
        cos, sin = numbers_at(rows.other, kind), numbers_at(rows.sines, kind)
        first, half = task * ROWS_OF_TASK, rows.size // 2
        for row in range(first, min(first + ROWS_OF_TASK, rows.rows)):
            angle = row * rows.other_n
            for head in range(rows.heads):
                at, to = row * rows.x_n + head * rows.x_h, row * rows.out_n + head * rows.out_h
                for i in range(0, half, LANES):
                    low, high = load(x, at + i), load(x, at + half + i)
                    turned = rounded(kind, (splat(ZERO) - high) * load(sin, angle + i))
                    store(out, to + i, rounded(kind, low * load(cos, angle + i)) + turned)
                    turned = rounded(kind, low * load(sin, angle + half + i))
                    store(out, to + half + i, rounded(kind, high * load(cos, angle + half + i)) + turned)

    return stage(rotate_rows_task, STAGE)


def norm_rows(runner: Runner, x: Tensor, weight: Tensor, eps: float, *, offset: bool) -> Tensor:
    """RMSNorm of x [..., size] with a weight [size], or with 1 + weight."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    record = np.zeros(1, BETWEEN)
    for name, value in {"offset": offset, "eps": eps, "other": weight.data_ptr()}.items():
        record[name] = value
    _run(runner, build_norm_rows, record, rows, out)
    return out.view(x.shape)


def gate_rows(runner: Runner, x: Tensor, other: Tensor) -> Tensor:
    """silu(x) other, both [..., size], written over x."""
    rows, others = x.view(-1, x.shape[-1]), other.reshape(-1, x.shape[-1])
    record = np.zeros(1, BETWEEN)
    record["other"], record["other_n"] = others.data_ptr(), others.stride(0)
    _run(runner, build_gate_rows, record, rows, rows)
    return x


def rotate_rows(runner: Runner, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The halves of x [1, heads, N, size] rotated by cos and sin [1, N, size], in x's memory order."""
    heads, out = x[0], torch.empty_like(x)
    record = np.zeros(1, BETWEEN)
    values = {
        "other": cos.data_ptr(), "other_n": cos.stride(1), "sines": sin.data_ptr(), "heads": len(heads),
        "x_h": heads.stride(0), "out_h": out.stride(1),
    }  # fmt: skip
    for name, value in values.items():
        record[name] = value
    _run(runner, build_rotate_rows, record, heads[0], out[0, 0])
    return out


def _run(runner: Runner, build, record: np.ndarray, rows: Tensor, out: Tensor) -> None:
    """Run a stage over rows [rows, size]."""
    record["x"], record["x_n"], record["rows"], record["size"] = rows.data_ptr(), rows.stride(0), *rows.shape
    record["out"], record["out_n"] = out.data_ptr(), out.stride(0)
    function = runner.compiled(build, KINDS[rows.dtype])
    runner.run((function, -(-len(rows) // ROWS_OF_TASK), record.ctypes.data, 0, 0))
