"""Arm CPUs and macOS: kernels compile for them and their differences are handled, though none is here."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil  # noqa: F401 - it asks for the system when it is imported
import pytest
import torch
from adamas_kernels import levels

from adamas_cli import heap
from adamas_cli.documents.formats.limits import limit
from adamas_cli.engine.peak import peak_memory
from adamas_cli.lab.bench import llama_child
from adamas_cli.lab.hardware import device_name
from adamas_cli.machine import backends, cores, cpu
from adamas_cli.models.device import dtype_name

ELF, MACH_O = "7f454c46", "cffaedfe"  # the first bytes of Linux and macOS objects


def test_every_kernel_compiles_for_arm_without_instructions_of_x86() -> None:
    program = Path(__file__).with_name("compile_for_arm.py")
    done = subprocess.run([sys.executable, program, "Q4_K"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    functions = json.loads(done.stdout)
    assert all(function["objects"][0] == ELF for function in functions)
    assert {function["objects"][-1] for function in functions if "_task" in function["name"]} == {MACH_O}
    assert {name for function in functions for name in function["named"]} == {
        "aarch64.hint",
        "aarch64.neon.sdot.v4i32.v16i8",
    }
    # Stages have names that end with what they close over, see `build.distinct`.
    compiled = {re.sub("_task_[0-9a-f]+$", "_task", function["name"]) for function in functions}
    stages = ("enter", "estimate", "threshold", "candidates", "attend", "merge", "encode", "pack", "inner")
    assert {f"{stage}_task" for stage in stages} <= {name.rpartition(".")[2] for name in compiled}


@pytest.fixture
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """What macOS reports and lacks, and an Apple CPU."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    monkeypatch.setattr(cpu, "_fields", dict)  # there is no /proc
    monkeypatch.setattr(levels, "host_features", lambda: frozenset({"neon", "dotprod", "bf16"}))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "triton" else name)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # without malloc_trim


def test_a_mac_is_told_by_other_means(on_a_mac, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.cpu_name() == "arm"
    assert cpu.cpu_features() == ()
    assert cpu.cpu_level() == "dotprod"
    assert device_name(torch.device("cpu")).startswith("arm, ")
    assert cores.physical_cores() >= 1
    heap.give_back()
    assert dtype_name("auto", "cpu") in ("float32", "bfloat16")  # as torch reports the CPU
    monkeypatch.setenv(levels.VARIABLE, "plain")
    assert dtype_name("auto", "cpu") == "float32"


def test_a_mac_has_no_triton_and_computes_on_its_cpu(on_a_mac) -> None:
    assert backends.backend_obstacles("cpu", None)["cpu"] is None
    assert backends.backend_obstacles("cuda", (9, 0))["triton"] == "triton is not installed"


def test_peak_memory_comes_in_bytes_on_a_mac_and_in_kilobytes_elsewhere(monkeypatch) -> None:
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5_000_000))
    for system, peak in (("darwin", 5_000_000), ("linux", 5_120_000_000)):
        monkeypatch.setattr(sys, "platform", system)
        assert peak_memory(torch.device("cpu")) == llama_child.peak_bytes() == peak


def test_a_limit_that_a_mac_refuses_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    limit(resource.RLIMIT_AS, 1 << 30)
