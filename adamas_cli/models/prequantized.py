"""Models that come quantized: what their config says, and who reads them.

Schemes known to `checkpoint/` keep their bits, in blocks that this project's kernels multiply. transformers
reads those that the libraries in KEPT multiply themselves; all others are rejected before weights are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.models.checkpoint.files import read_headers
from adamas_cli.models.checkpoint.forms import scheme_of
from adamas_cli.models.checkpoint.layers import held_bytes
from adamas_cli.models.folder import CONFIG, read_object, text_part
from adamas_cli.models.quantization import PACKAGES, is_installed, is_plain

if TYPE_CHECKING:
    from torch import nn

BITSANDBYTES = "bitsandbytes"
MODELOPT = "hf_quant_config.json"  # NVIDIA ModelOpt's description of quantized weights
# Kinds that libraries multiply themselves: the package, its pip name, and the devices it computes on.
KEPT = {
    BITSANDBYTES: ("bitsandbytes", "'adamas[bnb]'", ("cuda",)),
    "torchao": ("torchao", "'adamas[torchao]'", ("cuda", "cpu")),
}
_WEIGHTS = ("weight", "_proj")  # name endings; masks and positions have others
_WORDS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
READ = "AWQ, GPTQ, compressed-tensors, FP8, MXFP4 and MLX's"


def stored_quantization(directory: Path) -> dict[str, Any] | None:
    """What the config in `directory` says about quantized weights, with its `quant_method`. None if they are
    plain numbers, or if the config cannot be read, which transformers then reports.
    """
    config = read_object(directory / CONFIG)
    stored = config.get("quantization_config") or text_part(config).get("quantization_config")
    if not stored:
        return _by_others(directory, config)
    if not isinstance(stored, dict):
        return {"quant_method": str(stored)}
    if stored.get("quant_method"):
        return dict(stored)
    if stored.get("load_in_8bit") or stored.get(
        "load_in_4bit"
    ):  # as earlier versions of transformers wrote it
        return {**stored, "quant_method": BITSANDBYTES}
    return _by_others(directory, config) or dict(stored)


def _by_others(directory: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """A description of quantization by other tools than transformers: MLX's in the config, or ModelOpt's next
    to it.
    """
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and mlx.get("group_size"):
        return {**mlx, "quant_method": "mlx"}
    modelopt = read_object(directory / MODELOPT).get("quantization") or {}
    return {**modelopt, "quant_method": "modelopt"} if modelopt.get("quant_algo") else None


def require_readable(name: str, stored: dict[str, Any], quantization: str, device: str) -> None:
    """Raises UsageError if the model called `name` would be quantized again, and ModelUnavailableError, with
    advice, if its kind is not read here on this kind of device, or needs a package.
    """
    method = str(stored.get("quant_method") or "without a quant_method")
    if quantization in PACKAGES:
        raise UsageError(f"{name} comes quantized ({method}): leave out `quantization` {quantization}.")
    if scheme_of(stored) is not None:
        return
    if method not in KEPT:
        algorithm = stored.get("quant_algo") or stored.get("format") or stored.get("checkpoint_format")
        told = f"{method}, {algorithm}" if algorithm else method
        raise ModelUnavailableError(
            f"{name} comes quantized ({told}), in an unsupported form.\n"
            f"Take another form of it: GGUF, {READ} usual ones are read."
        )
    package, extra, devices = KEPT[method]
    if device not in devices:
        raise ModelUnavailableError(f"{name} comes quantized ({method}), which only GPUs compute with.")
    if not is_installed(package):
        raise ModelUnavailableError(f"{name} comes quantized ({method}) and needs more: pip install {extra}")


def require_numbers(name: str, directory: Path) -> None:
    """Raises ModelUnavailableError if weights of the model called `name` are integer words without a
    description of what they encode.
    """
    if stored_quantization(directory) is not None:
        return
    words = (
        f"{tensor} is of {entry.dtype}"
        for tensor, entry in read_headers(directory).items()
        if tensor.endswith(_WEIGHTS) and entry.dtype in _WORDS
    )
    if first := next(words, None):
        raise ModelUnavailableError(
            f"cannot load {name}: {first}, and its config does not say how its weights are quantized."
        )


def holds_quantized(model: nn.Module) -> bool:
    """Whether a linear layer of the model is not a plain one with numbers as weights."""
    return any(hasattr(module, "in_features") and not is_plain(module) for module in model.modules())


def stored_bytes(directory: Path) -> int | None:
    """Bytes of weights that a library multiplies as stored; None for all others. Raises ModelUnavailableError
    for damaged ones.
    """
    stored = stored_quantization(directory)
    if stored is None or scheme_of(stored) is not None:
        return None
    return sum(entry.bytes for entry in read_headers(directory).values())


def block_bytes(directory: Path) -> int | None:
    """Upper bound on the bytes of weights kept in blocks; None for a model not quantized in that way."""
    stored = stored_quantization(directory)
    scheme = None if stored is None else scheme_of(stored)
    return None if scheme is None else held_bytes(scheme, directory)
