"""The largest share of a model that is split over several GPUs."""

from __future__ import annotations

from dataclasses import replace

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.borders import borders, splits_head
from adamas_cli.models.shape import ModelShape, WeightCount


def shape_share(shape: ModelShape, count: int) -> ModelShape:
    """A share's dimensions. Raises ModelUnavailableError if heads cannot be split over this many."""
    if any(layer.kv_heads % count for layer in shape.by_layer):
        raise ModelUnavailableError(f"the model's KV heads cannot be split over `gpus` {count}.")
    layers = (replace(layer, kv_heads=layer.kv_heads // count) for layer in shape.by_layer)
    inner = borders(shape.inner, count)[1] if shape.inner >= count else shape.inner
    return replace(shape, heads=shape.heads // count, inner=inner, by_layer=tuple(layers))


def weight_share(weights: WeightCount, vocabulary: int, count: int) -> WeightCount:
    """A share's weights: the matrices of layers are split, and the last one if it can be; embeddings are
    not.
    """
    whole = not splits_head(vocabulary, count, tied=weights.tied)
    head = weights.head if whole else weights.head // count
    return replace(weights, matrices=-(-weights.matrices // count), head=head)
