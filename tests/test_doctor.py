"""`adamas doctor` and `adamas env`: on this machine, and on machines with something wrong."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from test_cli import Runner, adamas, installed  # noqa: F401 - fixtures

from adamas_cli.commands import checks
from adamas_cli.machine import triton_trial, versions
from adamas_cli.machine.gpus import Gpu
from adamas_cli.machine.memory import Memory
from adamas_cli.machine.triton_trial import Trial
from adamas_cli.models.device import choose_device, choose_dtype, device_kind, dtype_name
from adamas_cli.planning import fitting

H100 = Gpu("NVIDIA H100", 80_000_000_000, (9, 0))


@pytest.fixture
def doctor(adamas: Runner, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """Runs it on a machine with a model and without a GPU; Triton's trial, which takes seconds, succeeds."""
    monkeypatch.setattr(checks, "try_triton", lambda: Trial(1.0, False, None))
    for module in (checks, fitting):
        monkeypatch.setattr(module, "gpus", lambda: ())
    monkeypatch.setattr(checks, "driver_version", lambda: None)

    def run(*arguments: str, **changes: str):
        own = {"ADAMAS_CACHE_DIR": str(tmp_path / "cache"), "ADAMAS_MODEL": str(tiny_model)}
        return adamas("doctor", *arguments, **(own | changes))

    return run


def wrong(done) -> dict[str, str]:
    """The names of what `--json` calls wrong, with the advice."""
    told = json.loads(done.stdout)
    found = {check["name"]: check["advice"] for check in told["checks"] if check["state"] == "wrong"}
    assert told["ok"] == (not found)
    assert done.returncode == (1 if found else 0)
    assert all(advice.strip() for advice in found.values())
    return found


def test_nothing_is_wrong_where_everything_works(doctor) -> None:
    assert wrong(doctor("--json")) == {}
    shown = doctor().stdout.decode()
    assert shown.endswith("Everything works.\n")
    assert "note   GPU" in shown
    assert "smollm2-135m" in shown


def test_the_manual_shows_what_is_checked(doctor) -> None:
    page = (Path(__file__).parents[1] / "docs" / "setup.md").read_text(encoding="utf-8")
    shown = page.split("$ adamas doctor\n", 1)[1].split("\n\n", 1)[0].splitlines()
    printed = doctor().stdout.decode().split("\n\n", 1)[0].splitlines()
    assert [line[7:22] for line in printed] == [line[7:22] for line in shown]


def test_a_missing_model_is_named_with_what_fetches_it(doctor, tmp_path: Path) -> None:
    assert (
        "adamas models pull smollm2-135m"
        in wrong(doctor("--json", ADAMAS_MODEL="smollm2-135m"))["default model"]
    )
    assert (
        "adamas models pull owner/model"
        in wrong(doctor("--json", ADAMAS_MODEL="owner/model"))["default model"]
    )
    assert "adamas models default" in wrong(doctor("--json", ADAMAS_MODEL=str(tmp_path)))["default model"]
    shown = doctor(ADAMAS_MODEL="smollm2-135m")
    assert shown.returncode == 1
    assert (
        shown.stdout.decode()
        .splitlines()[-1]
        .startswith("default model: smollm2-135m is not on this machine")
    )


