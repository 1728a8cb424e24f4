"""Quantized checkpoints: which are refused with what advice, and which are left to their libraries."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints import FP8, KINDS, say, write
from conftest import byte_tokenizer, tiny_architecture
from safetensors.torch import save_file
from told import raises_told
from torch import nn

from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.forecast.forecast import Forecast, Settings
from adamas_cli.lab.bench.traffic import step_bytes
from adamas_cli.models import quantization
from adamas_cli.models.folder import CONFIG, WEIGHTS
from adamas_cli.models.load import load
from adamas_cli.models.packed_linear import PackedLinear
from adamas_cli.models.prequantized import (
    KEPT,
    MODELOPT,
    block_bytes,
    holds_quantized,
    require_readable,
    stored_bytes,
    stored_quantization,
)
from adamas_cli.models.quantization import PACKAGES, is_plain
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.progress import Silent
from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

PROJECTION = "model.layers.{}.mlp.up_proj"


def loaded(directory, quantization="auto", dtype="auto"):
    files = ModelFiles("a model", directory, directory.name)
    return load(files, device="cpu", dtype=dtype, quantization=quantization, progress=Silent())


def test_the_config_says_how_weights_are_stored(tmp_path):
    assert stored_quantization(tmp_path) is None
    (tmp_path / CONFIG).write_text("{ damaged")
    assert stored_quantization(tmp_path) is None
    (tmp_path / CONFIG).write_text("{}")
    assert stored_quantization(tmp_path) is None
    say(tmp_path, {"quant_method": "awq", "bits": 4})
    assert stored_quantization(tmp_path) == {"quant_method": "awq", "bits": 4}
    say(tmp_path, None, text_config={"quantization_config": {"quant_method": "gptq"}})
    assert stored_quantization(tmp_path) == {"quant_method": "gptq"}
    say(tmp_path, {"load_in_4bit": True})
    assert stored_quantization(tmp_path) == {"load_in_4bit": True, "quant_method": "bitsandbytes"}


def test_other_programs_say_it_elsewhere(tmp_path):
    mlx = {"group_size": 64, "bits": 4}
    for config in ({"quantization": mlx}, {"quantization": mlx, "quantization_config": mlx}):
        (tmp_path / CONFIG).write_text(json.dumps(config))
        assert stored_quantization(tmp_path) == {**mlx, "quant_method": "mlx"}
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / MODELOPT).write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert stored_quantization(tmp_path) == {"quant_algo": "FP8", "quant_method": "modelopt"}


@pytest.mark.parametrize("name", PACKAGES)
def test_what_comes_quantized_is_not_quantized_once_more(name):
    with raises_told(UsageError, match=rf"comes quantized \(awq\): leave out --quantization {name}"):
        require_readable("a model", {"quant_method": "awq"}, name, "cuda")


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt, NVFP4"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"a": {}},
            },
            "compressed-tensors, nvfp4-pack-quantized",
        ),
        ({"bits": 4}, "without a quant_method"),
    ],
)
def test_forms_that_are_not_read_are_refused_before_a_weight_is(stored, kind, tmp_path):
    say(tmp_path, stored)
    with pytest.raises(ModelUnavailableError, match=rf"comes quantized \({kind}\), in an unsupported form"):
        loaded(tmp_path)


def test_bitsandbytes_needs_a_gpu():
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ModelUnavailableError, match="which only GPUs compute with"):
        require_readable("a model", stored, "auto", "cpu")


@pytest.mark.parametrize("method", KEPT)
def test_missing_packages_are_named(method, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda module: None)
    extra = KEPT[method][1].replace("[", r"\[")
    with pytest.raises(ModelUnavailableError, match=rf"\({method}\) and needs more: pip install {extra}"):
        require_readable("a model", {"quant_method": method}, "auto", "cuda")


def test_the_extras_that_are_named_are_there():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = {extra.partition("[")[2].rstrip("]'") for _, extra, _ in KEPT.values()}
    assert extras
    assert extras <= project["project"]["optional-dependencies"].keys()


def test_what_stays_quantized_is_not_packed(tiny_model, tmp_path):
    from torchao import quantization as torchao
    from transformers import AutoModelForCausalLM, TorchAoConfig

    how = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=how, dtype=torch.bfloat16)
    directory = tmp_path / "int8"
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    found = loaded(directory, dtype="bfloat16")
    assert found.quantization == "torchao"
    plain = sum(parameter.numel() for parameter in model.parameters()) * 2
    linear = sum(layer.weight.numel() for name, layer in model.named_modules() if name.endswith("_proj"))
    step = step_bytes(found.model, 0, None, 0) + model.get_input_embeddings().weight.nbytes
    assert plain - linear < step < plain - 0.9 * linear  # plus a scale for each row
    assert type(found.model.get_submodule(PROJECTION.format(1)).weight.data) is not torch.Tensor
    assert not any(isinstance(module, PackedLinear) for module in found.model.modules())
    with raises_told(UsageError, match="stays so: leave out --quantization packed"):
        loaded(directory, "packed")


@pytest.mark.parametrize(("preset", "tolerance"), [("W4A16", 0.1), ("W8A8", 0.01), ("FP8_DYNAMIC", 0.04)])
def test_what_compressed_tensors_writes_is_read(preset, tolerance, tmp_path):
    from compressed_tensors import quantization
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    model = tiny_architecture("llama").bfloat16()
    plain = {name: weight.clone() for name, weight in model.state_dict().items()}
    scheme = quantization.preset_name_to_scheme(preset, ["Linear"])
    if scheme.weights.strategy == "group":
        scheme.weights.group_size = 32
    config = quantization.QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"])
    quantization.apply_quantization_config(model, config)
    for module in model.modules():
        if not hasattr(module, "quantization_scheme"):
            continue
        groups = module.weight.data.unflatten(1, (-1, scheme.weights.group_size or module.in_features))
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
        module.weight_scale.data.copy_(scale)
        module.quantization_status = quantization.QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    found = loaded(tmp_path, "none")
    assert found.quantization == "compressed-tensors, dequantized"
    for layer in range(4):
        name = f"{PROJECTION.format(layer)}.weight"
        lost = found.model.get_parameter(name) - plain[name]
        assert 0 < lost.norm() / plain[name].norm() < tolerance
    assert loaded(tmp_path).quantization == "compressed-tensors, packed"


def altered(weight):
    layer = nn.Linear(4, 4, bias=False)
    if weight is None:
        del layer.weight
    else:
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        altered(torch.zeros(4, 4, dtype=torch.int8)),
        altered(torch.zeros(4, 4, dtype=torch.float8_e4m3fn)),
        altered(None),
        type("Other", (nn.Linear,), {})(4, 4),
    ],
)
def test_quantized_layers_are_told_from_plain_ones(layer):
    assert holds_quantized(nn.Sequential(nn.Linear(4, 4), layer))
    assert not holds_quantized(nn.Sequential(nn.Linear(4, 4), nn.Embedding(4, 4)))
    assert not is_plain(layer)
    assert is_plain(nn.Linear(4, 4))


def test_bytes_that_a_library_multiplies_are_those_of_the_files(tmp_path):
    sees = {"visual.blocks.0.weight": torch.zeros(7, dtype=torch.uint8)}
    save_file({"model.norm.weight": torch.zeros(123, dtype=torch.uint8)} | sees, tmp_path / WEIGHTS)
    assert stored_bytes(tmp_path) is None
    assert block_bytes(tmp_path) is None
    say(tmp_path, {"quant_method": "torchao"})
    assert stored_bytes(tmp_path) == 123
    say(tmp_path, FP8)
    assert stored_bytes(tmp_path) is None


@pytest.mark.parametrize("quantization", ["auto", "none"])
def test_a_plan_knows_timings_by_what_loading_makes_of_the_weights(quantization, tmp_path):
    write(tmp_path, tiny_architecture("llama"), KINDS["fp8"])
    model = ModelSettings(device="cpu", quantization=quantization)
    settings = Settings(model, DecodingSettings(), PromptSettings(), StoreSettings())
    planned = Forecast(ModelFiles("a model", tmp_path, tmp_path.name), settings, Silent()).decide(100)
    assert planned.quantization == loaded(tmp_path, quantization).quantization
