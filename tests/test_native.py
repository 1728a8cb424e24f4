"""Compiled decode steps and packed weights, against transformers' own forward with the same weights."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from adamas_kernels.blocks import BlockWeight, unpack
from adamas_kernels.contract import SparseSettings
from adamas_kernels.cpu import CpuBackend
from adamas_kernels.cpu.backend import FEW_ROWS
from adamas_kernels.cpu.features import MULTIPLIES_SHORTS
from conftest import tiny_architecture
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from loaded import Loaded
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.steps.compiled import compiled_obstacle
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models.file_rows import StoredRows, leave_in_file
from adamas_cli.models.packed import pack_model
from adamas_cli.models.packed_linear import PackedLinear
from adamas_cli.progress import Silent

CONTEXT, ANSWER = 700, 24
FULL = AttentionSettings("full")
COMMON = {
    "vocab_size": 259,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def randomized(model: nn.Module) -> nn.Module:
    """Weights and biases large enough that attention is far from uniform, and norms other than one."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.15)
    return model.eval().requires_grad_(False)


def build(name: str) -> nn.Module:
    """Each model has something special: biases, normalized heads, tied embeddings, scaled positions."""
    if name == "llama, tied, scaled positions":
        scaling = {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        }
        return randomized(
            LlamaForCausalLM(LlamaConfig(**COMMON, tie_word_embeddings=True, rope_parameters=scaling))
        )
    if name == "llama, all biases":
        biases = {"attention_bias": True, "mlp_bias": True}
        return randomized(LlamaForCausalLM(LlamaConfig(**COMMON, **biases, head_dim=32)))
    if name == "mistral":
        return randomized(MistralForCausalLM(MistralConfig(**COMMON, head_dim=12, sliding_window=None)))
    if name == "qwen3":
        return randomized(Qwen3ForCausalLM(Qwen3Config(**COMMON, head_dim=64)))
    return tiny_architecture(name).requires_grad_(False)


NATIVE = (
    "llama", "qwen2", "qwen3", "mistral", "gemma3", "llama, tied, scaled positions", "llama, all biases",
)  # fmt: skip


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """Packs a model and returns it with its twin: the same numbers in plain layers."""
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))

    def packed_and_plain(model: nn.Module) -> tuple[nn.Module, nn.Module]:
        plain = copy.deepcopy(model)
        pack_model(model, Silent())
        for name, module in model.named_modules():
            if isinstance(module, PackedLinear):
                twin = plain.get_submodule(name)
                weight = unpack(module.packed)[:, : module.in_features]
                twin.weight = nn.Parameter(weight.to(twin.weight.dtype), requires_grad=False)
        return model, plain

    return packed_and_plain


def obstacle(timeline: Timeline) -> str | None:
    return compiled_obstacle(timeline.model, timeline.cache)


def ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, count).astype(np.int32)


def scores(model: nn.Module, attention: AttentionSettings, *, chunk: int = 64) -> torch.Tensor:
    """Logits after each of several tokens that follow a document."""
    timeline = Timeline(Loaded(model), attention, context=100, prefill_chunk=chunk)  # it grows
    list(timeline.read(ids(CONTEXT)))
    return timeline.score(ids(ANSWER, 1), sparse=attention.kind == "adamas")


@pytest.mark.parametrize("attention", ["full", "adamas", "adamas to an error"])
@pytest.mark.parametrize("name", NATIVE)
def test_logits_are_those_of_transformers(plain_numbers, pack, name, attention):
    packed, plain = pack(build(name))
    settings = FULL
    if attention != "full":
        error = 2**-7 if attention == "adamas to an error" else None
        settings = AttentionSettings("adamas", SparseSettings(budget=48, error=error), dense_layers=1)
    assert obstacle(Timeline(Loaded(packed), settings, context=9)) is None
    found, expected = scores(packed, settings), scores(plain, settings)
    assert found.shape == expected.shape
    # Rarely, a token near the threshold is chosen by only one of them; most rows must agree closely.
    off = (found - expected).abs().amax(1) / expected.abs().amax()
    assert (off < 1e-4).float().mean() >= (1.0 if attention == "full" else 0.75)
    assert off.max() < (1e-4 if attention == "full" else 0.2)


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
def test_a_budget_of_all_tokens_is_full_attention(pack, scorer):
    packed, _ = pack(build("qwen2"))
    everything = AttentionSettings("adamas", SparseSettings(budget=2000, scorer=scorer))
    found, expected = scores(packed, everything), scores(packed, FULL)
    if MULTIPLIES_SHORTS:
        # Reading rounds attention to 16 bits, so an activation may be rounded to another integer of 8 bits.
        assert (found - expected).norm() < 0.01 * expected.norm()
    else:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_cache_in_bfloat16(plain_numbers, pack):
    packed, plain = pack(build("llama").bfloat16())
    found, expected = scores(packed, FULL), scores(plain.float(), FULL)
    assert (found - expected).norm() < 0.03 * expected.norm()


def answers(model: nn.Module, attention: AttentionSettings, questions: int) -> list[list[int]]:
    """Answers to questions after one document, each asked alone from the same position."""
    timeline = Timeline(Loaded(model), attention, context=100)
    list(timeline.read(ids(CONTEXT)))
    return [
        [
            event.id
            for event in timeline.answer(ids(20, seed), Sampling(), ANSWER, stop_ids=())
            if isinstance(event, Token)
        ]
        for seed in range(questions)
    ]


