"""Counts the numbers in a model's weights, on a model that takes no memory."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig

from adamas_cli.models.families import from_config
from adamas_cli.models.shape import WeightCount


def count_parameters(config: PreTrainedConfig) -> WeightCount:
    """The count for the model transformers builds from a config. Matrices are the linear layers, which
    libraries quantize; everything else is in the rest.
    """
    with torch.device("meta"):
        model = from_config(config)
    last = model.get_output_embeddings()
    embeddings = model.get_input_embeddings().weight
    head = embeddings if last is None else last.weight
    tied = last is None or head is embeddings
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not last
    )
    numbers = sum(parameter.numel() for parameter in model.parameters())
    ends = head.numel() + (0 if tied else embeddings.numel())
    return WeightCount(linear, head.numel(), embeddings.numel(), numbers - linear - ends, tied)
