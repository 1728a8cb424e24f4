"""Quantized checkpoints in every supported form: their weights in blocks and as numbers."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints import AWQ, GPTQ, KINDS, MLX, compressed, mxfp4, some_scales, write
from conftest import CONTROL_TOKENS, byte_tokenizer, tiny_architecture
from safetensors.torch import load_file, save_file
from test_prequantized import loaded

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.checkpoint.files import Tensors
from adamas_cli.models.checkpoint.forms import scheme_of
from adamas_cli.models.checkpoint.layers import held_bytes, layers_of
from adamas_cli.models.checkpoint.quantized import Floats, Integers
from adamas_cli.models.checkpoint.readers import READERS
from adamas_cli.models.folder import INDEX, WEIGHTS
from adamas_cli.models.load import load
from adamas_cli.models.packed_experts import PackedExperts
from adamas_cli.models.packed_linear import PackedLinear
from adamas_cli.models.plane_linear import PlaneEmbedding, PlaneLinear, Planes
from adamas_cli.models.reordered import Reordered
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.models.shape import count_weights
from adamas_cli.progress import Silent

CPU = torch.device("cpu")
UP = "model.layers.1.mlp.up_proj"
IDS = torch.arange(40)[None]


def quantized(kind, rows=64, columns=96):
    """A weight as read from its tensors, and its numbers."""
    scheme = scheme_of(kind.stored)
    parts, numbers = kind.weight(rows, columns)
    form = next(form for form in scheme.forms if set(form.needs) <= parts.keys())
    return READERS[form]({end: part.view(torch.int32) if part.dtype == torch.uint32 else part
                          for end, part in parts.items()}, scheme.told), numbers  # fmt: skip


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_weights_are_read_as_their_format_says(kind):
    weight, numbers = quantized(kind)
    torch.testing.assert_close(weight.numbers(), numbers, rtol=1e-6, atol=0)
    held = weight.stored()
    assert (held.kind, held.shape) == (kind.block, (64, 96))
    lost = (held.numbers() - numbers).abs()
    if kind.exact:
        assert torch.equal(held.numbers(), weight.numbers())
    elif isinstance(weight, Integers):  # the minimum is off by this share of a step
        steps = weight.scales.amax(1, keepdim=True)
        assert (lost <= steps / (136 if weight.bits <= 4 else 16)).all()
    else:
        assert (lost <= 2**-11 * 1.01 * numbers.abs()).all()


def test_what_blocks_cannot_hold_becomes_numbers():
    codes, bits = torch.randint(0, 16, (4, 96), dtype=torch.uint8), 4
    for groups, scales in [(6, some_scales(4, 6).float()), (3, torch.tensor([[1e5, 1, 1]]).expand(4, 3))]:
        weight = Integers(bits, codes, scales, -8 * scales)
        assert weight.stored().kind == "F32", groups
        assert torch.equal(weight.stored().numbers(), weight.numbers())
    narrow = Floats(torch.ones(4, 48).to(torch.float8_e4m3fn), torch.ones(4, 1))
    assert narrow.stored().kind == "F32"


def test_scales_of_float8_may_be_as_small_as_models_have_them():
    codes = torch.tensor([[1.0, -448.0, 2**-9, 0.0] * 8]).to(torch.float8_e4m3fn)
    weight = Floats(codes, torch.tensor([[3e-6]]))
    torch.testing.assert_close(weight.stored().numbers(), codes.float() * 3e-6, rtol=2**-11, atol=0)


def hidden(model):
    with torch.inference_mode():
        return model.model(IDS).last_hidden_state.float()


def exact(model, numbers):
    """The model in float32 with these numbers as weights."""
    model.float().load_state_dict({name: weight.float() for name, weight in numbers.items()})
    return model.eval()


@pytest.mark.parametrize("name", ["awq", "gptq, shuffled", "int8, asymmetric", "fp8"])
def test_a_model_computes_with_the_bits_of_its_files(name, tmp_path):
    kind = KINDS[name]
    model = tiny_architecture("qwen2")
    numbers = write(tmp_path, model, kind)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7]}')
    found = loaded(tmp_path, dtype="float32", quantization="packed")
    assert found.quantization == f"{scheme_of(kind.stored).method}, packed"
    assert 7 in found.stop_ids  # from its generation settings
    layer = found.model.get_submodule(UP)
    if isinstance(layer, Reordered):
        layer = layer.layer
    assert isinstance(layer, PackedLinear)
    assert layer.packed.kind == kind.block
    assert found.model.lm_head.packed.kind == "Q8_0"
    expected = hidden(exact(model, numbers))
    assert (hidden(found.model) - expected).abs().max() <= 2e-3 * expected.abs().max()


@pytest.mark.parametrize("name", ["awq", "gptq, shuffled", "float8"])
def test_a_model_is_made_of_numbers_where_that_is_asked_for(name, tmp_path):
    kind = KINDS[name]
    expected = write(tmp_path, tiny_architecture("qwen2"), kind)
    found = loaded(tmp_path, "none")
    assert found.quantization == f"{scheme_of(kind.stored).method}, dequantized"
    weights = found.model.state_dict()
    assert not hasattr(found.model.config, "quantization_config")
    for name, weight in expected.items():
        if not name.endswith("embed_tokens.weight"):
            assert torch.equal(weights[name], weight.to(weights[name].dtype)), name
    layers = sum(weight.numel() for name, weight in expected.items() if name.endswith("proj.weight"))
    assert layers <= count_weights(tmp_path).matrices < 1.3 * layers  # includes scales and zero points


def test_a_gpu_gets_planes_of_the_same_bits(tmp_path):
    from adamas_cli.models.checkpoint.source import build_model

    model = tiny_architecture("qwen2")
    numbers = write(tmp_path, model, KINDS["mlx"], ends=("proj", "embed_tokens", "lm_head"))
    scheme = scheme_of(MLX)
    planes = Planes(torch.float32, CPU)  # in a format that the interpreter computes with
    found = build_model(
        tmp_path, model.config, scheme, torch.float32, CPU, planes, trust_remote_code=False, in_blocks=True
    )
    assert isinstance(found.model.embed_tokens, PlaneEmbedding)
    assert sum(isinstance(module, PlaneLinear) for module in found.modules()) == 4 * 7 + 1
    x = torch.randn(1, 64)
    expected = x @ numbers[f"{UP}.weight"].T
    torch.testing.assert_close(found.get_submodule(UP)(x), expected, rtol=1e-3, atol=1e-3)
    tokens = torch.tensor([3, 0])
    rows = numbers["model.embed_tokens.weight"][tokens]
    torch.testing.assert_close(found.model.embed_tokens(tokens), rows, rtol=1e-6, atol=1e-6)
    on_cpu = loaded(tmp_path).model.model.embed_tokens
    torch.testing.assert_close(on_cpu(tokens).float(), rows, rtol=2**-8, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["awq", "gptq, shuffled", "gptq, uneven", "int8, asymmetric", "fp8", "mxfp4"]
)
def test_a_gpu_computes_with_the_bits_of_its_files(name, tmp_path):
    model = tiny_architecture("qwen2")
    numbers = write(tmp_path, model, KINDS[name])
    files = ModelFiles("a model", tmp_path, "")
    found = load(files, device="cuda", quantization="packed", dtype="float32", progress=Silent()).model
    with torch.inference_mode():
        got = found.model(IDS.cuda()).last_hidden_state.float().cpu()
    expected = hidden(exact(model, numbers))
    assert (got - expected).abs().max() <= 2e-3 * expected.abs().max()


def tiny_mixture(kind):
    from transformers import AutoModelForCausalLM, GptOssConfig, Qwen3MoeConfig

    sizes = {
        "vocab_size": 256 + len(CONTROL_TOKENS), "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "head_dim": 16,
        "max_position_embeddings": 256,
    }  # fmt: skip
    if kind == "gpt_oss":
        config = GptOssConfig(**sizes, intermediate_size=32, num_local_experts=4)
    else:
        config = Qwen3MoeConfig(**sizes, intermediate_size=96, moe_intermediate_size=32, num_experts=4)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", ["awq", "fp8"])
def test_experts_one_by_one_are_stacked_in_their_bits(name, tmp_path):
    model = tiny_mixture("qwen3_moe")
    numbers = write(tmp_path, model, KINDS[name])
    found = loaded(tmp_path, dtype="float32", quantization="packed").model
    experts = found.model.layers[1].mlp.experts
    assert isinstance(experts, PackedExperts)
    assert {layer.packed.kind for layer in (*experts.gate_up, experts.down)} == {KINDS[name].block}
    plain = tmp_path / "plain"
    plain.mkdir()
    model.save_pretrained(plain)
    tensors = {name: weight.bfloat16().contiguous() for name, weight in numbers.items()}
    save_file(tensors, plain / WEIGHTS, metadata={"format": "pt"})
    byte_tokenizer().save_pretrained(plain)
    expected = hidden(loaded(plain, dtype="float32", quantization="none").model)
    assert (hidden(found) - expected).abs().max() <= 2**-6 * expected.abs().max()  # bfloat16 rounding


def test_experts_of_gpt_oss_stay_in_their_bits(tmp_path):
    model = tiny_mixture("gpt_oss")
    model.bfloat16().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    weights = model.state_dict()
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        parts, numbers = mxfp4(experts * outputs, inputs, ("_blocks", "_scales"))
        tensors[f"{name}_blocks"] = parts["_blocks"].view(experts, outputs, inputs // 32, 16)
        tensors[f"{name}_scales"] = parts["_scales"].view(experts, outputs, inputs // 32)
        weights[name] = numbers.view(experts, outputs, inputs).transpose(1, 2)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    from checkpoints import say

    say(tmp_path, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    found = loaded(tmp_path, dtype="float32", quantization="packed")
    experts = found.model.model.layers[0].mlp.experts
    assert {experts.gate_up[0].packed.kind, experts.down.packed.kind} == {"MXFP4"}
    expected = hidden(exact(model, weights))
    assert (hidden(found.model) - expected).abs().max() <= 2e-2 * expected.abs().max()  # others have 8 bits
    full = loaded(tmp_path, dtype="float32", quantization="none").model
    assert (hidden(full) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_parts_of_a_layer_may_lie_in_different_files(tmp_path):
    write(tmp_path, tiny_architecture("qwen2"), KINDS["gptq"])
    whole = loaded(tmp_path, "none").model.state_dict()
    tensors = load_file(tmp_path / WEIGHTS)
    files = {name: f"model-{1 + i % 2}-of-2.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: x for name, x in tensors.items() if files[name] == file}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (tmp_path / WEIGHTS).unlink()
    for name, weight in loaded(tmp_path, "none").model.state_dict().items():
        assert torch.equal(weight, whole[name]), name


@pytest.mark.parametrize("name", ["awq", "gptq, symmetric", "int8", "fp8", "mxfp4", "mlx, 6 bits"])
def test_a_plan_knows_what_blocks_take(name, tmp_path):
    kind = KINDS[name]
    write(tmp_path, tiny_architecture("qwen2"), kind)
    scheme, tensors = scheme_of(kind.stored), Tensors(tmp_path)
    layers, plain = layers_of(scheme, tensors.entries, tmp_path)
    model = loaded(tmp_path).model
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    blocks = sum(module.packed.bytes for module in packed if module is not model.lm_head)
    assert len(layers) == 4 * 7
    assert held_bytes(scheme, tmp_path) == blocks + sum(tensors.entries[name].bytes for name in plain)


@pytest.mark.parametrize(
    "stored",
    [
        {**AWQ, "version": "gemv"},
        {**AWQ, "bits": 8},
        {"quant_method": "awq", "bits": 4, "format": "gemv"},
        {**AWQ, "backend": "llm-awq"},
        {**GPTQ, "bits": 5},
        {**GPTQ, "checkpoint_format": "marlin"},
        {**GPTQ, "is_marlin_format": True},
        compressed("nvfp4-pack-quantized"),
        {**compressed("pack-quantized"), "sparsity_config": {"format": "sparse-24-bitmask"}},
        {**compressed("pack-quantized"), "transform_config": {"config_groups": {"R1": {}}}},
        {"quant_method": "fp8", "fmt": "e5m2"},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {**MLX, "mode": "nvfp4"},
        {"quant_method": "torchao"},
        {},
    ],
    ids=str,
)
def test_other_forms_are_not_read(stored):
    assert scheme_of(stored) is None


@pytest.mark.parametrize("part", [".qweight", ".qzeros", ".scales", "", WEIGHTS])
def test_damaged_files_are_said(part, tmp_path):
    write(tmp_path, tiny_architecture("qwen2"), KINDS["gptq"])
    tensors = load_file(tmp_path / WEIGHTS)
    if part == WEIGHTS:
        (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    else:  # one part, or the whole layer
        tensors = {name: x for name, x in tensors.items() if not name.startswith(UP + part)}
        save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailableError, match=r"cannot load .*(lack|damaged)"):
        loaded(tmp_path, "none")


def test_parts_that_do_not_fit_together_are_said(tmp_path):
    write(tmp_path, tiny_architecture("qwen2"), KINDS["awq"])
    tensors = load_file(tmp_path / WEIGHTS)
    tensors[f"{UP}.scales"] = tensors[f"{UP}.scales"][:, :5].contiguous()
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailableError, match=f"the tensors of {UP} do not fit together"):
        loaded(tmp_path, "none")
