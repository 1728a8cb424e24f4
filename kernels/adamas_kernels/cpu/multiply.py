"""Products of weights in blocks with one vector: most of a decode step that is not attention."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.lanes import LANES
from adamas_kernels.cpu.records import PRODUCT, floats_at, products_at
from adamas_kernels.cpu.tasks import STAGE, call

RECORD = PRODUCT.itemsize


@njit
def multiply_rows(address, first, count, x, rounded):
    """Rows of the product at an address, `count` from the first on, times x or what it is rounded to, plus
    their bias: as many and up to LANES - 1 more, which mean nothing.
    """
    product = products_at(address)[0]
    found = np.zeros(-(-count // LANES) * LANES, np.float32)
    vector = rounded if product.rounded else x
    call(product.function, first, first + count, address, vector, found.ctypes.data)
    if product.bias:
        bias = floats_at(product.bias)
        for row in range(count):
            found[row] += bias[first + row]
    return found


@njit
def share_of(task, share, rows):
    """The first of the rows of a task, and how many they are."""
    first = task * share
    return first, max(0, min(share, rows - first))


@cache
def build_multiply() -> int:
    """Compile the stage that multiplies weights of the same input; its records: products, the input, and the
    input rounded.
    """
    stamp = source_stamp()

    def multiply_task(task, thread, address, x, rounded):
        _ = stamp
        while task >= products_at(address)[0].tasks:
            task -= products_at(address)[0].tasks
            address += RECORD
        product = products_at(address)[0]
        first, count = share_of(task, product.share, product.rows)
        found = multiply_rows(address, first, count, x, rounded)
        out, factor = floats_at(product.out), np.float32(product.factor)
        for row in range(count):
            total = found[row] * factor
            out[first + row] = total + out[first + row] if product.add else total

    return stage(multiply_task, STAGE)
