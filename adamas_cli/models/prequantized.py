"""Models that come quantized: what their config says, which packages they need, and how they are read here.

transformers reads them, or `grids.py`. Where weights are kept compressed only until they are first used, or
nothing here multiplies them, they are turned back into numbers while they are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.models.folder import CONFIG
from adamas_cli.models.grids import Grid, stored_grid
from adamas_cli.models.quantization import FP8_CAPABILITY, PACKAGES, is_installed, is_plain
from adamas_cli.models.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adamas_cli.progress import Progress

BITSANDBYTES = "bitsandbytes"
COMPRESSED_TENSORS = "compressed-tensors"
FP8 = "fp8"
# What pip installs for the common kinds, by the name of the module; of the others transformers says so.
NEEDED = {
    "awq": {"gptqmodel": "gptqmodel"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    BITSANDBYTES: {"bitsandbytes": "'adamas[bnb]'"},
    COMPRESSED_TENSORS: {"compressed_tensors": "'adamas[compressed-tensors]'"},
    "torchao": {"torchao": "'adamas[torchao]'"},
}
DEQUANTIZED = (COMPRESSED_TENSORS, FP8)  # kinds that may be, see `reading`


def stored_quantization(directory: Path) -> dict[str, Any] | None:
    """What the config in `directory` says about quantized weights, with its `quant_method`; None where they
    are numbers as they are, or the config cannot be read, of which transformers says more.
    """
    try:
        config: dict[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    text: dict[str, Any] = config.get("text_config") or {}
    stored = config.get("quantization_config") or text.get("quantization_config")
    if not stored:
        return None
    if not isinstance(stored, dict):
        return {"quant_method": str(stored)}
    if not stored.get("quant_method") and (stored.get("load_in_8bit") or stored.get("load_in_4bit")):
        return {**stored, "quant_method": BITSANDBYTES}  # as earlier versions of transformers wrote it
    return dict(stored)


def numbers_in_word(stored: dict[str, Any] | None) -> int:
    """Integers in each 32-bit word of a model's packed weights; 1 where none are packed into words."""
    stored = stored or {}
    groups = stored.get("config_groups") or {}
    weights = [group.get("weights") or {} for group in groups.values() if isinstance(group, dict)]
    told = [weight.get("num_bits") for weight in weights]
    bits = stored.get("bits") or stored.get("w_bit") or next(iter(told), None)
    return 32 // bits if isinstance(bits, int) and 0 < bits <= 32 else 1


def require_readable(name: str, stored: dict[str, Any], quantization: str) -> None:
    """Raises UsageError where the model called `name` is to be quantized once more, ModelUnavailableError
    where transformers does not know the kind, or a package is missing without which it is not read, with what
    to install.
    """
    method = stored.get("quant_method")
    if quantization in PACKAGES:
        raise UsageError(f"{name} comes quantized ({method}): leave out `quantization` {quantization}.")
    from transformers.quantizers import AutoHfQuantizer

    with quiet_transformers():
        known = bool(method) and AutoHfQuantizer.supports_quant_method(stored)
    if not method or not known:
        kind = method or "without a quant_method"
        raise ModelUnavailableError(
            f"{name} comes quantized ({kind}), and this version of transformers does not know how."
        )
    missing = _missing(method)
    if missing and stored_grid(stored) is None:
        raise ModelUnavailableError(
            f"{name} comes quantized ({method}) and needs more: pip install {' '.join(missing)}"
        )


def grid_to_dequantize(stored: dict[str, Any]) -> Grid | None:
    """The grid of a model whose weights are dequantized by `grids.py`; None where transformers reads them.

    It does where the packages are there that multiply them as they are.
    """
    return stored_grid(stored) if _missing(str(stored.get("quant_method"))) else None


def reading(stored: dict[str, Any], device: torch.device, progress: Progress) -> Any:
    """What `from_pretrained` takes as `quantization_config` for a model that comes quantized, or None.

    compressed-tensors: transformers keeps weights compressed until the first pass through the model and then
    dequantizes them all, so that it saves no memory and layers change while they are in use; they are
    dequantized at once. FP8 in blocks is multiplied by a kernel that the package `kernels` fetches from the
    hub, on GPUs.
    """
    method = stored["quant_method"]
    if (grid := grid_to_dequantize(stored)) is not None:
        if device.type == "cuda":
            larger = f"{16 // grid.bits} times as large"
            packages = " ".join(_missing(method))
            progress.note(
                f"its {method} weights are dequantized, {larger}: pip install {packages} to keep them"
            )
        return None
    if method == COMPRESSED_TENSORS:
        from transformers import CompressedTensorsConfig

        return CompressedTensorsConfig(dequantize=True)
    if method == FP8:
        obstacle = _fp8_obstacle(device)
        if obstacle is None:
            return None
        from transformers import FineGrainedFP8Config

        if device.type == "cuda":
            progress.note(f"its FP8 weights are dequantized, twice as large: {obstacle}")
        # Of a config that is passed, transformers takes these two from here and not from the files.
        kept = stored.get("modules_to_not_convert") or stored.get("ignored_layers")
        return FineGrainedFP8Config(dequantize=True, modules_to_not_convert=kept)
    return None


def holds_quantized(model: nn.Module) -> bool:
    """Whether a linear layer of the model is anything but a plain one with numbers as they are."""
    return any(hasattr(module, "in_features") and not is_plain(module) for module in model.modules())


def stored_bytes(directory: Path) -> int | None:
    """Bytes of quantized weights that stay so in memory; None where weights are numbers as they are."""
    stored = stored_quantization(directory)
    if stored is None or stored.get("quant_method") in DEQUANTIZED or grid_to_dequantize(stored):
        return None
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _missing(method: str) -> list[str]:
    """What pip would have to install for a kind."""
    return [package for module, package in NEEDED.get(method, {}).items() if not is_installed(module)]


def _multiplies_fp8(device: torch.device) -> bool:
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def _fp8_obstacle(device: torch.device) -> str | None:
    """Why blocks of FP8 are not multiplied here, or None where they are."""
    if not _multiplies_fp8(device):
        return f"{device.type} does not multiply them"
    if not is_installed("kernels"):
        return "pip install kernels to keep them"
    from transformers.integrations.finegrained_fp8 import load_finegrained_fp8_kernel

    try:
        load_finegrained_fp8_kernel()
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None
