"""Models that come quantized: what is refused with what advice, and what those that load compute with."""

from __future__ import annotations

import json
import shutil
from importlib.machinery import ModuleSpec

import pytest
import torch
from conftest import byte_tokenizer, tiny_architecture
from safetensors.torch import load_file, save_file
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
    NEEDED,
    holds_quantized,
    numbers_in_word,
    reading,
    require_readable,
    stored_bytes,
    stored_quantization,
)
from adamas_cli.models.quantization import PACKAGES, is_plain
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.progress import Silent
from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

GPU, CPU = torch.device("cuda"), torch.device("cpu")
BLOCK = 32
PROJECTION = "model.layers.{}.mlp.up_proj"
FLOAT8 = {"config_groups": {"a": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}}}


class Noting(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def say(directory, stored, **more):
    """Write into a config that the weights beside it are quantized."""
    config = json.loads((directory / CONFIG).read_text()) if (directory / CONFIG).exists() else {}
    (directory / CONFIG).write_text(json.dumps({**config, "quantization_config": stored, **more}))


def loaded(directory, quantization="auto"):
    files = ModelFiles("a model", directory, directory.name)
    return load(files, device="cpu", quantization=quantization, progress=Silent())


@pytest.fixture(scope="module")
def fp8_model(tmp_path_factory):
    """A tiny Llama in blocks of FP8, but for its first layer; and what its weights stand for."""
    directory = tmp_path_factory.mktemp("tiny-fp8")
    tiny_architecture("llama").bfloat16().save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    stored, expected = {}, {}
    for name, weight in load_file(directory / WEIGHTS).items():
        stored[name] = expected[name] = weight
        if not name.endswith("proj.weight") or ".layers.0." in name:
            continue
        rows, columns = (size // BLOCK for size in weight.shape)
        blocks = weight.float().reshape(rows, BLOCK, columns, BLOCK)
        scale = blocks.abs().amax((1, 3), keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
        codes = (blocks / scale).to(torch.float8_e4m3fn)
        stored[name] = codes.reshape(weight.shape)
        stored[f"{name}_scale_inv"] = scale.reshape(rows, columns)
        expected[name] = (codes.float() * scale).reshape(weight.shape).bfloat16()
    save_file(stored, directory / WEIGHTS, metadata={"format": "pt"})
    kept = [f"model.layers.0.{part}" for part in ("self_attn", "mlp")]
    say(
        directory,
        {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": kept},
    )
    return directory, expected


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


def test_words_hold_as_many_numbers_as_the_config_says():
    assert numbers_in_word(None) == numbers_in_word({"quant_method": "fp8"}) == 1
    assert numbers_in_word({"bits": 4}) == 8
    assert numbers_in_word({"w_bit": 8}) == 4
    assert numbers_in_word(FLOAT8) == 4
    for groups in ({"a": {}}, {"a": {"weights": None}}, {"W8A8": ["Linear"]}):
        assert numbers_in_word({"bits": "four" if "a" in groups else None, "config_groups": groups}) == 1


@pytest.mark.parametrize("name", PACKAGES)
def test_what_comes_quantized_is_not_quantized_once_more(name):
    with raises_told(UsageError, match=rf"comes quantized \(awq\): leave out --quantization {name}"):
        require_readable("a model", {"quant_method": "awq"}, name)


@pytest.mark.parametrize(("stored", "kind"), [({"quant_method": "exl9"}, "exl9"), ({"bits": 4}, "without")])
def test_kinds_that_transformers_would_read_as_plain_numbers_are_refused(stored, kind):
    with pytest.raises(ModelUnavailableError, match=rf"comes quantized \({kind}.*does not know how"):
        require_readable("a model", stored, "auto")


@pytest.mark.parametrize("method", NEEDED)
def test_missing_packages_are_named(method, monkeypatch, tmp_path):
    monkeypatch.setattr(quantization, "find_spec", lambda module: None)
    say(tmp_path, {"quant_method": method, "load_in_4bit": method == "bitsandbytes"})
    packages = " ".join(NEEDED[method].values()).replace("[", r"\[")
    with pytest.raises(ModelUnavailableError, match=rf"\({method}\) and needs more: pip install {packages}"):
        loaded(tmp_path)


def test_the_extras_that_are_named_are_there():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    named = {package for packages in NEEDED.values() for package in packages.values() if "[" in package}
    extras = {package.partition("[")[2].rstrip("]'") for package in named}
    assert extras
    assert extras <= project["project"]["optional-dependencies"].keys()


def test_fp8_is_dequantized_on_a_cpu(fp8_model):
    directory, expected = fp8_model
    found = loaded(directory, "none")
    assert found.quantization == "fp8, dequantized"
    weights = found.model.state_dict()
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=2**-7, atol=0)


def test_what_was_dequantized_is_packed(fp8_model):
    found = loaded(fp8_model[0])
    assert found.quantization == "fp8, dequantized, packed"
    assert isinstance(found.model.get_submodule(PROJECTION.format(1)), PackedLinear)


def test_what_stays_quantized_is_not_packed(tiny_model, tmp_path):
    from torchao import quantization as torchao
    from transformers import AutoModelForCausalLM, TorchAoConfig

    how = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=how, dtype=torch.bfloat16)
    directory = tmp_path / "int8"
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    found = loaded(directory)
    assert found.quantization == "torchao"
    plain = sum(parameter.numel() for parameter in model.parameters()) * 2
    linear = sum(layer.weight.numel() for name, layer in model.named_modules() if name.endswith("_proj"))
    step = step_bytes(found.model, 0, None, 0) + model.get_input_embeddings().weight.nbytes
    assert plain - linear < step < plain - 0.9 * linear  # a scale for each row more
    assert type(found.model.get_submodule(PROJECTION.format(1)).weight.data) is not torch.Tensor
    assert not any(isinstance(module, PackedLinear) for module in found.model.modules())
    with raises_told(UsageError, match="stays so: leave out --quantization packed"):
        loaded(directory, "packed")


@pytest.mark.parametrize(("preset", "tolerance"), [("W4A16", 0.1), ("W8A8", 0.01), ("FP8_DYNAMIC", 0.04)])
def test_compressed_tensors_are_dequantized_at_once(preset, tolerance, tmp_path):
    """Left to transformers they are so in the first pass, when the engine has looked at the layers."""
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
    assert loaded(tmp_path).quantization == "compressed-tensors, dequantized, packed"


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, by bitnet
def test_a_config_without_its_weights_is_no_fault_of_ours(tiny_model, tmp_path):
    """Weights of another kind than the config says: transformers raises many kinds of exceptions."""
    directory = tmp_path / "bitnet"
    shutil.copytree(tiny_model, directory)
    say(directory, {"quant_method": "bitnet"})
    with pytest.raises(ModelUnavailableError, match="a model does not fit its config: "):
        loaded(directory)


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


def test_fp8_in_blocks_says_what_keeps_it_from_a_gpu(monkeypatch):
    from transformers.integrations import finegrained_fp8

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    stored = {"quant_method": "fp8", "modules_to_not_convert": ["a"]}
    monkeypatch.setattr(quantization, "find_spec", lambda module: None)
    progress = Noting()
    config = reading(stored, GPU, progress)
    assert (config.dequantize, config.modules_to_not_convert) == (True, ["a"])
    assert "twice as large: pip install kernels" in progress.notes[0]

    def refuse():
        raise OSError("the hub cannot be reached\nand more")

    monkeypatch.setattr(quantization, "find_spec", lambda module: ModuleSpec(module, None, origin="file"))
    monkeypatch.setattr(finegrained_fp8, "load_finegrained_fp8_kernel", refuse)
    assert reading(stored, GPU, progress).dequantize
    assert progress.notes[1].endswith("twice as large: the hub cannot be reached")
    monkeypatch.setattr(finegrained_fp8, "load_finegrained_fp8_kernel", lambda: None)
    assert reading(stored, GPU, progress) is None
    assert len(progress.notes) == 2


def test_bytes_that_stay_in_memory_are_those_of_the_files(tmp_path):
    (tmp_path / WEIGHTS).write_bytes(bytes(123))
    assert stored_bytes(tmp_path) is None
    say(tmp_path, {"quant_method": "awq"})
    assert stored_bytes(tmp_path) == 123
    say(tmp_path, {"quant_method": "fp8"})
    assert stored_bytes(tmp_path) is None


@pytest.mark.parametrize("quantization", ["auto", "none"])
def test_a_plan_knows_timings_by_what_loading_makes_of_the_weights(fp8_model, quantization):
    directory, _ = fp8_model
    model = ModelSettings(device="cpu", quantization=quantization)
    settings = Settings(model, DecodingSettings(), PromptSettings(), StoreSettings())
    planned = Forecast(ModelFiles("a model", directory, directory.name), settings, Silent()).decide(100)
    assert planned.quantization == loaded(directory, quantization).quantization
