"""What this CPU can do, as far as it matters to the code that is compiled for it."""

from __future__ import annotations

import platform

from numba.core import codegen, config


def _features() -> set[str]:
    """Features as LLVM names them, or those that numba was told to compile for."""
    text = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return {feature[1:] for feature in text.split(",") if feature.startswith("+")}


FEATURES = _features()
# x86 before 2012 converts float16 by a function call, to a library that compiled code does not find.
CONVERTS_HALVES = platform.machine() not in ("x86_64", "AMD64", "i386", "i686") or "f16c" in FEATURES
MULTIPLIES_BFLOAT16 = "avx512bf16" in FEATURES  # pairs of bfloat16, into float32 sums
COMPRESSES = "avx512f" in FEATURES  # moves chosen lanes of a vector together in one instruction
