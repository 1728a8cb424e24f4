"""Levels of CPU features, to one of which the environment variable ADAMAS_CPU limits all that computes.

Not set, or `native`, means everything that the CPU has. Imports neither torch nor numba, so that both can be
told before they are imported.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

VARIABLE = "ADAMAS_CPU"
NATIVE = "native"
X86 = ("x86_64", "AMD64")
ARM = ("aarch64", "arm64")


class LevelError(ValueError):
    """ADAMAS_CPU names no level, or one that this CPU does not reach; the message says what it may be."""


@dataclass(frozen=True)
class Level:
    """What code may use, and how libraries are told so.

    cpu: the oldest CPU of the level, by LLVM's name; features: by LLVM's names; libraries: variables of the
    environment that torch, oneDNN and MKL read.
    """

    cpu: str
    features: frozenset[str]
    libraries: Mapping[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that limit every library that computes, numba among them."""
        features = ",".join(f"+{feature}" for feature in sorted(self.features))
        return {"NUMBA_CPU_NAME": self.cpu, "NUMBA_CPU_FEATURES": features, **self.libraries}


def _libraries(torch: str, onednn: str, mkl: str) -> dict[str, str]:
    return {"ATEN_CPU_CAPABILITY": torch, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}


_SSE2 = frozenset({"sse", "sse2"})
_AVX2 = _SSE2 | {"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi", "bmi2"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_NEON = frozenset({"neon"})
# By kind of processor, each level with the one before it.
_LEVELS: dict[tuple[str, ...], dict[str, Level]] = {
    X86: {
        "plain": Level("x86-64", _SSE2, _libraries("default", "SSE41", "SSE4_2")),
        "avx2": Level("haswell", _AVX2, _libraries("avx2", "AVX2", "AVX2")),
        "avx512": Level("skylake-avx512", _AVX512, _libraries("avx512", "AVX512_CORE", "AVX512")),
        "avx512_bf16": Level(
            "cooperlake",
            _AVX512 | {"avx512vnni", "avx512bf16"},
            _libraries("avx512", "AVX512_CORE_BF16", "AVX512_E3"),
        ),
    },
    ARM: {
        "plain": Level("generic", _NEON, {"ATEN_CPU_CAPABILITY": "default"}),
        "dotprod": Level("generic", _NEON | {"dotprod"}, {"ATEN_CPU_CAPABILITY": "default"}),
    },
}


def levels() -> dict[str, Level]:
    """Those of this kind of processor, the least first; none where it is of another kind."""
    machine = platform.machine()
    return next((known for kinds, known in _LEVELS.items() if machine in kinds), {})


def chosen() -> str:
    """The name of the level that ADAMAS_CPU sets. Raises LevelError."""
    name = os.environ.get(VARIABLE) or NATIVE
    known = levels()
    if name == NATIVE:
        return name
    if name not in known:
        raise LevelError(f"{VARIABLE} is {name}: choose {', '.join([NATIVE, *known])}.")
    lacking = known[name].features - host_features()
    if lacking:
        reached = ", ".join([NATIVE, *reachable()])
        lacks = ", ".join(sorted(lacking))
        raise LevelError(f"{VARIABLE} is {name}, but this CPU lacks {lacks}: choose {reached}.")
    return name


def reachable() -> list[str]:
    """The levels whose features this CPU has, the least first."""
    return [name for name, level in levels().items() if level.features <= host_features()]


def limit() -> None:
    """Tell every library of the level that ADAMAS_CPU sets, before it is imported. Raises LevelError."""
    name = chosen()
    if name != NATIVE:
        os.environ.update(levels()[name].environment)


def allows(feature: str) -> bool:
    """Whether the level has a feature, spelled as LLVM or as Linux does. Raises LevelError."""
    name = chosen()
    return name == NATIVE or _spelling(feature) in map(_spelling, levels()[name].features)


def _spelling(feature: str) -> str:
    return feature.replace("_", "").replace("-", "").replace(".", "")


@cache
def host_features() -> frozenset[str]:
    """What this CPU has, as LLVM names it."""
    try:
        from llvmlite import binding
    except ImportError:  # as where there is no numba: libraries take no more than there is, by themselves
        return frozenset[str]().union(*(level.features for level in levels().values()))
    return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)
