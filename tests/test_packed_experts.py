"""Experts in blocks, against transformers' own with the same numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adamas_kernels.blocks import BlockWeight, unpack
from adamas_kernels.cpu import CpuBackend
from adamas_kernels.cpu.backend import FEW_ROWS
from block_weights import some_blocks
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from adamas_cli.models.packed import pack_model
from adamas_cli.models.packed_experts import PackedExperts, quantize_experts
from adamas_cli.models.stacked_experts import can_pack
from adamas_cli.progress import Silent

COMMON = {
    "vocab_size": 100,
    "hidden_size": 72,  # not a multiple of the block size
    "intermediate_size": 48,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 18,
    "num_experts": 6,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
}
MODELS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss")
EXPERTS, HIDDEN, INNER = 6, 256, 512  # for weights in blocks


def build(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**COMMON, **changes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def experts_of(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if can_pack(module))


def twin(packed: PackedExperts, plain: Any) -> Any:
    """The replaced experts, with the numbers of the blocks."""
    gate_up = unpacked(packed.gate_up[0])
    down = unpacked(packed.down)
    for name, rows in (("gate_up_proj", gate_up), ("down_proj", down)):
        stacked = rows.unflatten(0, (plain.num_experts, -1))
        stacked = stacked.transpose(1, 2) if plain.is_transposed else stacked
        setattr(plain, name, nn.Parameter(stacked.contiguous(), requires_grad=False))
    return plain


ROUNDED = 0.03  # relative to the outputs: the error of rounding weights and few rows to 8 bits


def unpacked(layer: Any) -> Tensor:
    return unpack(layer.packed)[:, : layer.in_features]


def choices(tokens: int, experts: int = EXPERTS, each: int = 3) -> tuple[Tensor, Tensor]:
    """Different experts for each token, never the last one, and their shares."""
    chosen = torch.stack([torch.randperm(experts - 1)[:each] for _ in range(tokens)])
    return chosen, torch.rand(tokens, each)


@pytest.mark.parametrize("tokens", [1, FEW_ROWS, FEW_ROWS + 1, 40])
@pytest.mark.parametrize("name", MODELS)
def test_experts_compute_what_those_of_transformers_do(monkeypatch, name, tokens):
    source = experts_of(build(name))
    plain = copy.deepcopy(source)
    packed = quantize_experts(source, CpuBackend())
    x, (chosen, shares) = torch.randn(tokens, COMMON["hidden_size"]), choices(tokens)
    before = plain(x, chosen, shares)
    found = packed(x, chosen, shares)
    assert (found - before).norm() < ROUNDED * before.norm()
    monkeypatch.setattr(CpuBackend, "quantize", CpuBackend.as_blocks)
    exact = quantize_experts(plain, CpuBackend())
    expected = twin(exact, plain)(x, chosen, shares)
    found = exact(x, chosen, shares)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", MODELS)
def test_a_mixture_is_packed_as_a_whole(name):
    model = build(name)
    expected = model(torch.arange(20).unsqueeze(0)).logits
    sizes = sum(parameter.numel() for parameter in experts_of(model).parameters())
    pack_model(model, Silent())
    packed = [module for module in model.modules() if isinstance(module, PackedExperts)]
    assert len(packed) == COMMON["num_hidden_layers"]
    assert not any(can_pack(module) for module in model.modules())
    assert not any(p.numel() > sizes // 4 for module in packed for p in module.parameters())
    found = model(torch.arange(20).unsqueeze(0)).logits
    # Rounding occasionally sends a token to another expert.
    off = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert off.median() < 0.05


@pytest.mark.parametrize(
    "kinds", [("Q4_K", "Q4_K", "Q6_K"), ("Q5_0", "MXFP4", "Q8_0"), ("Q4_0", "Q3_K", "BF16")]
)
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("tokens", [1, 17])
def test_gates_and_others_may_come_in_two_weights_of_different_types(name, kinds, tokens):
    plain = experts_of(build(name, hidden_size=HIDDEN, moe_intermediate_size=INNER, intermediate_size=INNER))
    shapes = (EXPERTS * INNER, HIDDEN), (EXPERTS * INNER, HIDDEN), (EXPERTS * HIDDEN, INNER)
    gate, up, down = (
        blocks(kind, *shape, seed) for seed, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))
    )
    packed = PackedExperts(copy.deepcopy(plain), [gate, up], down, CpuBackend(rounds=False))
    parts = [unpack(weight).unflatten(0, (EXPERTS, -1)) for weight in (gate, up)]
    both = torch.cat(parts, 1) if plain.is_concatenated else torch.stack(parts, 2).flatten(1, 2)
    outputs = unpack(down).unflatten(0, (EXPERTS, -1))
    for part, weight in (("gate_up_proj", both), ("down_proj", outputs)):
        weight = weight.transpose(1, 2) if plain.is_transposed else weight
        setattr(plain, part, nn.Parameter(weight.contiguous(), requires_grad=False))
    x, (chosen, shares) = torch.randn(tokens, HIDDEN), choices(tokens)
    expected = plain(x, chosen, shares)
    found = packed(x, chosen, shares)
    if tokens > FEW_ROWS:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert (found - expected).norm() < ROUNDED * expected.norm()


def blocks(kind: str, rows: int, columns: int, seed: int) -> BlockWeight:
    if kind == "BF16":
        numbers = torch.randn(rows, columns).bfloat16()
        return BlockWeight(kind, numbers.view(torch.uint8), columns)
    return some_blocks(kind, rows, columns, seed)


def test_experts_answer_in_the_number_format_they_are_asked_in():
    packed = quantize_experts(experts_of(build("mixtral")), CpuBackend())
    for tokens in (2, 30):
        x, (chosen, shares) = torch.randn(tokens, COMMON["hidden_size"]), choices(tokens)
        exact = packed(x, chosen, shares)
        found = packed(x.bfloat16(), chosen, shares.bfloat16())
        assert found.dtype == torch.bfloat16
        assert (found.float() - exact).norm() < 0.02 * exact.norm()


def test_what_computes_something_else_is_left_alone():
    model = build("qwen3_moe")
    experts = experts_of(model)
    experts.has_post_expert_norm = True
    assert not can_pack(experts)
    assert not can_pack(model.lm_head)
