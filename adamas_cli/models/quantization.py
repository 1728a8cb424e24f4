"""Weights in fewer bits on a GPU, by the libraries that transformers quantizes with.

Models that come quantized (AWQ, GPTQ, FP8, compressed-tensors) say so in their config, and need no flag.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

# Each way with the package that it needs and the extra that installs it.
PACKAGES = {
    "bnb-4bit": ("bitsandbytes", "bnb"),
    "bnb-8bit": ("bitsandbytes", "bnb"),
    "torchao-int8": ("torchao", "torchao"),
    "torchao-int4": ("torchao", "torchao"),
    "fp8": ("kernels", "fp8"),
}
FP8_CAPABILITY = (8, 9)  # NVIDIA GPUs from Ada on


def require_quantizable(name: str, device: torch.device) -> None:
    """Raises UsageError where weights cannot be quantized so on this device, with what to do."""
    package, extra = PACKAGES[name]
    if device.type != "cuda":
        raise UsageError(f"--quantization {name} serves GPUs: the model is on {device.type}.")
    spec = find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name is not a package
        raise UsageError(f"--quantization {name} needs {package}: pip install 'adamas[{extra}]'")
    if name == "fp8":
        import torch

        found = torch.cuda.get_device_capability(device)
        if found < FP8_CAPABILITY:
            has = ".".join(map(str, found))
            raise UsageError(f"--quantization fp8 needs a GPU of compute capability 8.9, this has {has}.")


def quantization_config(name: str, dtype: torch.dtype) -> Any:
    """What `from_pretrained` takes as its `quantization_config`; products are computed in `dtype`."""
    if name.startswith("bnb"):
        from transformers import BitsAndBytesConfig

        if name == "bnb-8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if name == "fp8":
        from transformers import FineGrainedFP8Config

        return FineGrainedFP8Config()
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if name == "torchao-int8" else Int4WeightOnlyConfig())
