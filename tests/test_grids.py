"""Models in AWQ's and GPTQ's files, which are packed here number by number as those formats say."""

from __future__ import annotations

import json

import pytest
import torch
from adamas_cli.models.grids import Grid, dequantized, stored_grid
from conftest import byte_tokenizer, tiny_architecture
from safetensors.torch import load_file, save_file
from test_prequantized import Noting, loaded, say

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models import grids, prequantized
from adamas_cli.models.folder import INDEX, WEIGHTS
from adamas_cli.models.load import load
from adamas_cli.models.packed_linear import PackedLinear
from adamas_cli.models.prequantized import grid_to_dequantize, reading, stored_bytes
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.models.shape import count_weights
from adamas_cli.progress import Silent

GROUP = 32  # inputs that share a scale
GRIDS = [Grid("awq", 4), *(Grid("gptq", bits, 1) for bits in (2, 4, 8)), Grid("gptq", 4, 0)]


@pytest.fixture(autouse=True)
def without_packages(monkeypatch):
    """Nothing else here could read such files."""
    monkeypatch.setattr(prequantized, "is_installed", lambda module: False)


def packed(numbers: torch.Tensor, bits: int, places: list[int]) -> torch.Tensor:
    """Integers [rows, columns] in words of 32 bits along the columns; places: which of a word's columns lies
    in which place.
    """
    each = 32 // bits
    rows, columns = numbers.shape
    words = torch.zeros(rows, columns // each, dtype=torch.int64)
    for row in range(rows):
        for column in range(columns):
            place = places.index(column % each)
            words[row, column // each] |= int(numbers[row, column]) << (bits * place)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def on_grid(weight: torch.Tensor, grid: Grid, *, shuffled: bool = False) -> dict[str, torch.Tensor]:
    """The parts of a layer [out, in] in random integers, and under "" what they stand for."""
    outputs, inputs = weight.shape
    most = 1 << grid.bits
    numbers = torch.randint(0, most, (inputs, outputs))
    zeros = torch.randint(0, most, (inputs // GROUP, outputs))
    scales = (torch.rand(inputs // GROUP, outputs) * 0.01).half()
    group = torch.arange(inputs) // GROUP
    if shuffled:
        group = group[torch.randperm(inputs)]
    stands_for = (scales.float()[group] * (numbers - zeros[group])).T
    in_a_row = list(range(32 // grid.bits))
    places = [0, 2, 4, 6, 1, 3, 5, 7] if grid.method == "awq" else in_a_row
    parts = {"qzeros": packed((zeros - grid.zero_shift) % most, grid.bits, places), "scales": scales}
    if grid.method == "awq":
        parts["qweight"] = packed(numbers, 4, places)
    else:
        parts["qweight"] = packed(numbers.T, grid.bits, places).T.contiguous()
        parts["g_idx"] = group.int()
    return {**parts, "": stands_for}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shuffled", [False, True])
def test_integers_become_the_numbers_that_they_stand_for(grid, shuffled):
    parts = on_grid(torch.empty(48, 128), grid, shuffled=shuffled and grid.method == "gptq")
    expected = parts.pop("")
    assert torch.equal(dequantized(parts, grid, torch.float32), expected)
    assert dequantized(parts, grid, torch.bfloat16).is_contiguous()
    if not shuffled:
        parts.pop("g_idx", None)
        assert torch.equal(dequantized(parts, grid, torch.float32), expected)


def write(directory, grid: Grid, stored: dict, *, shards: bool = False) -> dict[str, torch.Tensor]:
    """A tiny Qwen2, whose projections have biases, on a grid; what its weights stand for."""
    torch.manual_seed(0)
    tiny_architecture("qwen2").bfloat16().save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    expected, tensors = {}, {}
    for name, weight in load_file(directory / WEIGHTS).items():
        expected[name] = tensors[name] = weight
        if name.endswith("proj.weight"):
            parts = on_grid(weight, grid)
            expected[name] = parts.pop("").bfloat16()
            del tensors[name]
            tensors |= {f"{name.removesuffix('weight')}{part}": x for part, x in parts.items()}
    if shards:  # the parts of one layer in different files
        names = sorted(tensors)
        files = {name: f"model-{1 + i % 2}-of-2.safetensors" for i, name in enumerate(names)}
        for file in set(files.values()):
            save_file({name: tensors[name] for name in names if files[name] == file}, directory / file)
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
        (directory / WEIGHTS).unlink()
    else:
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / "generation_config.json").write_text('{"eos_token_id": [7]}')
    say(directory, stored)
    return expected


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}


@pytest.mark.parametrize(("stored", "grid"), [(AWQ, Grid("awq", 4)), (GPTQ, Grid("gptq", 4, 1))])
@pytest.mark.parametrize("shards", [False, True])
def test_a_model_on_a_grid_loads_with_nothing_else_installed(stored, grid, shards, tmp_path):
    expected = write(tmp_path, grid, stored, shards=shards)
    assert stored_grid(stored) == grid
    found = loaded(tmp_path, "none")
    assert found.quantization == f"{grid.method}, dequantized"
    assert stored_bytes(tmp_path) is None  # in memory they are numbers, and a plan counts them
    layers = sum(weight.numel() for name, weight in expected.items() if name.endswith("proj.weight"))
    assert layers <= count_weights(tmp_path).matrices < 1.3 * layers  # and scales and zero points
    weights = found.model.state_dict()
    assert expected.keys() == weights.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name
    assert not hasattr(found.model.config, "quantization_config")
    assert 7 in found.stop_ids  # by its generation settings
    kept = loaded(tmp_path)
    assert kept.quantization == f"{grid.method}, dequantized, packed"
    assert isinstance(kept.model.get_submodule("model.layers.1.mlp.up_proj"), PackedLinear)


@pytest.mark.gpu
@pytest.mark.parametrize(("stored", "grid"), [(AWQ, Grid("awq", 4)), (GPTQ, Grid("gptq", 4, 1))])
def test_a_gpu_gets_the_same_numbers(stored, grid, tmp_path):
    expected = write(tmp_path, grid, stored)
    found = load(ModelFiles("a model", tmp_path, ""), device="cuda", progress=Silent())
    for name, weight in found.model.state_dict().items():
        assert weight.is_cuda
        assert torch.equal(weight.cpu(), expected[name]), name


def test_a_gpu_is_told_what_it_costs():
    progress = Noting()
    assert reading(AWQ, torch.device("cuda"), progress) is None
    assert progress.notes == [
        "its awq weights are dequantized, 4 times as large: pip install gptqmodel to keep them"
    ]
    reading(GPTQ, torch.device("cpu"), progress)  # where they are packed again
    assert len(progress.notes) == 1


@pytest.mark.parametrize(
    "stored",
    [
        {**AWQ, "version": "gemv"},
        {**AWQ, "bits": 8},
        {**GPTQ, "bits": 3},
        {**GPTQ, "checkpoint_format": "marlin"},
        {**GPTQ, "is_marlin_format": True},
        {**GPTQ, "dynamic": {"+:up_proj": {"bits": 8}}},
        {"quant_method": "awq", "bits": 4, "format": "gemv"},
        {**AWQ, "backend": "llm-awq"},
        {"quant_method": "torchao"},
        {},
    ],
)
def test_other_grids_are_left_to_others(stored):
    assert stored_grid(stored) is None
    assert grid_to_dequantize(stored) is None


def test_the_format_of_zero_points_has_two_names():
    for name in ("format", "checkpoint_format"):
        assert stored_grid({**GPTQ, name: "GPTQ_v2"}) == Grid("gptq", 4, 0)


def test_with_their_packages_transformers_reads_them(monkeypatch):
    monkeypatch.setattr(prequantized, "is_installed", lambda module: True)
    assert grid_to_dequantize(AWQ) is None


@pytest.mark.parametrize("part", [*grids.PARTS[:3], "", WEIGHTS])
def test_damaged_files_are_said(part, tmp_path):
    write(tmp_path, Grid("gptq", 4, 1), GPTQ)
    tensors = load_file(tmp_path / WEIGHTS)
    if part == WEIGHTS:
        (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    else:
        missing = f"model.layers.1.mlp.up_proj.{part}"  # one part, or the whole layer
        tensors = {name: x for name, x in tensors.items() if not name.startswith(missing)}
        save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailableError, match="cannot load a model"):
        loaded(tmp_path, "none")
