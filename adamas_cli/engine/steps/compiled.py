"""Which models decode in compiled steps, and how their parts are named there.

Everything else, and every step that takes more than one token, goes through transformers' own forward.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from adamas_kernels.contract import SparseSettings
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.geometry import head_dim
from adamas_cli.cache.layer import FULL
from adamas_cli.cache.mode import Mode
from adamas_cli.engine.family import FAMILY

if TYPE_CHECKING:
    from adamas_kernels.contract import AnyCache, TokenDecoder
    from adamas_kernels.weights import LayerWeights, Linear

    from adamas_cli.engine.model import Model


def compiled_obstacle(model: Model, cache: KVCache) -> str | None:
    """Why a model does not decode in compiled steps, in a few words, or None where it does."""
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}"
    kind = model.module.config.model_type
    if kind not in FAMILY:
        return f"no compiled steps for models of type {kind}"
    if cache.kinds != {FULL}:
        return "some layers attend to a window"
    if getattr(model.config, "hidden_act", None) != "silu":
        return f"no compiled steps for {model.config.hidden_act}"
    from adamas_cli.models.packed_linear import PackedLinear
    from adamas_cli.models.reordered import Reordered

    if any(isinstance(module, Reordered) for module in model.module.modules()):
        return "layers take their inputs in an order of their own"
    return None if isinstance(model.module.lm_head, PackedLinear) else "the weights are not packed"


class CompiledSteps:
    """The steps of one model with one cache, one token at a time, with the model's packed weights."""

    def __init__(self, model: Model, cache: KVCache) -> None:
        self._model = model.module
        self._cache = cache
        self._decoder = _decoder(self._model)

    def step(self, token: int, mode: Mode) -> Tensor:
        """Append one token; the logits after it, float32 [vocabulary], are valid until the next step."""
        cache = self._cache
        cache.make_room(1)
        length = cache.get_seq_length()
        cos, sin = self._model.model.rotary_emb(_FLOAT, torch.tensor([[length]]))
        buffers = [_as_it_attends(layer, mode) for layer in cache.kept if isinstance(layer, FullLayer)]
        settings = mode.sparse.settings if mode.sparse else SparseSettings()
        counts = None if mode.tally is None or mode.sparse is None else mode.tally.counts
        logits = self._decoder.step(token, length, cos[0, 0], sin[0, 0], buffers, settings, counts)
        cache.count_one(mode)
        cache.advance(1, mode)
        return logits


def _as_it_attends(layer: FullLayer, mode: Mode) -> AnyCache:
    """A layer's buffers, with room for one more token, which the caller writes and then counts."""
    return layer.coded_for(mode) or layer.uncoded()


_FLOAT = torch.zeros(1)  # asks the rotation for float32


def _decoder(model: Any) -> TokenDecoder:
    from adamas_kernels.weights import DecoderWeights

    config, inner = model.config, model.model
    dim = head_dim(config)
    weights = DecoderWeights(
        lambda token: inner.embed_tokens(torch.tensor(token)),
        config.hidden_size,
        [_layer(layer) for layer in inner.layers],
        _norm(inner.norm),
        _linear(model.lm_head),
        config.num_attention_heads,
        config.num_key_value_heads,
        dim,
        config.rms_norm_eps,
        1 / math.sqrt(dim),
    )
    decoder: TokenDecoder = model.lm_head.backend.decoder(weights)
    return decoder


def _layer(layer: Any) -> LayerWeights:
    from adamas_kernels.weights import LayerWeights

    attention, mlp = layer.self_attn, layer.mlp
    query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return LayerWeights(
        attention_norm=_norm(layer.input_layernorm),
        query=_linear(attention.q_proj),
        key=_linear(attention.k_proj),
        value=_linear(attention.v_proj),
        query_norm=None if query_norm is None else _norm(query_norm),
        key_norm=None if key_norm is None else _norm(key_norm),
        output=_linear(attention.o_proj),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
    )


def _norm(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight.detach().float().contiguous()


def _linear(module: Any) -> Linear:
    from adamas_kernels.weights import Linear

    return Linear(module.packed, module.bias)