def test_a_wrong_configuration_is_told_and_stops_nothing_else(doctor, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("no_such_setting = 1\n")
    assert wrong(doctor("--json", ADAMAS_CONFIG=str(file))).keys() == {"configuration"}


def test_a_full_or_locked_disk_and_little_memory(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    found = wrong(doctor("--json", ADAMAS_CACHE_DIR="/proc/adamas"))
    assert "ADAMAS_CACHE_DIR" in found["disk, models"]
    monkeypatch.setattr(checks, "LEAST_FREE", 1 << 60)
    assert "adamas cache prune" in wrong(doctor("--json"))["disk, documents"]
    for module in (checks, fitting):
        monkeypatch.setattr(module, "memory", lambda: Memory(4_000_000_000, 1_000_000_000))
    told = json.loads(doctor("--json").stdout)
    assert "memory" in wrong(doctor("--json"))
    fits = {model["name"]: model["largest"] for model in told["models"]}
    assert fits["qwen2.5-coder-1.5b"] == 0
    assert 0 < fits["smollm2-135m"] < 8192


@pytest.mark.parametrize(
    ("built", "served", "problem", "names", "words"),
    [
        ("13.0", "13.0", None, set(), ""),
        (None, "13.0", None, {"GPU"}, "CUDA build"),
        ("13.0", "12.4", None, {"GPU"}, "Update NVIDIA's driver"),
        ("13.0", "13.1", "no C compiler", {"Triton"}, "gcc"),
    ],
)
def test_what_can_be_wrong_with_a_gpu(
    built, served, problem, names, words, doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "gpus", lambda: (H100,))
    monkeypatch.setattr(checks, "cuda_of_torch", lambda: built)
    monkeypatch.setattr(checks, "cuda_of_driver", lambda: served)
    monkeypatch.setattr(checks, "try_triton", lambda: Trial(1.0, problem is None, problem))
    found = wrong(doctor("--json"))
    assert found.keys() == names
    assert all(words in advice for advice in found.values())


def test_several_gpus_can_share_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "gpus", lambda: (H100, H100))
    monkeypatch.setattr(checks, "cuda_of_torch", lambda: "13.0")
    monkeypatch.setattr(checks, "cuda_of_driver", lambda: "13.0")
    assert checks._gpu().state == "ok"
    assert checks._gpu().found.endswith("--gpus 2 splits a model over them")


def test_a_driver_without_a_gpu_that_starts(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(checks, "driver_version", lambda: "580.65.06")
    assert "nvidia-smi" in wrong(doctor("--json"))["GPU"]


def test_triton_really_compiles_and_a_compiler_that_hangs_is_left() -> None:
    trial = triton_trial.try_triton(limit=200)
    assert trial.problem is None
    late = triton_trial.try_triton(limit=0.05)
    assert late.problem is not None
    assert "did not finish" in late.problem


def test_the_installed_doctor_and_env() -> None:
    done = installed("doctor", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["ok"] else 1)
    assert {"GPU", "Triton", "CPU", "memory", "default model"} < {check["name"] for check in told["checks"]}
    shown = installed("env")
    assert shown.returncode == 0
    assert f"torch               {version('torch')}\n" in shown.stdout.decode()


def test_env_tells_versions_and_no_secret(adamas: Runner) -> None:  # noqa: F811
    told = json.loads(
        adamas(
            "env",
            "--json",
            HF_TOKEN="abc123",
            ADAMAS_MODEL="owner/model",
            HTTPS_PROXY="http://user:word@proxy:3128",
            HF_ENDPOINT="https://hf_abcdefghijkl@hub",
        ).stdout
    )
    assert told["versions"]["transformers"] == version("transformers")
    variables = told["environment"]
    assert variables["HF_TOKEN"] == "(hidden)"
    assert variables["ADAMAS_MODEL"] == "owner/model"
    assert variables["HTTPS_PROXY"] == "http://(hidden)@proxy:3128"
    assert "abcdefghijkl" not in variables["HF_ENDPOINT"]
    assert "PATH" not in variables


def test_env_imports_no_torch(adamas: Runner) -> None:  # noqa: F811
    import subprocess
    import sys

    code = "import sys; from adamas_cli.cli import run; run(['env']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_cuda_of_torch_is_what_torch_says() -> None:
    import torch

    assert versions.cuda_of_torch() == torch.version.cuda


def test_device_and_number_format_are_those_that_torch_would_choose() -> None:
    for device in ("auto", "cpu"):
        chosen = choose_device(device)
        assert device_kind(device) == chosen.type
        for dtype in ("auto", "float16"):
            assert dtype_name(dtype, chosen.type) == str(choose_dtype(dtype, chosen)).removeprefix("torch.")
