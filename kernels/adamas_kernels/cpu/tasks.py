"""Runs the stages of a step on all threads.

A stage is compiled on its own and called by its address. numba compiles the body of a parallel loop several
times over (kernel, wrappers, scheduler): here that is a single call, and the same for all stages.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import get_thread_id, prange
from numba.core import types
from numba.extending import intrinsic

from adamas_kernels.cpu.build import parallel, source_stamp

I64 = ir.IntType(64)
ARGUMENTS = 5  # task, thread, and the addresses of three records
STAGE = types.void(*[types.int64] * ARGUMENTS)


@intrinsic
def _call(typing_context, function, task, thread, first, second, third):
    """Call the stage at an address."""

    def emit(context, builder, sig, args):
        stage = ir.FunctionType(ir.VoidType(), [I64] * ARGUMENTS)
        builder.call(builder.inttoptr(args[0], stage.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (ARGUMENTS + 1)), emit


@cache
def build_run() -> Any:
    """The compiled run(functions, tasks, first, second, third): all tasks of one stage, then of the next.

    functions, tasks: tuples of the stages' addresses and of how many tasks each has; then the records'
    addresses.
    """
    stamp = source_stamp()

    def run(functions, tasks, first, second, third):
        _ = stamp
        for stage in range(len(functions)):
            function = functions[stage]
            for task in prange(tasks[stage]):
                _call(function, task, get_thread_id(), first, second, third)

    return parallel(run)
