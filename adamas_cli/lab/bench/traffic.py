"""The bytes that one decode step must read: the weights, and the part of the cache for attention."""

from __future__ import annotations

from typing import Any

from adamas_cli.cache.layer import SLIDING
from adamas_cli.models.shape import shape_of_config
from adamas_cli.models.stacked_experts import StackedExperts, can_pack


def step_bytes(model: Any, length: int, budget: int | None, dense_layers: int) -> int:
    """Bytes of a step after `length` tokens: with full attention, or with `budget` tokens per query head in
    all but the first layers.
    """
    config = model.config.get_text_config()
    shape, item = shape_of_config(config), model.dtype.itemsize
    total = _weights(model) + 2 * shape.kept_state_bytes(item)  # read and written
    for index, layer in enumerate(shape.by_layer):
        read = layer if layer.shares is None else shape.by_layer[layer.shares]
        if not read.keeps:
            continue
        if layer.kind == SLIDING or budget is None or index < dense_layers:
            total += read.cache_bytes(length, item)
        else:
            # Query heads of a group may choose the same tokens; the upper bound assumes that none do.
            chosen = min(budget * shape.heads, length * read.kv_heads)
            total += length * read.code_bytes + chosen * read.token_bytes(item) // read.kv_heads
    return total


def _weights(model: Any) -> int:
    """Bytes of all weights except the embedding's, unless tied to the head: a step reads only one row of it.
    Of experts, only those that the token chose count.
    """
    choices = shape_of_config(model.config.get_text_config()).choices
    unread = sum(
        _bytes(module) * max(0, module.num_experts - choices) // module.num_experts
        for module in model.modules()
        if isinstance(module, StackedExperts) or can_pack(module)
    )
    embedding = _parameter(model.get_input_embeddings())  # None if its rows stay in the file
    tied = _parameter(model.get_output_embeddings()) is embedding
    return _bytes(model) - unread - (0 if embedding is None or tied else int(embedding.nbytes))


def _bytes(module: Any) -> int:
    """Bytes of all weights of a module, except embeddings in few bits."""
    held = sum(_held(parameter) for parameter in module.parameters())
    return held + sum(getattr(part, "weight_bytes", 0) for part in module.modules())


def _parameter(module: Any) -> Any:
    """The weight that a module holds as numbers, or None."""
    return None if module is None else module._parameters.get("weight")


def _held(tensor: Any) -> int:
    """Bytes of a weight, or of the tensors inside a quantized one, which reports the size of what it
    represents.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    return sum(_held(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
