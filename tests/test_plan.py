"""The memory reported before a model is loaded, and the bytes that a step reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_architecture
from transformers import AutoConfig, AutoModelForCausalLM

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.mode import READING, Sparse
from adamas_cli.cache.placement import Paged
from adamas_cli.errors import OutOfMemoryError
from adamas_cli.lab.bench.shapes import shape_config
from adamas_cli.lab.bench.traffic import step_bytes
from adamas_cli.models.quantization import PACKAGES
from adamas_cli.planning.decision import Backends, Machine, decide
from adamas_cli.planning.facts import config_facts
from adamas_cli.planning.needs import LIBRARIES
from adamas_cli.settings import DecodingSettings, ModelSettings

CONTEXT, DENSE = 300, 2


def plan(
    config,
    quantization="none",
    dtype=torch.bfloat16,
    *,
    context=CONTEXT,
    chunk=64,
    sparse=True,
    read="dense",
    weights=None,
):
    """The bytes on a GPU that Triton supports."""
    model = replace(config_facts(config, None), stored_bytes=weights)
    installed = frozenset(package for package, _ in PACKAGES.values())
    machine = Machine(
        Backends("cuda", {"triton": None}), bfloat16=True, packing="on cuda", memory=0, installed=installed
    )
    loading = ModelSettings(dtype=str(dtype).removeprefix("torch."), quantization=quantization)
    attn = "adamas" if sparse else "full"
    decoding = DecodingSettings(attn=attn, read=read, dense_layers=DENSE, prefill_chunk=chunk)
    return decide(model, machine, loading, decoding, context).bytes


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_model(name, dtype):
    model = tiny_architecture(name).to(dtype)
    expected = sum(parameter.nbytes for parameter in model.parameters())
    assert plan(model.config, dtype=dtype).weights == expected


def test_the_cache_is_what_a_cache_allocates():
    from adamas_kernels.contract import SparseSettings
    from adamas_kernels.softmax import PLAIN
    from adamas_kernels.torch.backend import TorchBackend

    model = tiny_architecture("llama")
    cache = KVCache.for_model(
        model.config,
        served=True,
        sparse=Sparse(SparseSettings(), TorchBackend()),
        dense_layers=DENSE,
        placement=Paged(),
        device=torch.device("cpu"),
    )
    cache.reserve(CONTEXT)
    for layer in cache.layers:
        heads = model.config.num_key_value_heads
        rows = torch.randn(1, heads, 10, model.config.hidden_size // model.config.num_attention_heads)
        layer.attend(None, rows, rows, rows, 1.0, PLAIN, READING)
    cache.encode()
    held = [layer.codes.layer for layer in cache.layers if layer.codes is not None]
    told = plan(model.config, dtype=torch.float32)
    assert told.cache == sum(layer.stored_keys.nbytes + layer.stored_values.nbytes for layer in cache.layers)
    assert told.codes == sum(coded.codes.nbytes + coded.scales.nbytes for coded in held)
    assert plan(model.config, sparse=False).codes == 0


def test_codes_are_a_small_part_of_the_cache():
    told = plan(shape_config("llama-3.1-8b", 32768), context=32768)
    assert told.codes <= 0.07 * told.cache
    with_means = plan(shape_config("llama-3.1-8b", 32768), context=32768, read="sparse")
    assert told.codes < with_means.codes <= 0.12 * told.cache
    assert told.cache == 32 * 8 * 32768 * 2 * 128 * 2
    assert told.total == told.weights + told.cache + told.codes + told.work
    assert f"{told.weights / 1e9:.1f} GB weights + {told.cache / 1e9:.1f} GB cache" in told.line


def test_windows_bound_the_cache():
    config = tiny_architecture("gemma3").config
    full = sum(kind == "full_attention" for kind in config.layer_types)
    longer = plan(config, context=100_000).cache - plan(config, context=50_000).cache
    assert longer == full * 50_000 * 2 * config.num_key_value_heads * config.head_dim * 2


def test_quantized_weights_take_their_bits():
    config = shape_config("llama-3.1-8b", 100)
    plain, bytes_, four = (plan(config, way).weights for way in ("none", "bnb-8bit", "bnb-4bit"))
    embeddings = 2 * 128256 * 4096 * 2
    assert bytes_ == pytest.approx((plain - embeddings) / 2 + embeddings, rel=0.001)
    assert four == pytest.approx((plain - embeddings) * 4.5 / 16 + embeddings, rel=0.001)


def test_weights_that_come_quantized_take_what_is_said():
    config = shape_config("llama-3.1-8b", 100)
    assert plan(config, weights=123).weights == 123
    assert plan(config, weights=123).total == plan(config).total - plan(config).weights + 123


def test_work_grows_with_the_chunk_and_not_beyond_the_context():
    config = AutoConfig.for_model("llama", hidden_size=64, intermediate_size=96, num_attention_heads=4)
    small, large, whole = (plan(config, chunk=chunk, sparse=False).work for chunk in (10, 20, 10**6))
    assert large - small == 10 * (3 * 64 + 3 * 96) * 2
    assert whole - LIBRARIES == CONTEXT * (3 * 64 + 3 * 96) * 2


MIXTURE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 32,
}


def test_the_work_of_a_mixture_grows_with_what_tokens_choose():
    two, four = (AutoConfig.for_model("qwen3_moe", num_experts_per_tok=n, **MIXTURE) for n in (2, 4))
    grown = [plan(config, chunk=20, sparse=False).work - LIBRARIES for config in (two, four)]
    assert grown == [20 * (3 * 64 + choices * 3 * (64 + 32)) * 2 for choices in (2, 4)]


def test_a_step_reads_the_experts_that_its_token_chose():
    config = AutoConfig.for_model("qwen3_moe", num_experts_per_tok=2, **MIXTURE)
    model = AutoModelForCausalLM.from_config(config)
    all_of_them = sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes
    expert = 3 * 64 * 32 * 4
    assert step_bytes(model, 0, None, DENSE) == all_of_them - 2 * (8 - 2) * expert


def test_the_work_of_a_selection_grows_with_the_context_as_what_a_step_allocates():
    from dataclasses import fields
    from types import SimpleNamespace

    from adamas_kernels.triton.scratch import Scratch

    config = AutoConfig.for_model("llama", hidden_size=64, intermediate_size=96, num_attention_heads=4)

    def allocated(capacity):
        cache = SimpleNamespace(values=torch.zeros(1, 1, 1, 16), capacity=capacity)
        scratch = Scratch.allocate(torch.zeros(1, 4, 1, 16), cache, 128, 2048)
        return sum(getattr(scratch, field.name).nbytes for field in fields(scratch))

    def told(context):
        return plan(config, context=context).work

    assert told(200) - told(100) == allocated(200) - allocated(100)


def test_a_sparse_step_reads_codes_and_chosen_rows():
    model = tiny_architecture("llama")
    full, sparse = step_bytes(model, 1000, None, DENSE), step_bytes(model, 1000, 16, DENSE)
    config = model.config
    dim = config.hidden_size // config.num_attention_heads
    row, code = 2 * dim * 4, dim // 16 * 4 + 2
    layers = config.num_hidden_layers - DENSE
    read = 1000 * config.num_key_value_heads * code + 16 * config.num_attention_heads * row
    assert full - sparse == layers * (1000 * config.num_key_value_heads * row - read)
    weights = sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes
    assert full == weights + config.num_hidden_layers * 1000 * config.num_key_value_heads * row


def test_more_than_the_gpu_has_is_refused():
    told = plan(shape_config("llama-3.1-8b", 32768), context=32768)
    told.require(told.total, "cuda", "a model", "Give less.")
    with pytest.raises(OutOfMemoryError, match=r"a model needs .* = .* GB, and cuda has .* Give less"):
        told.require(told.total - 1, "cuda", "a model", "Give less.")
