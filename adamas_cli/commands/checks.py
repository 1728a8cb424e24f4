"""The checks of `adamas doctor`: what each found, and how to fix problems."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from adamas_cli.config import config_path, read_config
from adamas_cli.errors import AdamasError
from adamas_cli.folders import cache_directory
from adamas_cli.machine.cores import physical_cores
from adamas_cli.machine.cpu import cpu_features, cpu_level, cpu_name
from adamas_cli.machine.gpus import cuda_of_driver, driver_version, gpus
from adamas_cli.machine.memory import memory
from adamas_cli.machine.products import known
from adamas_cli.machine.triton_trial import try_triton
from adamas_cli.machine.versions import cuda_of_torch
from adamas_cli.store.places import documents_directory

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "huggingface-hub")
LEAST_FREE = 2_000_000_000  # bytes of disk, for a small model and a few documents
LEAST_MEMORY = 2_000_000_000

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Check:
    """One finding. advice: what to do if it is `wrong`, or what a `note` implies."""

    name: str
    state: State
    found: str
    advice: str = ""


def machine_checks(settings: Collection[str]) -> list[Callable[[], Check]]:
    """The checks of this machine, in display order; each may take a while.

    settings: the names that the configuration file may hold.
    """
    return [
        _packages,
        lambda: _configuration(settings),
        _gpu,
        _triton,
        _cpu,
        _memory,
        _models_disk,
        _documents_disk,
    ]


def _packages() -> Check:
    missing, found = [], []
    for package in NEEDED:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        lacking = ", ".join(missing)
        return Check("packages", "wrong", f"{lacking} missing", "Install adamas again: pip install adamas")
    return Check("packages", "ok", ", ".join(found))


def _configuration(settings: Collection[str]) -> Check:
    path = config_path()
    try:
        set_there = read_config(settings)
    except AdamasError as error:
        return Check("configuration", "wrong", error.message, f"Correct {path}, or remove it.")
    return Check("configuration", "ok", f"{path}, {len(set_there)} settings" if path.exists() else "none")


def _gpu() -> Check:
    there, built, served = gpus(), cuda_of_torch(), cuda_of_driver()
    if not there:
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            return Check("GPU", "note", "hidden by CUDA_VISIBLE_DEVICES", "Models run on the CPU.")
        driver = driver_version()
        if driver is not None:
            advice = "`nvidia-smi` may show why; restart the machine after a driver update."
            return Check("GPU", "wrong", f"driver {driver} is installed, but CUDA does not start", advice)
        return Check("GPU", "note", "none from NVIDIA", "Models run on the CPU.")
    names = ", ".join(f"{gpu.name} with {gpu.memory / 1e9:.0f} GB" for gpu in there)
    found = f"{names}; driver {driver_version() or 'unknown'}, CUDA {served}"
    if built is None:
        advice = "Install torch's CUDA build: https://pytorch.org/get-started/locally/"
        return Check("GPU", "wrong", f"{found}, but this torch was built without CUDA", advice)
    if served is not None and int(served.split(".")[0]) < int(built.split(".")[0]):
        advice = f"Update NVIDIA's driver to one for CUDA {built}, or install a torch for CUDA {served}."
        return Check("GPU", "wrong", f"{found}, but torch needs CUDA {built}", advice)
    if len(there) > 1:
        found += f"; --gpus {len(there)} splits a model over them"
    return Check("GPU", "ok", found)


def _triton() -> Check:
    trial = try_triton()
    if trial.problem is None:
        done = "compiles and runs a kernel" if trial.ran else "compiles a kernel"
        return Check("Triton", "ok", f"{done}, in {trial.seconds:.1f} s with its start")
    if gpus():
        advice = "Reinstall triton and a C compiler (gcc); until then: `backend` torch"
        return Check("Triton", "wrong", trial.problem, advice)
    return Check("Triton", "note", trial.problem, "Only needed on GPUs.")


def _cpu() -> Check:
    features = cpu_features()
    found = f"{cpu_name()}, {physical_cores()} threads" + (f", {' '.join(features)}" if features else "")
    found += f" (level {cpu_level()})"
    try:
        version("numba")
    except PackageNotFoundError:
        advice = "Install numba: it compiles the kernels for this CPU."
        return Check("CPU", "wrong" if not gpus() else "note", found, advice)
    return Check("CPU", "ok", f"{found}; packed weights: products of {known()}")


def _memory() -> Check:
    there = memory()
    found = f"{there.available / 1e9:.1f} of {there.total / 1e9:.1f} GB available"
    if there.available < LEAST_MEMORY:
        return Check("memory", "wrong", found, "Close other programs: the default model needs 2 GB.")
    return Check("memory", "ok", found)


def _models_disk() -> Check:
    return _disk("disk, models", cache_directory(), "ADAMAS_CACHE_DIR")


def _documents_disk() -> Check:
    return _disk("disk, documents", documents_directory(), "ADAMAS_DOC_CACHE")


def _disk(name: str, folder: Path, variable: str) -> Check:
    there = next(above for above in (folder, *folder.parents) if os.path.exists(above))
    other = f"set {variable} to another folder."
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(name, "wrong", f"{folder} cannot be written", f"Change its owner, or {other}")
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free in {_short(folder)}"
    if free < LEAST_FREE:
        return Check(name, "wrong", found, f"Make room: `adamas cache prune`, or {other}")
    return Check(name, "ok", found)


def _short(folder: Path) -> str:
    """A folder with `~` for the home folder."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)
