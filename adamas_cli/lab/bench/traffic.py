"""The bytes that one decode step cannot do without: the weights, and what attention reads of the cache."""

from __future__ import annotations

from typing import Any

from adamas_cli.cache.cache import layer_types
from adamas_cli.cache.geometry import code_bytes, kv_heads, token_bytes
from adamas_cli.cache.layer import FULL, SLIDING
from adamas_cli.models.shape import shape_from
from adamas_cli.models.stacked_experts import StackedExperts, can_pack


def step_bytes(model: Any, length: int, budget: int | None, dense_layers: int) -> int:
    """Of a step behind `length` tokens: fully attending, or to `budget` tokens of each query head in all but
    the first layers.
    """
    config = model.config.get_text_config()
    token = token_bytes(config, model.dtype)
    row = token // kv_heads(config)  # a key and its value
    total = _weights(model)
    for index, kind in enumerate(layer_types(config)):
        if kind == SLIDING:
            total += min(length, config.sliding_window) * token
        elif kind != FULL:
            continue  # its state is small
        elif budget is None or index < dense_layers:
            total += length * token
        else:
            # Query heads of a group may choose the same tokens; what none of them shares is the upper bound.
            chosen = min(budget * config.num_attention_heads, length * kv_heads(config))
            total += length * code_bytes(config) + chosen * row
    return total


def _weights(model: Any) -> int:
    """Bytes of all weights but the embedding's, unless it is the head's too: a step reads one row of it. Of
    experts it reads those that the token chose.
    """
    choices = shape_from(lambda name: getattr(model.config.get_text_config(), name, None)).choices
    unread = sum(
        _bytes(module) * max(0, module.num_experts - choices) // module.num_experts
        for module in model.modules()
        if isinstance(module, StackedExperts) or can_pack(module)
    )
    embedding = getattr(model.get_input_embeddings(), "weight", None)  # None where rows stay in the file
    tied = getattr(model.get_output_embeddings(), "weight", None) is embedding
    return _bytes(model) - unread - (0 if embedding is None or tied else int(embedding.nbytes))


def _bytes(module: Any) -> int:
    """Of all weights of a module, but of embeddings in few bits."""
    held = sum(_held(parameter) for parameter in module.parameters())
    return held + sum(getattr(part, "weight_bytes", 0) for part in module.modules())


def _held(tensor: Any) -> int:
    """Bytes of a weight, or of the tensors that a quantized one is made of: it calls itself what it stands
    for.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    return sum(_held(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
