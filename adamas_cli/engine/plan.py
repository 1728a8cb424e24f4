"""What a model and a context will take of a GPU's memory, known before a weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from adamas_cli.cache.cache import layer_types
from adamas_cli.cache.layer import FULL
from adamas_cli.engine.heads import code_bytes, token_bytes
from adamas_cli.errors import OutOfMemoryError

# What is alive at once where a chunk is in an MLP, in units of its hidden and its inner size: the residual,
# its norm and the output; gate, up and their product.
HIDDEN_ALIVE, INNER_ALIVE = 3, 3
LIBRARIES = 150_000_000  # workspaces of cuBLAS and cuDNN, and a captured step
LISTED_BYTES = 8  # rank and position of a token that a selection may have to list, for each query head
QUANTIZED_BITS = {"bnb-4bit": 4.5, "bnb-8bit": 8.0, "torchao-int8": 8.0, "torchao-int4": 4.5, "fp8": 8.0}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes. cache: keys and values. codes: of the keys. work: what reading a chunk takes for a while."""

    weights: int
    cache: int
    codes: int
    work: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.codes + self.work

    @property
    def line(self) -> str:
        """One line."""
        parts = {"weights": self.weights, "cache": self.cache, "codes": self.codes, "work": self.work}
        told = " + ".join(f"{_gigabytes(size)} {name}" for name, size in parts.items() if size)
        return f"{told} = {_gigabytes(self.total)}"


def plan_memory(
    config: PreTrainedConfig,
    *,
    context: int,
    chunk: int,
    dtype: torch.dtype,
    quantization: str,
    sparse: bool,
    dense_layers: int,
    weights: int | None = None,
) -> MemoryPlan:
    """For a model of this config that reads `context` tokens in chunks, with codes where it is to decode
    sparsely; its weights are in `dtype`, or quantized as `quantization` says, or take so many bytes.
    """
    text = config.get_text_config()
    window = min(context, getattr(text, "sliding_window", None) or context)
    kinds = layer_types(text)
    tokens = sum(context if kind == FULL else window for kind in kinds)
    coded = sum(kind == FULL for kind in kinds[dense_layers:]) if sparse else 0
    alive = HIDDEN_ALIVE * text.hidden_size + INNER_ALIVE * text.intermediate_size
    selection = text.num_attention_heads * context * LISTED_BYTES if sparse else 0
    return MemoryPlan(
        weights=_weights(config, dtype, quantization) if weights is None else weights,
        cache=tokens * token_bytes(text, dtype),
        codes=coded * context * code_bytes(text),
        work=min(chunk, context) * alive * dtype.itemsize + selection + LIBRARIES,
    )


def require_memory(plan: MemoryPlan, device: torch.device, what: str, advice: str) -> None:
    """Raises OutOfMemoryError where the plan is for more than the GPU has."""
    there = torch.cuda.get_device_properties(device).total_memory
    if plan.total > there:
        raise OutOfMemoryError(f"{what} needs {plan.line}, and {device} has {_gigabytes(there)}. {advice}")


def _weights(config: PreTrainedConfig, dtype: torch.dtype, quantization: str) -> int:
    """Bytes of a model's weights; linear layers but the last are quantized."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    bits = QUANTIZED_BITS.get(quantization)
    if bits is None:
        return numbers * dtype.itemsize
    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    return (numbers - linear) * dtype.itemsize + int(linear * bits / 8)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
