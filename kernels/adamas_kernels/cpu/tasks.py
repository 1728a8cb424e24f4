"""Runs a program, which is a sequence of stages of tasks, on all threads.

Each stage has two counters: tasks taken, and tasks done. A thread takes tasks until none are left, waits
until all are done, and goes on to the next stage. So threads fork and join only once per program, and a late
or missing thread delays nobody: the others do its share.

A stage is compiled separately and called by its address. numba compiles the body of a parallel loop several
times (kernel, wrappers, scheduler): here it is a single call, and the same for all programs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange
from numba.core import types
from numba.extending import intrinsic

from adamas_kernels.cpu.atomics import I64, fetch_and_add, give_way, pause, read
from adamas_kernels.cpu.build import njit, parallel, source_stamp
from adamas_kernels.cpu.records import programs_at

ARGUMENTS = 5  # task, thread, and the addresses of three records
STAGE = types.void(*[types.int64] * ARGUMENTS)
PATIENCE = 1 << 12  # turns of waiting before the core is yielded
TAKEN, DONE, COUNTERS = 0, 64, 128  # bytes: each counter has its own cache line


@intrinsic
def call(typing_context, function, task, thread, first, second, third):
    """Call the stage at an address."""

    def emit(context, builder, sig, args):
        stage = ir.FunctionType(ir.VoidType(), [I64] * ARGUMENTS)
        builder.call(builder.inttoptr(args[0], stage.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (ARGUMENTS + 1)), emit


@njit
def _work(program, stages, counters, thread):
    """Do the remaining tasks of a program."""
    for at in range(stages):
        stage = programs_at(program)[at]
        counter = counters + at * COUNTERS
        task = fetch_and_add(counter + TAKEN, 1)
        while task < stage.tasks:
            call(stage.function, task, thread, stage.first, stage.second, stage.third)
            fetch_and_add(counter + DONE, 1)
            task = fetch_and_add(counter + TAKEN, 1)
        turns = 0
        while read(counter + DONE) < stage.tasks:
            pause()
            turns += 1
            if turns > PATIENCE:
                give_way()


@cache
def build_run() -> Any:
    """The compiled run(program, stages, counters, threads): the address of STAGES records, their number, and
    the address of COUNTERS zero bytes for each.
    """
    stamp = source_stamp()

    def run(program, stages, counters, threads):
        _ = stamp
        for thread in prange(threads):
            _work(program, stages, counters, thread)

    return parallel(run)


class Program:
    """Stages with room for their counters. `records` may be changed between runs."""

    def __init__(self, records: np.ndarray) -> None:
        self.records = records
        self._counters = np.zeros(len(records) * COUNTERS, np.uint8)

    def run(self, threads: int) -> None:
        """Run all stages on this many threads."""
        self._counters.fill(0)
        build_run()(self.records.ctypes.data, len(self.records), self._counters.ctypes.data, threads)
