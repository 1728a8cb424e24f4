"""Atomic operations by which the threads of a step share which tasks are taken and done."""

from __future__ import annotations

import sys

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from adamas_kernels.cpu.features import IS_ARM, IS_X86

I64 = ir.IntType(64)
I32 = ir.IntType(32)
ARM_YIELD = 1  # the hint's number
YIELDS = sys.platform != "win32"


def _call(builder, name, result, *args):
    function = ir.FunctionType(result, [x.type for x in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


@intrinsic
def fetch_and_add(typing_context, address, value):
    """Add to the int64 at an address; returns the old value. Orders all memory accesses around it."""

    def emit(context, builder, sig, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def read(typing_context, address):
    """Read the int64 at an address; everything written before it is visible afterwards."""

    def emit(context, builder, sig, args):
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), emit


@intrinsic
def pause(typing_context):
    """Pause in a waiting loop, which leaves the core's resources to its other thread."""

    def emit(context, builder, sig, args):
        if IS_X86:
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif IS_ARM:
            _call(builder, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(I32, ARM_YIELD))
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def give_way(typing_context):
    """Yield this core to another thread, if the system supports it."""

    def emit(context, builder, sig, args):
        if YIELDS:
            _call(builder, "sched_yield", I32)
        return context.get_dummy_value()

    return types.void(), emit
