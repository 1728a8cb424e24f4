"""This machine's processor: its name and what it can compute."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from adamas_kernels import levels

from adamas_cli.errors import UsageError

# As Linux names them: what decides how fast attention and products of 8-bit and 16-bit numbers are.
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
    """Tell the libraries that compute, before they are imported, of the level that ADAMAS_CPU sets. Raises
    UsageError for one that there is not, or that this CPU does not reach.
    """
    try:
        levels.limit()
    except levels.LevelError as error:
        raise UsageError(str(error)) from error


def cpu_level() -> str:
    """The level in use: what ADAMAS_CPU sets, else the highest that this CPU reaches. Raises UsageError."""
    try:
        chosen = levels.chosen()
    except levels.LevelError as error:
        raise UsageError(str(error)) from error
    if chosen != levels.NATIVE:
        return f"{chosen}, by {levels.VARIABLE}"
    return next(reversed(levels.reachable()), chosen)


def cpu_features() -> tuple[str, ...]:
    """Those of FEATURES that it has and that may be used; none are known on systems other than Linux."""
    flags = cpu_flags()
    return tuple(feature for feature in FEATURES if feature in flags)


def cpu_flags() -> frozenset[str]:
    """All that Linux says about it and that may be used; empty on other systems."""
    fields = _fields()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return frozenset(filter(levels.allows, flags))


@cache
def _fields() -> dict[str, str]:
    """What /proc/cpuinfo says about the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
