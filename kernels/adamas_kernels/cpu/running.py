"""A query's softmax so far: its maximum, as an exponent of 2, and sums relative to that."""

from __future__ import annotations

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.floats import exp2
from adamas_kernels.cpu.lanes import LANES, first_lane, load, splat, store


@njit
def raise_highest(found, highest, sums, row, sum_row, dim_v):
    """A row's maximum becomes `found` if that is larger; its sum and its summed values, float32 [dim_v], are
    then relative to it.
    """
    before = highest[row]
    if found > before:
        factor = first_lane(exp2(splat(before - found)))
        highest[row] = found
        sums[row] *= factor
        for i in range(0, dim_v, LANES):
            store(sum_row, i, load(sum_row, i) * splat(factor))
