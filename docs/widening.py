"""A real model's weights in a larger model's shape, for docs/measure_host.py: it computes what the small
model does, so it asks and chooses as a model that understands its text, in the time of the large one.

    load_widened(FILE, "llama-3.1-8b", context) -> LoadedModel

Coordinates, inner numbers of MLPs and layers that the small model lacks are zeros, or give nothing to the
residual. Heads are repeated: a KV head of the small model is several of the large one, with a group of its
query heads each; a query head's output counts once. RMSNorm takes a mean over all coordinates, so its weights
are scaled by the root of the share that is not zero.

Positions beyond the model's own context are scaled by YaRN (https://arxiv.org/abs/2309.00071), by whatever
factor reaches `context`; models are trained for factors up to 4, so far beyond what the model says is of no
use, but its heads still look for what is like their queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from adamas_cli.lab.bench.shapes import shape_fields
from adamas_cli.models import LoadedModel, resolve
from adamas_cli.progress import Silent

HEAD_PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class Small:
    """A file of a `qwen2` model. tensor: of a name, as float32 numbers."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    theta: float
    eps: float
    tensor: Callable[[str], Tensor]

    @classmethod
    def of(cls, path: Path) -> Small:
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}

        def fact(name: str) -> float:
            return float(reader.fields[f"qwen2.{name}"].parts[-1][0])

        def tensor(name: str) -> Tensor:
            found = tensors[name]
            return torch.from_numpy(np.array(gguf.dequantize(found.data, found.tensor_type), np.float32))

        whole = ("embedding_length", "feed_forward_length", "block_count", "attention.head_count")
        whole += ("attention.head_count_kv", "context_length")
        numbers = (int(fact(name)) for name in whole)
        return cls(*numbers, fact("rope.freq_base"), fact("attention.layer_norm_rms_epsilon"), tensor)

    def config(self, shape: str, context: int, vocabulary: int) -> PreTrainedConfig:
        """Of a model with a shape's widths and layers, and these tokens."""
        fields = shape_fields(shape) | {"model_type": "qwen2", "vocab_size": vocabulary}
        scaling = {"rope_type": "default", "rope_theta": self.theta}
        if context > self.context:
            scaling |= {"rope_type": "yarn", "factor": context / self.context}
            scaling |= {"original_max_position_embeddings": self.context}
        fields |= {"max_position_embeddings": context, "rope_parameters": scaling, "rms_norm_eps": self.eps}
        return AutoConfig.for_model(
            **fields, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=None
        )


class Widened:
    """Which of the small model's heads are which of the large one's."""

    def __init__(self, small: Small, config: PreTrainedConfig) -> None:
        self.small, self.config = small, config
        copies, rest = divmod(config.num_key_value_heads, small.kv_heads)
        queries, group = config.num_attention_heads // small.kv_heads, small.heads // small.kv_heads
        if rest or queries < group:
            raise ValueError(f"heads of this shape are too few for {small.heads}/{small.kv_heads}")
        each = [head * group + at % group for head in range(small.kv_heads) for at in range(queries)]
        self.queries = torch.tensor(each)
        self.keys = torch.arange(small.kv_heads).repeat_interleave(copies)
        self.counts = torch.tensor([each.index(head) == at for at, head in enumerate(each)])

    def layer(self, index: int) -> tuple[int, bool]:
        """Which of the small model's layers a layer is, and whether it gives anything to the residual: those
        that are one too many repeat the one before.
        """
        layers, more = self.config.num_hidden_layers, self.config.num_hidden_layers - self.small.layers
        repeated, rest = divmod(index + 1, layers // more if more else layers + 1)
        return index - min(more, repeated), rest != 0 or repeated > more

    def fill(self, name: str, parameter: Tensor) -> None:
        """Changes: a parameter of the large model gets its numbers."""
        if "norm" in name:
            value = self._norm(name)
        elif name.startswith("model.layers"):
            value = self._product(name)
        else:
            value = self.small.tensor("token_embd.weight")
        parameter.zero_()
        where = tuple(slice(0, size) for size in value.shape)
        parameter[where] = value.to(parameter)

    def _norm(self, name: str) -> Tensor:
        scale = math.sqrt(self.small.hidden / self.config.hidden_size)
        if name == "model.norm.weight":
            return self.small.tensor("output_norm.weight") * scale
        _, _, index, kind, _ = name.split(".")
        of = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}[kind]
        return self.small.tensor(f"blk.{self.layer(int(index))[0]}.{of}.weight") * scale

    def _product(self, name: str) -> Tensor:
        _, _, index, _, kind, of = name.split(".")
        layer, counts = self.layer(int(index))
        block, part = f"blk.{layer}", kind.removesuffix("_proj")
        if part in HEAD_PARTS:
            value = self.small.tensor(f"{block}.attn_{part}.{of}")
            which = self.queries if part == "q" else self.keys
            heads = self.small.heads if part == "q" else self.small.kv_heads
            return value.unflatten(0, (heads, -1))[which].flatten(0, 1)
        if part in ("o", "down"):
            value = (
                self.small.tensor(f"{block}.{'attn_output' if part == 'o' else 'ffn_down'}.weight") * counts
            )
            if part == "down":
                return value
            each = value.unflatten(1, (self.small.heads, -1))[:, self.queries]
            return (each * self.counts[:, None]).flatten(1)
        return self.small.tensor(f"{block}.ffn_{part}.weight")


def made(small: Small, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The large model, or the small one for a config of its own widths."""
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    widened = Widened(small, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            widened.fill(name, parameter)
    return model.eval().requires_grad_(False)


def load_widened(
    path: Path, shape: str, context: int, *, dtype: torch.dtype, device: torch.device
) -> LoadedModel:
    """The model of a GGUF file in this shape with a context of this many tokens."""
    files, small = resolve(str(path), offline=True, progress=Silent()), Small.of(path)
    config = small.config(shape, context, len(small.tensor("token_embd.weight")))
    files = replace(files, name=f"{files.name} as {shape}")
    return LoadedModel(made(small, config, dtype, device), files, device, dtype, context, ())
