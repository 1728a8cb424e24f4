"""CPU features that compiled code may use: all of this CPU's, or those of a level of `levels.py`."""

from __future__ import annotations

import platform

from adamas_kernels import levels

levels.limit()  # numba reads its environment when it is imported

from numba.core import codegen, config  # noqa: E402

config.reload_config()  # in case numba was imported before


def _features() -> frozenset[str]:
    """Features by LLVM's names."""
    text = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return frozenset(feature[1:] for feature in text.split(",") if feature.startswith("+"))


FEATURES = _features()
IS_X86 = platform.machine() in levels.X86
IS_ARM = platform.machine() in levels.ARM
# x86 before 2012 converts float16 by calling a library function that compiled code cannot find.
CONVERTS_HALVES = not IS_X86 or "f16c" in FEATURES
MULTIPLIES_BFLOAT16 = "avx512bf16" in FEATURES  # pairs of bfloat16, into float32 sums
MULTIPLIES_SHORTS = "avx2" in FEATURES  # pairs of int16, into int32 sums, at twice the rate of float32
COMPRESSES = "avx512f" in FEATURES  # moves chosen lanes of a vector together in one instruction
DOT_BYTES = "dotprod" in FEATURES  # one Arm instruction sums products of four signed bytes
