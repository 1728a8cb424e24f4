"""`--quantization` by other libraries: what is refused, with what advice, and what transformers is told."""

from __future__ import annotations

import logging
import warnings
from importlib.machinery import ModuleSpec

import pytest
import torch
from told import raises_told

from adamas_cli import quiet
from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.models import quantization
from adamas_cli.models.load import _read, load
from adamas_cli.models.quantization import (
    PACKAGES,
    installed_packages,
    quantization_config,
    require_quantizable,
)
from adamas_cli.models.quiet import quiet_transformers
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.progress import Silent


def required(name: str, dtype: str = "bfloat16", capability: tuple[int, int] = (9, 0)) -> None:
    """Checks as loading does on a GPU of this compute capability."""
    require_quantizable(name, "cuda", dtype, capability, installed_packages())


@pytest.mark.parametrize("name", PACKAGES)
def test_cpus_are_refused_before_anything_is_loaded(name, tmp_path):
    files = ModelFiles("a model", tmp_path, "")  # an empty folder: reading it would be another error
    with raises_told(UsageError, match=f"--quantization {name} serves GPUs: the model is on cpu"):
        load(files, device="cpu", quantization=name, progress=Silent())


@pytest.mark.parametrize("found", [None, ModuleSpec("a folder", None)])
@pytest.mark.parametrize(("name", "extra"), [(name, extra) for name, (_, extra) in PACKAGES.items()])
def test_a_missing_package_is_named_with_its_extra(found, name, extra, monkeypatch):
    """A folder with the package's name on the path, such as this repository's kernels/, is no package."""
    monkeypatch.setattr(quantization, "find_spec", lambda package: found)
    with pytest.raises(UsageError, match=rf"pip install 'adamas\[{extra}\]'"):
        required(name)


@pytest.fixture
def everything(monkeypatch):
    """All packages are installed."""
    package = ModuleSpec("a package", None, origin="file")
    monkeypatch.setattr(quantization, "find_spec", lambda name: package)


@pytest.mark.parametrize(
    ("name", "needed", "older"), [("fp8", (8, 9), (8, 6)), ("torchao-int4", (8, 0), (7, 5))]
)
def test_old_gpus_are_told_what_is_needed(name, needed, older, everything):
    wants, has = (rf"{major}\.{minor}" for major, minor in (needed, older))
    with pytest.raises(UsageError, match=f"{name} needs a GPU of compute capability {wants}, this has {has}"):
        required(name, capability=older)
    required(name, capability=needed)


def test_products_that_there_are_in_bfloat16_only_are_refused_in_others(everything):
    for name in ("fp8", "torchao-int4"):
        with raises_told(UsageError, match=f"{name} computes in bfloat16: leave out --dtype"):
            required(name, "float16")
    for name in PACKAGES.keys() - {"fp8", "torchao-int4"}:
        required(name, "float16")


def test_torchao_is_told_what_needs_no_other_package_and_leaves_torch_alone():
    """torch itself packs and multiplies, FP8 included, and float32 products stay unchanged."""
    int8, int4, fp8 = (
        quantization_config(name, torch.bfloat16).quant_type
        for name in ("torchao-int8", "torchao-int4", "fp8")
    )
    assert type(int8).__name__ == "Int8WeightOnlyConfig"
    assert int4.int4_packing_format.name == "TILE_PACKED_TO_4D"
    assert int4.group_size == 64
    assert type(fp8).__name__ == "Float8DynamicActivationFloat8WeightConfig"
    assert {type(kind).__name__ for kind in fp8.granularity} == {"PerRow"}
    assert not any(config.set_inductor_config for config in (int8, int4, fp8))


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


def read_refused(folder, monkeypatch, fault):
    """Read a folder whose weights transformers fails to convert."""
    from transformers import AutoModelForCausalLM

    def refuse(*arguments, **options):
        raise fault

    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (folder / "model.safetensors").touch()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    _read(ModelFiles("a model", folder, ""), torch.device("cpu"), torch.float32, False, None)


@pytest.mark.parametrize("fault", [RuntimeError, AssertionError, TypeError, AttributeError])
def test_weights_that_cannot_be_converted_are_no_fault_of_ours(fault, tmp_path, monkeypatch):
    with pytest.raises(ModelUnavailableError, match="automatic conversion"):
        read_refused(tmp_path, monkeypatch, fault("issues during automatic conversion of the weights"))


def test_memory_that_ran_out_is_not_taken_for_weights_that_cannot_be_converted(tmp_path, monkeypatch):
    with pytest.raises(torch.OutOfMemoryError):
        read_refused(tmp_path, monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize("name", ["bitsandbytes.autograd._functions", "torchao", "torch.utils._pytree"])
def test_lines_about_each_product_are_not_printed_unless_asked_for(name, monkeypatch):
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(variable, "1")  # set by every run; named here so that they are restored
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(variable, "error")
    before = {talker: logging.getLogger(talker).level for talker in (*quiet._TALKATIVE, "adamas_cli")}
    log = logging.getLogger(name)
    try:
        for talker in quiet._TALKATIVE:
            logging.getLogger(talker).setLevel(logging.NOTSET)
        quiet.prepare_libraries(verbose=2, offline=False)
        assert log.isEnabledFor(logging.WARNING)
        with warnings.catch_warnings():
            quiet.prepare_libraries(verbose=1, offline=False)
        assert not log.isEnabledFor(logging.WARNING)
        assert log.isEnabledFor(logging.ERROR)
    finally:
        for talker, level in before.items():
            logging.getLogger(talker).setLevel(level)


def test_no_library_draws_bars_while_a_model_is_loaded(capsys):
    from tqdm import tqdm

    with quiet_transformers():
        assert list(tqdm(range(3), disable=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    list(tqdm(range(3), disable=False))
    assert "3/3" in capsys.readouterr().err
