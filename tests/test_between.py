"""The stages between a layer's products give what transformers' own modules give."""

from __future__ import annotations

import pytest
import torch
from adamas_kernels.cpu import CpuBackend
from conftest import tiny_architecture
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from adamas_cli.engine.fused_cpu import FEW, fuse_on_cpu

DTYPES = torch.float32, torch.bfloat16
SIZE, TOKENS = 48, 37  # three vectors; tasks of several sizes


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


def some(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal, but for the order of a sum and the last bit of a number that is rounded."""
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=torch.finfo(found.dtype).eps * 2, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("made", [LlamaRMSNorm, Gemma3RMSNorm])
def test_norms(backend, dtype, made):
    norm = made(SIZE, eps=1e-5).to(dtype).requires_grad_(False)
    norm.weight.copy_(some(SIZE, dtype=dtype))
    x = 3 * some(1, TOKENS, 2 * SIZE, dtype=dtype)[..., :SIZE]  # rows that lie apart
    assert backend.reads_rows(x, norm.weight)
    found = backend.norm_rows(x, norm.weight, 1e-5, offset=made is Gemma3RMSNorm)
    assert_near(found, norm(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates(backend, dtype):
    gate, up = 4 * some(1, TOKENS, SIZE, dtype=dtype), some(1, TOKENS, 2 * SIZE, dtype=dtype)[..., SIZE:]
    expected = torch.nn.functional.silu(gate) * up
    assert_near(backend.gate_rows(gate, up), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotations(backend, dtype):
    queries = some(1, TOKENS, 3 * 64, dtype=dtype).view(1, TOKENS, 3, 64).transpose(1, 2)
    keys = some(1, TOKENS, 64, dtype=dtype).view(1, TOKENS, 1, 64).transpose(1, 2)
    cos, sin = some(1, TOKENS, 64, dtype=dtype), some(1, TOKENS, 65, dtype=dtype)[..., 1:]
    assert backend.rotates(queries, keys, cos, sin) == (cos.stride() == sin.stride())
    sin = sin.contiguous()
    for x, expected in zip((queries, keys), apply_rotary_pos_emb(queries, keys, cos, sin), strict=True):
        assert_near(backend.rotate_rows(x, cos, sin), expected)


def test_what_is_not_served(backend):
    x = some(2, 48, dtype=torch.float32)
    assert not backend.reads_rows(x, x.bfloat16())
    assert not backend.reads_rows(x[:, :40])
    assert not backend.reads_rows(x.half())
    assert not backend.reads_rows(x.T)
    assert not backend.reads_rows(x.requires_grad_(True))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.no_grad()
def test_a_model_gives_the_same_with_these_stages(name, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", apply_rotary_pos_emb)
    model = tiny_architecture(name).requires_grad_(False)
    ids = torch.arange(2 * FEW).unsqueeze(0)
    plain = [model(ids).logits, model(ids[:, :4]).logits]
    fuse_on_cpu(model)
    called = []
    for stage in ("norm_rows", "gate_rows"):
        own = getattr(CpuBackend, stage)
        spy = lambda *args, own=own, stage=stage, **kw: called.append(stage) or own(*args, **kw)  # noqa: E731
        monkeypatch.setattr(CpuBackend, stage, spy)
    found = [model(ids).logits, model(ids[:, :4]).logits]
    for one, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    layers = model.config.get_text_config().num_hidden_layers
    assert called.count("gate_rows") == (layers if name == "llama" else 0)  # Gemma's gates are by GELU
    assert called.count("norm_rows") >= 2 * layers + 1
