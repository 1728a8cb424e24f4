"""Products of weights in blocks with one or a few vectors: most of a decode step besides attention."""

from __future__ import annotations

from functools import cache

import numpy as np

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.records import PRODUCT, floats_at, products_at
from adamas_kernels.cpu.rows import TILE, whole_lanes
from adamas_kernels.cpu.tasks import STAGE, call

RECORD = PRODUCT.itemsize


@njit
def multiply_rows(address, first, count, x, rounded):
    """`count` rows, from `first` on, of the product at an address, times each of its vectors, at x or
    rounded, plus their bias: float32 [vectors or more, count rounded up to whole LANES]. The extra elements
    are meaningless.
    """
    product, width = products_at(address)[0], whole_lanes(count)
    found = np.zeros((product.vectors + TILE - 1) * width, np.float32)
    source = rounded if product.rounded else x
    vector = 0
    while vector < product.vectors:
        place, out = source + vector * product.x_step, found.ctypes.data + 4 * vector * width
        if product.several and product.vectors - vector > 1:
            call(product.several, first, first + count, address, place, out)
            vector += TILE
        else:
            call(product.function, first, first + count, address, place, out)
            vector += 1
    if product.bias:
        bias = floats_at(product.bias)
        for vector in range(product.vectors):
            for row in range(count):
                found[vector * width + row] += bias[first + row]
    return found


@njit
def share_of(task, share, rows):
    """The first row of a task, and its number of rows."""
    first = task * share
    return first, max(0, min(share, rows - first))


@cache
def build_multiply() -> int:
    """Compile the stage that multiplies weights by the same input. Its records: products, the input, and the
    rounded input.
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
        factor, width = np.float32(product.factor), whole_lanes(count)
        for vector in range(product.vectors):
            out = floats_at(product.out + vector * product.out_step)
            for row in range(count):
                total = found[vector * width + row] * factor
                out[first + row] = total + out[first + row] if product.add else total

    return stage(multiply_task, STAGE)
