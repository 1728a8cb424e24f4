"""Runs a program, which is a sequence of stages of tasks, on all threads.

Each stage has two counters: tasks taken, and tasks done. A thread takes tasks until none are left, waits
until all are done, and goes on to the next stage. So threads fork and join only once per program, and a late
or missing thread delays nobody: the others do its share.

A stage is compiled separately and called by its address. The threads are those of torch, see `team.py`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from adamas_kernels.cpu.atomics import I64, fetch_and_add, give_way, pause, read
from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.records import RUN, programs_at, runs_at
from adamas_kernels.cpu.team import together

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
def build_member() -> int:
    """Compile what each thread of a team calls with the address of a RUN record."""
    stamp = source_stamp()

    def member(address):
        _ = stamp
        run = runs_at(address)[0]
        thread = fetch_and_add(run.threads, 1)
        _work(run.stages, run.count, run.counters, thread)

    return stage(member, types.void(types.int64))


class Program:
    """Stages with room for their counters. `records` may be changed between runs."""

    def __init__(self, records: np.ndarray) -> None:
        self.records = records
        self._counters = np.zeros((len(records) + 1) * COUNTERS, np.uint8)  # the last one counts threads
        self._run = np.zeros(1, RUN)
        counters = self._counters.ctypes.data
        self._run[0] = records.ctypes.data, len(records), counters, counters + len(records) * COUNTERS

    def run(self, threads: int) -> None:
        """Run all stages on this many threads."""
        self._counters.fill(0)
        together(build_member(), self._run.ctypes.data, threads)
