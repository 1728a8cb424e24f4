"""Which model types decode in compiled steps: what of their layers cannot be seen in the modules themselves.

Widths, biases, projections, gates, activations and kinds of norm are read from a model, see `describe.py`;
here stands in which order its forward uses them. `tests/test_compiled_families.py` has a model of each row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from adamas_kernels.weights import Scoring


def _always(attention: Any) -> bool:
    return True


@dataclass(frozen=True)
class Family:
    """The order of a decoder layer.

    before_attention, after_attention, before_mlp, after_mlp: names of a layer's norms, None for none.
    parallel: whether both branches start from the same hidden state: told, or the name of a layer's attribute
    that tells. pairs: whether neighbouring coordinates are rotated against each other, instead of halves.
    norms_last: whether queries and keys are normalized after they are rotated. rotates: whether an attention
    module does rotate. scoring: of experts.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    parallel: bool | str = False
    pairs: bool = False
    norms_last: bool = False
    rotates: Callable[[Any], bool] = _always
    scoring: Scoring = "softmax"


PLAIN = Family()
PAIRS = Family(pairs=True)
SIGMOID = Family(scoring="sigmoid")
ROTATED_FIRST = Family(norms_last=True)
AFTERWARDS = Family(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
SANDWICH = Family(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
PARALLEL = Family(before_mlp=None, parallel=True)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            "arcee",
            "gemma",
            "gpt_oss",
            "granite",
            "granitemoe",
            "llama",
            "ministral",
            "mistral",
            "mixtral",
            "nemotron",
            "olmo",
            "olmoe",
            "phi3",
            "qwen2",
            "qwen2_moe",
            "qwen3",
            "qwen3_moe",
            "seed_oss",
            "starcoder2",
        ),
        PLAIN,
    ),
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe", "glm", "helium"), PAIRS),
    **dict.fromkeys(("dots1", "glm4_moe", "minimax_m2"), SIGMOID),
    **dict.fromkeys(("hunyuan_v1_dense",), ROTATED_FIRST),
    **dict.fromkeys(("flex_olmo", "olmo2", "olmo3"), AFTERWARDS),
    **dict.fromkeys(("gemma2", "gemma3_text"), SANDWICH),
    "cohere": replace(PARALLEL, pairs=True),
    "cohere2": replace(PARALLEL, pairs=True, rotates=lambda attention: attention.sliding_window is not None),
    "exaone4": replace(
        AFTERWARDS, rotates=lambda attention: attention.sliding_window is None or attention.is_sliding
    ),
    "glm4": Family(after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm", pairs=True),
    "gpt_neox": Family(parallel="use_parallel_residual"),
    "phi": PARALLEL,
    "phimoe": Family(scoring="sparsemixer"),
    "smollm3": Family(rotates=lambda attention: bool(attention.use_rope)),
    "stablelm": Family(parallel="use_parallel_residual"),
}
