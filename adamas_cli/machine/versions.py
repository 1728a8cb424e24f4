"""Versions and settings for bug reports, from metadata alone; secrets stay hidden."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adamas_cli import __version__
from adamas_cli.errors import UsageError
from adamas_cli.machine.cores import physical_cores
from adamas_cli.machine.cpu import cpu_features, cpu_level, cpu_name
from adamas_cli.machine.gpus import cuda_of_driver, driver_version, gpus

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "numba",
    "numpy",
    "safetensors",
    "huggingface-hub",
    "tiktoken",
    "liger-kernel",
    "typer",
    "rich",
)
HIDDEN = "(hidden)"
_RELEVANT = re.compile(
    r"(ADAMAS|HF|HUGGINGFACE|TRANSFORMERS|TOKENIZERS|CUDA|NVIDIA|TRITON|TORCH|PYTORCH|NUMBA|ATEN|ONEDNN|OMP|GOMP|KMP|MKL|XDG)_"
    r"|(NO_COLOR|FORCE_COLOR|TERM|COLUMNS|LANG|LC_ALL|PYTHONUTF8|DO_NOT_TRACK|https?_proxy)$",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(r"TOKEN(?!IZERS_PARALLELISM)|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRET_PART = re.compile(r"hf_\w{8,}|(?<=://)[^/@\s]+(?=@)")


def versions() -> dict[str, str]:
    """The versions by name; a missing package is marked."""
    found = {
        "adamas": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}",
        "platform": platform.platform(),
    }
    found |= {package: _version(package) for package in PACKAGES}
    found["CUDA of torch"] = cuda_of_torch() or "none"
    found["CUDA of the driver"] = cuda_of_driver() or "none"
    found["driver"] = driver_version() or "none"
    found["GPU"] = "; ".join(f"{gpu.name}, {gpu.memory / 1e9:.0f} GB" for gpu in gpus()) or "none"
    found["CPU"] = f"{cpu_name()}, {physical_cores()} cores"
    found["CPU level"] = _level()
    return found


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables that affect adamas, sorted, without secrets."""
    return dict(sorted(_relevant(variables)))


def cuda_of_torch() -> str | None:
    """The CUDA version that torch was built with, such as `13.0`, from torch's version file; None without."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found.group(1) if found else None


def _level() -> str:
    """The level in use with its features, or the problem with ADAMAS_CPU."""
    try:
        return f"{cpu_level()}: {' '.join(cpu_features())}"
    except UsageError as error:
        return error.message


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _relevant(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in variables.items():
        if _RELEVANT.match(name):
            yield name, HIDDEN if _SECRET_NAME.search(name) else _SECRET_PART.sub(HIDDEN, value)
