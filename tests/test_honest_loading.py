"""Folders with a damaged model, or one that cannot answer: loaded right, or refused in a sentence, code 5."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file
from told import Notes, raises_told
from torch import Tensor

from adamas_cli.errors import AdamasError, ModelUnavailableError
from adamas_cli.models import LoadedModel, load, resolve
from adamas_cli.progress import Silent

Make = Callable[..., Path]
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Make:
    """Copies the tiny model, with changed weights and config fields."""

    def make(change: Callable[[dict[str, Tensor]], object] = lambda weights: None, **config: Any) -> Path:
        copy = tmp_path / "model"
        shutil.copytree(tiny_model, copy)
        weights = load_file(copy / WEIGHTS)
        change(weights)
        save_file(weights, copy / WEIGHTS, metadata={"format": "pt"})
        written = json.loads((copy / "config.json").read_text()) | config
        (copy / "config.json").write_text(json.dumps(written))
        return copy

    return make


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("Anna came home.\n" * 8)
    return path


def loaded(path: Path, progress: Silent | None = None) -> LoadedModel:
    told = progress or Silent()
    files = resolve(str(path), device="cpu", offline=True, progress=told)
    return load(files, device="cpu", dtype="float32", quantization="none", progress=told)


def logits(model: LoadedModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model(torch.arange(12)[None]).logits
    return found


def without(*ends: str) -> Callable[[dict[str, Tensor]], None]:
    """Drops the tensors whose names end like this."""

    def change(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if name.endswith(ends)]:
            del weights[name]

    return change


def setting(**tensors: Tensor) -> Callable[[dict[str, Tensor]], None]:
    """Sets tensors; `__` stands for a dot in their names."""
    return lambda weights: weights.update({name.replace("__", "."): t for name, t in tensors.items()})


def refused(path: Path, words: str) -> None:
    with raises_told(ModelUnavailableError, match=words) as caught:
        loaded(path)
    assert len(caught.value.message.splitlines()) <= 2


# tensors


def test_a_missing_tensor_is_named(folder: Make) -> None:
    refused(folder(without("layers.1.mlp.up_proj.weight")), r"lacks model\.layers\.1\.mlp\.up_proj\.weight;")


def test_of_many_missing_tensors_three_are_named(folder: Make) -> None:
    refused(folder(without("mlp.up_proj.weight", "norm.weight")), r"lacks .+, .+, .+ and 10 more; its files")


def test_a_base_model_lacks_a_head(folder: Make) -> None:
    def bare(weights: dict[str, Tensor]) -> None:
        for name in list(weights):
            weights[name.removeprefix("model.")] = weights.pop(name)
        del weights["lm_head.weight"]

    refused(
        folder(bare, architectures=["LlamaModel"]), r"lacks lm_head\.weight; its files are of a LlamaModel"
    )


def test_a_tied_head_is_not_missing(folder: Make) -> None:
    path = folder(without("lm_head.weight"), tie_word_embeddings=True)
    model = loaded(path).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tensor_of_another_shape_is_told_with_both(folder: Make) -> None:
    path = folder(setting(model__norm__weight=torch.zeros(63)))
    refused(path, r"model\.norm\.weight is \[63\] in its files, and should be \[64\]")


def test_tensors_that_are_not_used_are_noted(folder: Make, tiny_model: Path) -> None:
    told = Notes()
    extra = setting(
        score__weight=torch.zeros(2, 64),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8),  # old files have it
    )
    assert torch.equal(logits(loaded(folder(extra), told)), logits(loaded(tiny_model)))
    (line,) = [line for line in told.lines if "not used" in line]
    assert line.endswith("has tensors that are not used: score.weight")


# what a folder is


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a classifier or reward model"),
        ({"architectures": ["BertForMaskedLM"]}, "is a model that fills gaps"),
        ({"is_encoder_decoder": True}, "is an encoder with a decoder"),
        ({"quantization_config": {"quant_method": "strange"}}, r"comes quantized \(strange\)"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": ["x"]}}, r"quantized \(fp8\)"),
        ({"quantization_config": "int4"}, r"comes quantized \(int4\)"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"max_position_embeddings": "2k"}, "`max_position_embeddings` is '2k'"),
        ({"num_attention_heads": -4}, "`num_attention_heads` is -4"),
        ({"text_config": "none"}, "cannot|does not"),
        ({"hidden_size": 32}, "does not fit its config"),
        ({"model_type": "unheard_of"}, "`unheard_of`"),
    ],
)
def test_configs_that_cannot_be_served_are_refused(folder: Make, config: dict[str, Any], words: str) -> None:
    refused(folder(**config), words)


def test_a_model_of_embeddings_is_refused(folder: Make) -> None:
    path = folder()
    steps = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (path / "modules.json").write_text(json.dumps(steps))
    refused(path, "is a model of embeddings")


@pytest.mark.parametrize("config", ["{", "[]", "null", "[" * 100_000])
def test_a_config_that_is_none_is_told(folder: Make, config: str) -> None:
    path = folder()
    (path / "config.json").write_text(config)
    refused(path, r"has a damaged config\.json")


@pytest.mark.parametrize("settings", ['{"eos_token_id": ["x", 7]}', '{"eos_token_id": "x"}', "[", "{}"])
def test_settings_of_generation_may_be_damaged(folder: Make, settings: str) -> None:
    path = folder()
    (path / "generation_config.json").write_text(settings)
    assert loaded(path).stop_ids == ((7, 256) if "7" in settings else (256,))


def test_a_plan_refuses_kinds_of_weights_as_ask_does(run_here: Run, folder: Make, document: Path) -> None:
    path = folder(quantization_config={"quant_method": "strange"})
    code, out, told = run_here("plan", document, "-m", path)
    assert (code, out) == (5, "")
    assert "comes quantized (strange)" in told


REMOTE = {"AutoConfig": "configuration_foo.FooConfig", "AutoModelForCausalLM": "modeling_foo.FooLM"}


@pytest.mark.parametrize("command", ["ask", "plan"])
def test_code_that_comes_with_a_model_is_not_run(
    run_here: Run, folder: Make, document: Path, command: str
) -> None:
    path = folder(model_type="foo", architectures=["FooLM"], auto_map=REMOTE)
    code, out, told = run_here(command, document, "Who came?", "-m", path)
    assert (code, out) == (5, "")
    assert told.splitlines() == [
        f"adamas: {path} is a FooLM, for which transformers has no class: it brings its own code.",
        "Add --trust-remote-code to run that code, if you trust its source.",
    ]


def test_code_that_transformers_has_itself_is_not_needed(folder: Make, tiny_model: Path) -> None:
    assert torch.equal(logits(loaded(folder(auto_map=REMOTE))), logits(loaded(tiny_model)))


# files


def split(path: Path, *names: str) -> None:
    weights = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    for number, name in enumerate(names):
        part = dict(list(weights.items())[number :: len(names)])
        save_file(part, path / name, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "names",
    [
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ("weights.safetensors",),
    ],
)
def test_weights_that_no_index_lists_are_read(folder: Make, tiny_model: Path, names: tuple[str, ...]) -> None:
    path = folder()
    split(path, *names)
    model = loaded(path)
    assert torch.equal(logits(model), logits(loaded(tiny_model)))
    assert model.stop_ids == loaded(tiny_model).stop_ids


def test_a_shard_that_no_index_lists_is_missed(folder: Make) -> None:
    path = folder()
    split(path, "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors")
    refused(path, "lacks model-00002-of-00003.safetensors")


def test_pickles_are_not_read(folder: Make) -> None:
    path = folder()
    (path / WEIGHTS).rename(path / "pytorch_model.bin")
    refused(path, r"pytorch_model\.bin is a pickle")


@pytest.mark.parametrize("index", ["{}", "[", '{"weight_map": []}'])
def test_a_damaged_index_is_told(folder: Make, index: str) -> None:
    path = folder()
    (path / "model.safetensors.index.json").write_text(index)
    refused(path, "has a damaged model.safetensors.index.json")


def test_damaged_weights_are_told(folder: Make) -> None:
    path = folder()
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:5000])
    refused(path, "cannot load")
    with pytest.raises(AdamasError):
        loaded(path)
