"""Which models decode in compiled steps, and how their parts are named there.

Everything else, and every step that takes more than one token, goes through transformers' own forward.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adamas_cli.engine.cache import AdamasCache
from adamas_cli.engine.heads import head_dim
from adamas_cli.engine.layers import FullLayer

if TYPE_CHECKING:
    from adamas_kernels.contract import SparseSettings
    from adamas_kernels.cpu.decoder import Decoder
    from adamas_kernels.weights import LayerWeights, Linear

# Models whose layers are: RMSNorm, attention with rotated halves, residual, RMSNorm, SiLU-gated MLP,
# residual.
FAMILY = ("llama", "mistral", "qwen2", "qwen3")


def native_obstacle(model: Any, cache: object) -> str | None:
    """Why a model does not decode in compiled steps, in a few words, or None where it does."""
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}"
    kind = model.config.model_type
    if kind not in FAMILY:
        return f"no compiled steps for models of type {kind}"
    if not isinstance(cache, AdamasCache) or not all(isinstance(layer, FullLayer) for layer in cache.layers):
        return "some layers attend to a window"
    if getattr(model.config, "hidden_act", None) != "silu":
        return f"no compiled steps for {model.config.hidden_act}"
    from adamas_cli.models.packed import PackedLinear

    return None if isinstance(model.lm_head, PackedLinear) else "the weights are not packed"


class NativeDecoder:
    """Decodes tokens one at a time with a model's packed weights and its cache."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._decoder = _decoder(model)

    def step(
        self, token: int, cache: AdamasCache, settings: SparseSettings, tally: Tensor | None = None
    ) -> Tensor:
        """Append one token; the logits behind it, float32 [vocabulary], are valid until the next step.

        tally: see `Backend.decode_step`; of all layers together.
        """
        length = cache.get_seq_length()
        position = torch.tensor([[length]])
        cos, sin = self._model.model.rotary_emb(_FLOAT, position)
        layers = [layer for layer in cache.layers if isinstance(layer, FullLayer)]
        buffers = [layer.room_for_one() for layer in layers]
        logits = self._decoder.step(token, length, cos[0, 0], sin[0, 0], buffers, settings, tally)
        cache.count_one()
        return logits


_FLOAT = torch.zeros(1)  # asks the rotation for float32


def _decoder(model: Any) -> Decoder:
    from adamas_kernels.cpu.decoder import Decoder
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
    return Decoder(model.lm_head.runner, weights)


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
