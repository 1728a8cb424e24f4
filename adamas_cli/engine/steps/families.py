"""Which model types decode in compiled steps, and what their modules do not reveal.

Widths, biases, projections, gates, activations and kinds of norm are read from a model, see `describe.py`.
This table gives the order in which its forward uses them. `tests/test_compiled_families.py` has a model for
each row.
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

    before_attention, after_attention, before_mlp, after_mlp: names of a layer's norms, or None. parallel:
    whether both branches start from the same hidden state, or the name of the layer attribute that tells.
    pairs: whether neighbouring coordinates are rotated against each other, instead of halves. norms_last:
    whether queries and keys are normalized after rotation. rotates: whether an attention module rotates.
    scoring: of experts.
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
AFTERWARDS = Family(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
PARALLEL = Family(before_mlp=None, parallel=True)


def _rotates_in_windows(attention: Any) -> bool:
    """EXAONE's rule: if some layers have a window, only those rotate."""
    return attention.sliding_window is None or attention.is_sliding


_ROWS = (
    (
        PLAIN,
        "arcee aria_text cwm gemma gpt_oss granite granite_swa granitemoe llama mellum ministral ministral3 "
        "mistral mixtral nemotron olmo olmoe phi3 qwen2 qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3 "
        "qwen3_moe qwen3_vl_moe_text qwen3_vl_text seed_oss starcoder2",
    ),
    (replace(PLAIN, pairs=True), "ernie4_5 ernie4_5_moe glm helium"),
    (replace(PLAIN, scoring="sigmoid"), "dots1 glm4_moe glm4v_moe_text minimax_m2 solar_open"),
    (replace(PLAIN, scoring="sparsemixer"), "phimoe"),
    (replace(PLAIN, norms_last=True), "hunyuan_v1_dense"),
    (replace(PLAIN, parallel="use_parallel_residual"), "gpt_neox stablelm"),
    (replace(PLAIN, rotates=lambda attention: bool(attention.use_rope)), "smollm3"),
    (replace(PLAIN, before_mlp="pre_feedforward_layernorm"), "vaultgemma"),
    (replace(PLAIN, scoring="sigmoid", rotates=_rotates_in_windows), "exaone_moe"),
    (
        replace(
            PLAIN, after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm", pairs=True
        ),
        "glm4 glm4v_text",
    ),
    (
        Family(
            after_attention="post_attention_layernorm",
            before_mlp="pre_feedforward_layernorm",
            after_mlp="post_feedforward_layernorm",
        ),
        "gemma2 gemma3_text",
    ),
    (AFTERWARDS, "flex_olmo olmo2 olmo3"),
    (replace(AFTERWARDS, rotates=_rotates_in_windows), "exaone4"),
    (PARALLEL, "phi"),
    (replace(PARALLEL, pairs=True), "cohere"),
    (
        replace(PARALLEL, pairs=True, rotates=lambda attention: attention.sliding_window is not None),
        "cohere2",
    ),
)
FAMILIES = {name: family for family, names in _ROWS for name in names.split()}
