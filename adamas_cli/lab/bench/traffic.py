"""The bytes that one decode step must read: the weights, and the part of the cache for attention."""

from __future__ import annotations

from typing import Any

from adamas_cli.cache.layer import SLIDING
from adamas_cli.models.shape import shape_of_config
from adamas_cli.models.stacked_experts import StackedExperts, can_pack


def step_bytes(model: Any, length: int, budget: int | None, dense_layers: int) -> int:
    """Of a step after `length` tokens: fully attending, or to `budget` tokens of each query head in all but
    the first layers.
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
            # Query heads of a group may choose the same tokens; what none of them shares is the upper bound.
            chosen = min(budget * shape.heads, length * read.kv_heads)
            total += length * read.code_bytes + chosen * read.token_bytes(item) // read.kv_heads
    return total


def _weights(model: Any) -> int:
    """Bytes of all weights but the embedding's, unless it is the head's too: a step reads one row of it. Of
    experts it reads those that the token chose.
    """
    choices = shape_of_config(model.config.get_text_config()).choices
    unread = sum(
        _bytes(module) * max(0, module.num_experts - choices) // module.num_experts
        for module in model.modules()
        if isinstance(module, StackedExperts) or can_pack(module)
    )
    embedding = _parameter(model.get_input_embeddings())  # None where rows stay in the file
    tied = _parameter(model.get_output_embeddings()) is embedding
    return _bytes(model) - unread - (0 if embedding is None or tied else int(embedding.nbytes))


def _bytes(module: Any) -> int:
    """Of all weights of a module, but of embeddings in few bits."""
    held = sum(_held(parameter) for parameter in module.parameters())
    return held + sum(getattr(part, "weight_bytes", 0) for part in module.modules())


def _parameter(module: Any) -> Any:
    """The weight that a module holds as numbers, or None."""
    return None if module is None else module._parameters.get("weight")


def _held(tensor: Any) -> int:
    """Bytes of a weight, or of the tensors that a quantized one is made of: it calls itself what it stands
    for.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    return sum(_held(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
