"""This machine's processor: its name and its features."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from adamas_kernels import levels

from adamas_cli.errors import UsageError

# Linux's names of the features that decide the speed of attention and of 8-bit and 16-bit products.
FEATURES = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def cpu_name() -> str:
    """The processor's own name."""
    return _fields().get("model name") or platform.processor() or platform.machine()


def limit_cpu() -> None:
    """Tell compute libraries, before they are imported, about the level that ADAMAS_CPU sets. Raises
    UsageError for an unknown level, or one that this CPU does not reach.
    """
    try:
        levels.limit()
    except levels.LevelError as error:
        raise UsageError(str(error)) from error


def cpu_level() -> str:
    """The level in use: that of ADAMAS_CPU, else the highest that this CPU reaches. Raises UsageError."""
    try:
        chosen = levels.chosen()
    except levels.LevelError as error:
        raise UsageError(str(error)) from error
    if chosen != levels.NATIVE:
        return f"{chosen}, by {levels.VARIABLE}"
    return next(reversed(levels.reachable()), chosen)


def cpu_features() -> tuple[str, ...]:
    """The FEATURES that the CPU has and that may be used; known only on Linux."""
    flags = cpu_flags()
    return tuple(feature for feature in FEATURES if feature in flags)


def cpu_flags() -> frozenset[str]:
    """All of the CPU's flags in Linux that may be used; empty on other systems."""
    fields = _fields()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return frozenset(filter(levels.allows, flags))


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; asks torch where there are no flags."""
    flags = cpu_flags()
    if flags or not levels.allows("avx512_bf16"):
        return not flags.isdisjoint(("avx512_bf16", "amx_tile"))
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _fields() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