@pytest.mark.parametrize("kind", ["full", "adamas"])
def test_answers_do_not_depend_on_what_was_asked_before(pack, kind):
    packed, plain = pack(build("qwen2"))
    settings = AttentionSettings(kind, SparseSettings(budget=2000))
    asked = answers(packed, settings, 3)
    assert asked[1:] == [answers(packed, settings, seed + 1)[seed] for seed in (1, 2)]
    assert asked == answers(plain, settings, 3)


@pytest.mark.parametrize("kind", ["full", "adamas"])
def test_compiled_answers_of_one_model_that_take_turns_are_those_given_alone(pack, kind):
    packed, _ = pack(build("qwen2"))
    settings = AttentionSettings(kind, SparseSettings(budget=48))
    expected = [answers(packed, settings, 2)[seed] for seed in (0, 1)]
    events = []
    for seed in (0, 1):
        timeline = Timeline(Loaded(packed), settings, context=100)
        list(timeline.read(ids(CONTEXT)))
        events.append(timeline.answer(ids(20, seed), Sampling(), ANSWER, stop_ids=()))
    found: list[list[int]] = [[], []]
    for pair in zip(*events, strict=True):
        for reply, event in zip(found, pair, strict=True):
            if isinstance(event, Token):
                reply.append(event.id)
    assert found == expected


def test_what_has_no_compiled_form_goes_through_packed_layers_of_transformers(pack):
    packed, plain = pack(randomized(LlamaForCausalLM(LlamaConfig(**COMMON, hidden_act="mish"))))
    timeline = Timeline(Loaded(packed), FULL, context=9)
    assert "Mish" in (timeline.step_reason or "")
    torch.testing.assert_close(scores(packed, FULL), scores(plain, FULL), rtol=1e-3, atol=1e-3)
    assert answers(packed, FULL, 1) == answers(plain, FULL, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_an_embedding_in_the_file_gives_the_same_rows(tmp_path, dtype, shard):
    model = build("llama").to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    before = model.model.embed_tokens
    leave_in_file(model, tmp_path)
    stored = model.model.embed_tokens
    assert isinstance(stored, StoredRows)
    for chosen in (
        torch.randint(0, 258, (2, 9)),
        torch.tensor(7),
        torch.tensor([257, 0]),
        torch.empty(0).long(),
    ):
        assert torch.equal(stored(chosen), before(chosen))
    for wrong in (-1, 258):
        with pytest.raises(IndexError):
            stored(torch.tensor([wrong]))


def test_an_embedding_that_is_not_in_the_file_as_it_is_stays(tmp_path):
    model = build("llama")
    leave_in_file(model, tmp_path)
    build("llama").bfloat16().save_pretrained(tmp_path)
    leave_in_file(model, tmp_path)
    gemma = build("gemma3")  # it scales the rows
    gemma.save_pretrained(tmp_path)
    leave_in_file(gemma, tmp_path)
    assert not any(isinstance(module, StoredRows) for tree in (model, gemma) for module in tree.modules())


@pytest.mark.parametrize("rows", [0, 1, FEW_ROWS, FEW_ROWS + 1, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_is_a_linear_layer(pack, rows, dtype):
    model, plain = pack(nn.Sequential(nn.Linear(70, 90)).requires_grad_(False).to(dtype))
    x = torch.randn(1, rows, 70).to(dtype)
    found, expected = model(x), plain.float()(x.float())
    assert found.dtype == dtype
    assert found.shape == expected.shape
    if rows:
        rounded = rows <= FEW_ROWS or dtype == torch.bfloat16  # to 8 bits in groups, or to bfloat16
        assert (found - expected).norm() <= (1e-2 if rounded else 1e-5) * expected.norm()


@pytest.mark.parametrize("attention", ["full", "adamas"])
def test_layers_of_several_types_decode_as_their_numbers_do(attention):
    sizes = COMMON | {"hidden_size": 96, "intermediate_size": 128}
    packed = randomized(LlamaForCausalLM(LlamaConfig(**sizes, mlp_bias=True)))
    plain, backend = copy.deepcopy(packed), CpuBackend(rounds=False)
    linears = [name for name, module in packed.named_modules() if type(module) is nn.Linear]
    kinds = ("Q4_0", "Q5_1", "Q8_0", "F16", "Q4_1", "BF16", "Q5_0", "F32")  # a layer has seven linear layers
    for name, kind in zip(linears, itertools.cycle(kinds)):
        twin = plain.get_submodule(name)
        data = quantize(twin.weight.numpy(), GGMLQuantizationType[kind]).view(np.uint8)
        weight = BlockWeight(kind, torch.from_numpy(data), twin.in_features)
        packed.set_submodule(name, PackedLinear(weight, twin.bias, backend))
        twin.weight = nn.Parameter(unpack(weight), requires_grad=False)
    everything = AttentionSettings(attention, SparseSettings(budget=2000))
    assert obstacle(Timeline(Loaded(packed), everything, context=9)) is None
    found, expected = scores(packed, everything), scores(plain, FULL)
    assert (found - expected).norm() < 0.03 * expected.norm()  # vectors are rounded to 8 bits in groups
