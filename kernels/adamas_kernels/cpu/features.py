"""What compiled code may use of this CPU: all that it has, or what the level of `levels.py` allows."""

from __future__ import annotations

import platform

from adamas_kernels import levels

levels.limit()  # numba reads its environment when it is imported

from numba.core import codegen, config  # noqa: E402

config.reload_config()  # or somebody has imported it before


def _features() -> frozenset[str]:
    """Features as LLVM names them."""
    text = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return frozenset(feature[1:] for feature in text.split(",") if feature.startswith("+"))


FEATURES = _features()
IS_X86 = platform.machine() in levels.X86
IS_ARM = platform.machine() in levels.ARM
# x86 before 2012 converts float16 by a function call, to a library that compiled code does not find.
CONVERTS_HALVES = not IS_X86 or "f16c" in FEATURES
MULTIPLIES_BFLOAT16 = "avx512bf16" in FEATURES  # pairs of bfloat16, into float32 sums
COMPRESSES = "avx512f" in FEATURES  # moves chosen lanes of a vector together in one instruction
DOT_BYTES = "dotprod" in FEATURES  # sums products of four signed bytes each, in one instruction of Arm's
