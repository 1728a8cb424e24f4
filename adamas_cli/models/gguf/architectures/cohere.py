"""Cohere's Command R and its successors."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known
from adamas_cli.models.gguf.architectures.rules import windows
from adamas_cli.models.gguf.keys import Keys


def _cohere(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    return {
        "logit_scale": keys.need("logit_scale"),
        "use_qk_norm": keys.has("blk.0.attn_q_norm.weight"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
    }


def _cohere2(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {**_cohere(keys, common), **windows(keys, common["num_hidden_layers"], period=4)}


ARCHITECTURES: Known = {
    "command-r": Architecture("cohere", _cohere, {**LAYER}),
    "cohere2": Architecture("cohere2", _cohere2, {**LAYER}),
}
