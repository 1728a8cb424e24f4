"""Weights in fewer bits on a GPU, by the libraries that transformers quantizes with.

Models that come quantized say so in their config and need no flag: prequantized.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

PACKED = "packed"  # as in the file, or in 8 bits, by Adamas itself
# Bits per weight, including its share of a scale.
QUANTIZED_BITS = {"bnb-4bit": 4.5, "bnb-8bit": 8.0, "torchao-int8": 8.0, "torchao-int4": 4.5, "fp8": 8.0}
# Each way, with its package and the extra that installs it.
PACKAGES = {
    "bnb-4bit": ("bitsandbytes", "bnb"),
    "bnb-8bit": ("bitsandbytes", "bnb"),
    "torchao-int8": ("torchao", "torchao"),
    "torchao-int4": ("torchao", "torchao"),
    "fp8": ("torchao", "torchao"),
}
FP8_CAPABILITY = (8, 9)  # NVIDIA GPUs since Ada
INT4_CAPABILITY = (8, 0)
INT4_GROUP = 64  # weights that share a scale: divides the layers of all common models; 128 does not


def packing_obstacle(device: str) -> str | None:
    """Why weights cannot be kept in few bits on a kind of device, in a few words; None if they can."""
    needed = {"cpu": "numba", "cuda": "triton"}.get(device)
    if needed is None:
        return f"the model is on {device}"
    return f"{needed} is not installed" if find_spec(needed) is None else None


def packs(quantization: str, dtype: str, device: str, obstacle: str | None, *, in_blocks: bool) -> bool:
    """Whether weights are kept in few bits in memory: with `auto` wherever possible, unless a number format
    was requested. in_blocks: whether the model's files have them in blocks.

    Decoding reads each weight once a token, so fewer bytes are faster on every device (docs/performance.md).
    Raises UsageError if `packed` is requested and impossible.
    """
    if quantization == "none":
        return False
    if obstacle is None and device != "cpu" and not in_blocks:
        obstacle = f"the model is on {device}"
    if quantization == PACKED and obstacle:
        serves = "CPUs, GGUF files and models that come quantized"
        raise UsageError(f"`quantization` packed serves {serves}: {obstacle}.")
    return obstacle is None and (quantization == PACKED or dtype == "auto")


def kept_as(stored: Mapping[str, Any] | None, quantization: str, *, quantized: bool, packed: bool) -> str:
    """`LoadedModel.quantization`. stored: what the files say; quantized: whether it stays so in memory."""
    ways = [] if stored is None else [str(stored.get("quant_method"))]
    if ways and not quantized and not packed:
        ways.append("dequantized")
    if packed:
        ways.append(PACKED)
    elif quantization in PACKAGES:
        ways.append(quantization)
    return ", ".join(ways) or "none"


def is_installed(module: str) -> bool:
    """Whether a module can be imported; a folder with its name does not count."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def is_plain(module: object) -> bool:
    """Whether a module is a linear layer with plain numbers as weights, not quantized ones."""
    import torch
    from torch import nn

    # A quantizer may keep the weights under another name.
    if type(module) is not nn.Linear or not hasattr(module, "weight"):
        return False
    weight = module.weight.data
    return type(weight) is torch.Tensor and weight.is_floating_point() and weight.dtype.itemsize >= 2


def installed_packages() -> frozenset[str]:
    """The installed packages that can quantize."""
    return frozenset(package for package, _ in PACKAGES.values() if is_installed(package))


def require_quantizable(
    name: str, device: str, dtype: str, capability: tuple[int, int] | None, installed: Collection[str]
) -> None:
    """Raises UsageError, with advice, if weights of `dtype` cannot be quantized in this way on a kind of
    device.

    capability: of the GPU, None if unknown. installed: packages.
    """
    package, extra = PACKAGES[name]
    if device != "cuda":
        raise UsageError(f"`quantization` {name} serves GPUs: the model is on {device}.")
    if package not in installed:
        raise UsageError(f"`quantization` {name} needs {package}: pip install 'adamas[{extra}]'")
    needed = {"fp8": FP8_CAPABILITY, "torchao-int4": INT4_CAPABILITY}.get(name)
    if needed is None:
        return
    if capability is not None and capability < needed:
        wants, has = (".".join(map(str, version)) for version in (needed, capability))
        raise UsageError(f"`quantization` {name} needs a GPU of compute capability {wants}, this has {has}.")
    if dtype != "bfloat16":
        raise UsageError(f"`quantization` {name} computes in bfloat16: leave out `dtype`.")


def quantization_config(name: str, dtype: torch.dtype) -> Any:
    """The `quantization_config` for `from_pretrained`; products are computed in `dtype`."""
    if name.startswith("bnb"):
        from transformers import BitsAndBytesConfig

        if name == "bnb-8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from transformers import TorchAoConfig

    return TorchAoConfig(_torchao(name))


def _torchao(name: str) -> Any:
    """torchao's own config. By default it would also change how torch multiplies float32 everywhere."""
    if name == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(set_inductor_config=False)
    if name == "torchao-int4":
        from torchao.quantization import Int4WeightOnlyConfig
        from torchao.quantization.quantize_.workflows import Int4PackingFormat

        # The default format needs the package mslk; torch itself packs and multiplies this one.
        return Int4WeightOnlyConfig(
            group_size=INT4_GROUP,
            int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D,
            set_inductor_config=False,
        )
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    # Not transformers' FineGrainedFP8Config, which downloads its kernel from the hub during computation. Each
    # token has its own scale, so its result does not depend on tokens read with it.
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
