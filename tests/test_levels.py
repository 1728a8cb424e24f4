"""Levels of CPU features: what each allows, how it is reported, and that every level computes the same."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from adamas_kernels import levels
from adamas_kernels.cpu.formats import FORMATS
from adamas_kernels.cpu.runner import Runner
from check_level import STRIPS, check

from adamas_cli.errors import UsageError
from adamas_cli.machine import cpu, versions
from adamas_cli.models.device import choose_device, choose_dtype
from adamas_cli.quiet import prepare_environment

# For each level: torch's own report, the available byte products, and the weight types to check, which are
# all of them where kernels differ from those of this CPU.
LEVELS = {
    "plain": ("DEFAULT", ["Plain"], list(FORMATS)),
    "avx2": ("AVX2", ["Plain"], list(FORMATS)),
    "avx512": ("AVX512", ["Plain"], ["IQ4_NL", *STRIPS]),
    "avx512_bf16": ("AVX512", ["Avx512Vnni", "AvxVnni", "Plain"], ["IQ4_NL"]),
}
on_x86 = pytest.mark.skipif(platform.machine() not in levels.X86, reason="levels of x86")


@on_x86
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_computes_the_same(level: str) -> None:
    if level not in levels.reachable():
        pytest.skip(f"this CPU does not reach {level}")
    torch, forms, kinds = LEVELS[level]
    program = Path(__file__).with_name("check_level.py")
    environment = os.environ | {levels.VARIABLE: level}
    done = subprocess.run([sys.executable, program, *kinds], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told, features = json.loads(done.stdout), levels.levels()[level].features
    bits = told.pop("bits")
    assert list(bits) == kinds
    if "fma" in features:  # without it, products of floats are rounded before they are added
        assert bits == {kind: check(Runner(), kind) for kind in kinds}
    assert told == {"features": sorted(features), "forms": forms, "torch": torch}


@on_x86
def test_the_table_has_the_levels_that_are_tested_and_each_has_the_one_before() -> None:
    assert list(levels.levels()) == list(LEVELS)
    features = [level.features for level in levels.levels().values()]
    assert all(less < more for less, more in pairwise(features))


@on_x86
def test_a_level_limits_what_every_library_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in levels.levels()["avx2"].environment:
        monkeypatch.setenv(name, "something else")
    monkeypatch.delenv(levels.VARIABLE, raising=False)
    levels.limit()
    assert os.environ["NUMBA_CPU_NAME"] == "something else"
    monkeypatch.setenv(levels.VARIABLE, "plain")
    levels.limit()
    told = {name: os.environ[name] for name in levels.levels()["plain"].environment}
    assert told == {
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "+sse,+sse2",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    }


@on_x86
def test_a_level_that_the_cpu_does_not_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "host_features", lambda: levels.levels()["avx2"].features)
    assert levels.reachable() == ["plain", "avx2"]
    monkeypatch.setenv(levels.VARIABLE, "avx512")
    with pytest.raises(UsageError, match=r"lacks avx512bw, .*: choose native, plain, avx2\."):
        prepare_environment(silent=True, offline=True)
    monkeypatch.setenv(levels.VARIABLE, "sse9")
    with pytest.raises(UsageError, match=r"is sse9: choose native, plain, avx2, avx512, avx512_bf16\."):
        cpu.cpu_level()
    assert "sse9" in versions.versions()["CPU level"]


@on_x86
def test_a_level_hides_what_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {"flags": "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile"}
    monkeypatch.setattr(cpu, "_fields", lambda: every)
    monkeypatch.setattr(levels, "host_features", lambda: levels.levels()["avx512_bf16"].features)
    monkeypatch.delenv(levels.VARIABLE, raising=False)
    assert cpu.cpu_level() == "avx512_bf16"
    assert "amx_bf16" in cpu.cpu_features()
    for level, features, dtype in (
        ("avx2", ("avx2",), "torch.float32"),
        ("avx512_bf16", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), "torch.bfloat16"),
    ):
        monkeypatch.setenv(levels.VARIABLE, level)
        assert cpu.cpu_level() == f"{level}, by ADAMAS_CPU"
        assert cpu.cpu_features() == features
        assert str(choose_dtype("auto", choose_device("cpu"))) == dtype


def test_arm_has_levels_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(levels, "host_features", lambda: frozenset({"neon"}))
    assert list(levels.levels()) == ["plain", "dotprod"]
    assert levels.reachable() == ["plain"]
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert levels.levels() == {}
    monkeypatch.setenv(levels.VARIABLE, "plain")
    with pytest.raises(levels.LevelError, match=r"choose native\."):
        levels.chosen()
