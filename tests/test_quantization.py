"""`--quantization` by other libraries: what is refused, with what advice, and what transformers is told."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest
import torch

from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.models import quantization
from adamas_cli.models.load import _read, load
from adamas_cli.models.quantization import PACKAGES, quantization_config, require_quantizable
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.progress import Silent

GPU = torch.device("cuda")


@pytest.mark.parametrize("name", PACKAGES)
def test_cpus_are_refused_before_anything_is_loaded(name, tmp_path):
    files = ModelFiles("a model", tmp_path, "")  # an empty folder: reading it would be another error
    with pytest.raises(UsageError, match=f"--quantization {name} serves GPUs: the model is on cpu"):
        load(files, device="cpu", quantization=name, progress=Silent())


@pytest.mark.parametrize("found", [None, ModuleSpec("a folder", None)])
@pytest.mark.parametrize(("name", "extra"), [(name, extra) for name, (_, extra) in PACKAGES.items()])
def test_a_missing_package_is_named_with_its_extra(found, name, extra, monkeypatch):
    """A folder of the package's name in the path, such as this repository's kernels/, is no package."""
    monkeypatch.setattr(quantization, "find_spec", lambda package: found)
    with pytest.raises(UsageError, match=rf"pip install 'adamas\[{extra}\]'"):
        require_quantizable(name, GPU)


def test_old_gpus_have_no_fp8(monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda package: ModuleSpec("kernels", None, origin="file"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UsageError, match=r"compute capability 8\.9, this has 8\.0"):
        require_quantizable("fp8", GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    require_quantizable("fp8", GPU)


def test_bitsandbytes_is_told_how_many_bits():
    four, eight = (quantization_config(f"bnb-{bits}bit", torch.bfloat16) for bits in (4, 8))
    assert four.load_in_4bit
    assert four.bnb_4bit_quant_type == "nf4"
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert eight.load_in_8bit
    assert not eight.load_in_4bit


def test_the_extras_are_those_of_the_package():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    for package, extra in PACKAGES.values():
        assert any(requirement.startswith(package) for requirement in extras[extra])


@pytest.mark.parametrize(("quantizing", "expected"), [(True, ModelUnavailableError), (False, RuntimeError)])
def test_weights_that_cannot_be_converted_are_no_fault_of_ours(quantizing, expected, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    def refuse(*arguments, **options):
        raise RuntimeError("issues during automatic conversion of the weights")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    files = ModelFiles("a model", tmp_path, "")
    options = {"quantization_config": None} if quantizing else {}
    with pytest.raises(expected, match="automatic conversion"):
        _read(files, torch.device("cpu"), torch.float32, False, options)
