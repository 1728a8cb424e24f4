"""Levels of CPU features. The environment variable ADAMAS_CPU limits all computing libraries to one of them.

Unset or `native` means everything the CPU has. Imports neither torch nor numba: both must be limited before
they are imported.
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
    """ADAMAS_CPU names an unknown level or one this CPU lacks; the message lists the choices."""


@dataclass(frozen=True)
class Level:
    """Which CPU features code may use, and how libraries are limited to them.

    cpu: LLVM's name of the oldest CPU of the level; features: LLVM's names; libraries: environment variables
    that torch, oneDNN and MKL read.
    """

    cpu: str
    features: frozenset[str]
    libraries: Mapping[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that limit every computing library, numba included."""
        features = ",".join(f"+{feature}" for feature in sorted(self.features))
        return {"NUMBA_CPU_NAME": self.cpu, "NUMBA_CPU_FEATURES": features, **self.libraries}


def _libraries(torch: str, onednn: str, mkl: str) -> dict[str, str]:
    return {"ATEN_CPU_CAPABILITY": torch, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}


_SSE2 = frozenset({"sse", "sse2"})
_AVX2 = _SSE2 | {"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi", "bmi2"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_NEON = frozenset({"neon"})
# By architecture; each level includes the one before it.
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
    """The levels of this architecture, lowest first; empty for an unknown architecture."""
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
    """The levels whose features this CPU has, lowest first."""
    return [name for name, level in levels().items() if level.features <= host_features()]


def limit() -> None:
    """Limit all libraries to the level in ADAMAS_CPU; call before importing them. Raises LevelError."""
    name = chosen()
    if name != NATIVE:
        os.environ.update(levels()[name].environment)


def allows(feature: str) -> bool:
    """Whether the level has a feature, in LLVM's or Linux's spelling. Raises LevelError."""
    name = chosen()
    return name == NATIVE or _spelling(feature) in map(_spelling, levels()[name].features)


def _spelling(feature: str) -> str:
    return feature.replace("_", "").replace("-", "").replace(".", "")


@cache
def host_features() -> frozenset[str]:
    """The features of this CPU, by LLVM's names."""
    try:
        from llvmlite import binding
    except ImportError:  # no numba: the other libraries check the CPU themselves
        return frozenset[str]().union(*(level.features for level in levels().values()))
    return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)
