"""LG's EXAONE 3 and 4."""

from __future__ import annotations

from typing import Any

from adamas_cli.models.gguf.architectures.architecture import LAYER, Architecture, Known
from adamas_cli.models.gguf.architectures.rules import windows
from adamas_cli.models.gguf.keys import Keys


def _exaone4(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {**windows(keys, common["num_hidden_layers"], period=4), "sliding_window_pattern": None}


ARCHITECTURES: Known = {
    "exaone": Architecture("llama", layer={**LAYER}),
    "exaone4": Architecture(
        "exaone4",
        _exaone4,
        {
            **LAYER,
            "post_attention_layernorm": "post_attention_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
    ),
}
