"""Which device a model runs on, and in which number format."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from adamas_cli.errors import UsageError
from adamas_cli.machine.cpu import cpu_multiplies_bfloat16
from adamas_cli.machine.gpus import gpus
from adamas_cli.machine.products import Products, measured
from adamas_cli.models.quantization import packing_obstacle, packs

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


@cache
def has_cuda_gpu() -> bool:
    """Whether torch will find a CUDA GPU; asks the driver, to avoid importing torch."""
    try:
        if "+cpu" in version("torch"):
            return False
    except PackageNotFoundError:  # reported by `adamas doctor`
        return False
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and bool(gpus())


def wants_cuda(device: str) -> bool:
    """Whether `device` (`auto`, `cpu`, `cuda:1`, …) means a CUDA GPU on this machine."""
    return has_cuda_gpu() if device == "auto" else device.startswith("cuda")


def device_kind(device: str) -> str:
    """The device type `choose_device` would choose, by torch's name, without importing torch."""
    if device == "auto":
        return "cuda" if has_cuda_gpu() else "cpu"
    return device.partition(":")[0]


def number_format(dtype: str, bfloat16: bool) -> str:
    """The format for `auto` or a name: bfloat16 if the hardware multiplies it natively, which doubles the
    prefill's speed on such CPUs; else float32.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if bfloat16 else "float32"


def multiplies_bfloat16(kind: str) -> bool:
    """Whether a kind of device multiplies bfloat16 natively; avoids importing torch where possible."""
    if kind != "cpu":
        return kind == "cuda"
    return cpu_multiplies_bfloat16()


def dtype_name(dtype: str, kind: str) -> str:
    """The format `choose_dtype` would choose for a kind of device."""
    return number_format(dtype, dtype == "auto" and multiplies_bfloat16(kind))


def choose_products(
    dtype: str, device: torch.device, *, packed: bool, note: Callable[[str], None]
) -> Products:
    """The number format for `auto` or a name on `device`, and whether activations are rounded: with packed
    weights on a CPU, what a measurement found. note: called with one line before kernels are compiled.

    Raises UsageError for an unknown name.
    """
    if packed and dtype == "auto" and device.type == "cpu":
        return measured(note).products
    return Products(str(choose_dtype(dtype, device)).removeprefix("torch."), in_bytes=False)


def usual_products(
    dtype: str, quantization: str, device: torch.device, note: Callable[[str], None]
) -> Products:
    """`choose_products` for weights that a CPU packs wherever it can. Raises UsageError."""
    packed = device.type == "cpu" and packs(
        quantization, dtype, device.type, packing_obstacle(device.type), in_blocks=False
    )
    return choose_products(dtype, device, packed=packed, note=note)


def choose_device(device: str) -> torch.device:
    """The torch device for `auto` or a name.

    Raises UsageError for a name unknown to torch, or a CUDA device that does not exist.
    """
    import torch

    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"`device` {device}: torch knows no such device. Try auto, cpu or cuda.") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        if (chosen.index or 0) >= count:
            raise UsageError(f"`device` {device}: torch sees {count} CUDA devices here. Try `device` cpu.")
        return torch.device("cuda", chosen.index or 0)
    return chosen


def require_gpus(device: str, count: int) -> None:
    """Raises UsageError if a model cannot be split over this many GPUs here, as `devices_of` does, without
    torch.
    """
    if count < 1:
        raise UsageError(f"`gpus` {count}: give 1 or more.")
    if count == 1 or device == "cpu":
        return
    _require_all(device, count, len(gpus()) if has_cuda_gpu() else 0)


def _require_all(device: str, count: int, there: int) -> None:
    if device not in ("auto", "cuda"):
        raise UsageError(f"`gpus` {count} takes the first {count} GPUs: leave out `device` {device}.")
    if there < count:
        raise UsageError(f"`gpus` {count} is more than there are on this machine: {there}.")


def devices_of(device: str, count: int) -> list[torch.device]:
    """The devices of a model that is split over this many GPUs; for tests, `cpu` for each.

    Raises UsageError if there are fewer GPUs, or one of several is named.
    """
    import torch

    if device == "cpu":
        return [torch.device("cpu")] * count
    _require_all(device, count, torch.cuda.device_count())
    return [torch.device("cuda", index) for index in range(count)]


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The number format for `auto` or a name on `device`.

    Raises UsageError for an unknown name.
    """
    import torch

    name = dtype_name(dtype, device.type)
    if name not in DTYPES:
        raise UsageError(f"`dtype` {dtype}: choose auto, {', '.join(DTYPES)}.")
    chosen = getattr(torch, name)
    assert isinstance(chosen, torch.dtype)
    return chosen
