"""Compiled steps of every family that has them, against transformers' own forward with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from families import SEEING, seeing_config
from loaded import Loaded
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from adamas_cli.cache.mode import Mode
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.steps.compiled import compiled_obstacle
from adamas_cli.engine.steps.families import FAMILIES
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models.families import from_config
from adamas_cli.models.packed import pack_model
from adamas_cli.progress import Silent

CONTEXT, TOKENS = 40, 4
COMMON = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "sliding_window": None,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Shorter than the context, so that its ring wraps around.
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
UNSCALED = {"rope_type": "default", "rope_theta": 1e4}
# The forms that show most of a family: options in its config beside the common form.
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("arcee", {}),
    ("aria_text", {}),
    ("cohere", {"logit_scale": 0.3}),
    ("cohere", {"use_qk_norm": True}),
    ("cohere2", WINDOWS),
    ("cwm", {**WINDOWS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [2]}),
    ("dots1", {"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
               "routed_scaling_factor": 1.5}),
    ("ernie4_5", {"use_bias": True}),
    ("ernie4_5_moe", {"moe_layer_start_index": 1}),
    ("exaone4", WINDOWS),
    ("exaone_moe", {**WINDOWS, "n_group": 1, "topk_group": 1, "num_shared_experts": 1,
                    "first_k_dense_replace": 1}),
    ("flex_olmo", {}),
    ("gemma", {}),
    ("gemma2", {**WINDOWS, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    ("gemma3_text", WINDOWS),
    ("glm", {}),
    ("glm4", {}),
    ("glm4_moe", {"n_group": 3, "topk_group": 2, "first_k_dense_replace": 1}),
    ("gpt_neox", {}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    ("gpt_oss", WINDOWS),
    ("granite", {"residual_multiplier": 0.3, "embedding_multiplier": 2.0, "logits_scaling": 3.0,
                 "attention_multiplier": 0.2}),
    ("granite_swa", WINDOWS),
    ("granitemoe", {"residual_multiplier": 0.3}),
    ("helium", {}),
    ("hunyuan_v1_dense", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mellum", WINDOWS),
    ("minimax_m2", {}),
    ("ministral", WINDOWS),
    ("ministral3", {"rope_parameters": {**UNSCALED, "llama_4_scaling_beta": 0.5,
                                        "original_max_position_embeddings": 21}}),
    ("mistral", {}),
    ("mixtral", {}),
    ("nemotron", {}),
    ("olmo", {"clip_qkv": 0.5}),
    ("olmo2", {}),
    ("olmo3", WINDOWS),
    ("olmoe", {"clip_qkv": 1.0}),
    ("phi", {"qk_layernorm": True}),
    ("phi3", {}),
    ("phimoe", {}),
    ("qwen2", {}),
    ("qwen2_moe", {"decoder_sparse_step": 2}),
    ("qwen3", {}),
    ("qwen3_moe", {"norm_topk_prob": True}),
    ("seed_oss", {}),
    ("smollm3", {"no_rope_layers": [1, 0]}),
    ("solar_open", {"n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}),
    ("stablelm", {"use_qkv_bias": True}),
    ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    ("starcoder2", {}),
    ("vaultgemma", WINDOWS),
]  # fmt: skip


def build(name: str, **changes: Any) -> nn.Module:
    """A model whose norms, biases and corrections all have an effect."""
    return packed(AutoConfig.for_model(name, **{**COMMON, **changes}))


def packed(config: PreTrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    model = from_config(config)
    for key, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in key else 0.0, std=0.2)
    for key, buffer in model.named_buffers():
        if "correction" in key:
            nn.init.normal_(buffer, std=0.3)
    model = model.eval().requires_grad_(False)
    pack_model(model, Silent())
    return model


def ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, count).astype(np.int32)


def after_reading(model: nn.Module, attention: AttentionSettings) -> Timeline:
    timeline = Timeline(Loaded(model), attention, context=CONTEXT + TOKENS, prefill_chunk=CONTEXT)
    assert compiled_obstacle(timeline.model, timeline.cache) is None
    list(timeline.read(ids(CONTEXT)))
    return timeline


def assert_at_once(timeline: Timeline, new: torch.Tensor, expected: torch.Tensor, mode: Mode) -> None:
    """A step of as many tokens as it takes gives, bit for bit, the logits of single steps."""
    start, count = timeline.mark(), min(len(new), timeline._stepper.most(mode))
    assert count > 1
    timeline.cache.begin_answer(mode)
    found, _ = timeline._stepper.steps(new[:count], mode)
    assert torch.equal(found, expected[:count])
    timeline.rewind(start)


@pytest.mark.parametrize(("name", "changes"), FORMS, ids=lambda form: form if isinstance(form, str) else "")
def test_logits_are_those_of_the_forward(plain_numbers, name, changes):
    assert_as_the_forward(build(name, **changes))


@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_sees_is_compiled_as_its_text_part(plain_numbers, name, caplog):
    model = packed(seeing_config(name))
    assert model.config.get_text_config().model_type in FAMILIES
    assert_as_the_forward(model)
    assert not caplog.records


def assert_as_the_forward(model: nn.Module) -> None:
    timeline = after_reading(model, AttentionSettings("full"))
    found = timeline.score(ids(TOKENS, 1), sparse=False)
    new = torch.from_numpy(ids(TOKENS, 1)).long()
    assert_at_once(timeline, new, found, Mode(answers=True))
    expected = timeline.model.forward(new, timeline.cache, Mode(), every=True)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    everything = AttentionSettings("adamas", SparseSettings(budget=2 * CONTEXT), dense_layers=1)
    timeline = after_reading(model, everything)
    sparse = timeline.score(ids(TOKENS, 1), sparse=True)
    assert_at_once(timeline, new, sparse, Mode(answers=True, sparse=timeline.sparse))
    assert (sparse - found).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_weights_of_codes_take_what_vectors_are_rounded_to(name):
    timeline = after_reading(build(name, **dict(FORMS)[name]), AttentionSettings("full"))
    found = timeline.score(ids(TOKENS, 1), sparse=False)
    new = torch.from_numpy(ids(TOKENS, 1)).long()
    expected = timeline.model.forward(new, timeline.cache, Mode(), every=True)
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_every_family_has_a_form():
    seeing = {seeing_config(name).get_text_config().model_type for name in SEEING}
    assert {name for name, _ in FORMS} | seeing == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("apertus", {}, "models of type apertus"),
        ("llama", {"hidden_act": "mish"}, "its activation has no compiled form: Mish"),
    ],
)
def test_what_is_not_described_is_not_compiled_and_says_why(name, changes, reason):
    timeline = Timeline(Loaded(build(name, **changes)), AttentionSettings("full"), context=9)
    assert reason in (compiled_obstacle(timeline.model, timeline.cache) or "")


def test_a_weight_that_nothing_describes_is_named():
    model = build("llama")
    model.model.layers[1].self_attn.k_gate = nn.Linear(4, 4)
    timeline = Timeline(Loaded(model), AttentionSettings("full"), context=9)
    assert "self_attn.k_gate" in (compiled_obstacle(timeline.model, timeline.cache) or "")


def test_a_norm_is_told_by_what_it_computes():
    class Tripled(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(x)

    model = build("starcoder2")
    model.model.layers[0].input_layernorm = Tripled(64)
    timeline = Timeline(Loaded(model), AttentionSettings("full"), context=9)
    assert "Tripled" in (compiled_obstacle(timeline.model, timeline.cache) or "")
