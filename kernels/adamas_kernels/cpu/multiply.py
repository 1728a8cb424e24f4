"""Products of weights in blocks with one vector: all of a decode step that is not attention."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.floats import exp
from adamas_kernels.cpu.lanes import LANES, load, splat, store
from adamas_kernels.cpu.records import PRODUCT, floats_at, products_at
from adamas_kernels.cpu.tasks import STAGE, call

ZERO, ONE = np.float32(0), np.float32(1)
RECORD = PRODUCT.itemsize


@njit
def multiply_share(address, task, x):
    """The rows of one task of the product at an address times x, plus their bias: as many and up to LANES - 1
    more, which mean nothing.
    """
    product = products_at(address)[0]
    first = task * product.share
    count = max(0, min(product.share, product.rows - first))
    found = np.zeros(-(-count // LANES) * LANES, np.float32)
    call(product.function, first, first + count, address, x, found.ctypes.data)
    if product.bias:
        bias = floats_at(product.bias)
        for row in range(count):
            found[row] += bias[first + row]
    return found


@cache
def build_multiply() -> int:
    """Compile the stage that multiplies weights of the same input; its records: products, the input."""
    stamp = source_stamp()

    def multiply_task(task, thread, address, x, unused):
        _ = stamp
        while task >= products_at(address)[0].tasks:
            task -= products_at(address)[0].tasks
            address += RECORD
        product = products_at(address)[0]
        found = multiply_share(address, task, x)
        out, first = floats_at(product.out), task * product.share
        for row in range(min(product.share, product.rows - first)):
            out[first + row] = found[row] + out[first + row] if product.add else found[row]

    return stage(multiply_task, STAGE)


@cache
def build_gated() -> int:
    """Compile the stage of a gated layer, silu(gate x) times up x, which is written to the gate's out; its
    records: the products of gate and up, the input.
    """
    stamp = source_stamp()

    def gated_task(task, thread, address, x, unused):
        _ = stamp
        gate = products_at(address)[0]
        opening, total = multiply_share(address, task, x), multiply_share(address + RECORD, task, x)
        for at in range(0, len(opening), LANES):
            part = load(opening, at)
            silu = part / (splat(ONE) + exp(splat(ZERO) - part))
            store(opening, at, silu * load(total, at))
        out, first = floats_at(gate.out), task * gate.share
        for row in range(min(gate.share, gate.rows - first)):
            out[first + row] = opening[row]

    return stage(gated_task, STAGE)
