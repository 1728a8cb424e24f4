"""The line about kernels that are being compiled, with hooks that no compiler calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from adamas_cli.engine import compiling
from adamas_cli.engine.compiling import LINE, Announcing

DEADLINE = 20  # seconds; no test comes near


class Compiler:
    """Triton's hooks, after those of another library. told: what that one saw."""

    def __init__(self) -> None:
        self.told = list[str]()
        self.runtime = SimpleNamespace(
            jit_cache_hook=lambda: self.told.append("begins"),
            jit_post_compile_hook=lambda: self.told.append("ends"),
        )

    def begin(self) -> None:
        self.runtime.jit_cache_hook()

    def end(self) -> None:
        self.runtime.jit_post_compile_hook()


@pytest.fixture
def compiler(monkeypatch) -> Iterator[Compiler]:
    knobs = pytest.importorskip("triton.knobs")
    found = Compiler()
    monkeypatch.setattr(knobs, "runtime", found.runtime)
    compiling._hook.cache_clear()
    yield found
    compiling._hook.cache_clear()
    assert not compiling._timers


def test_a_long_compilation_is_announced_by_the_innermost_scope(compiler, monkeypatch):
    monkeypatch.setattr(compiling, "NOTICED_AFTER", 0.0)
    lines, here = list[str](), threading.Event()

    def announce(line: str) -> None:
        lines.append(line)
        here.set()

    with Announcing(lambda line: lines.append(f"outer {line}")), Announcing(announce):
        compiler.begin()
        assert here.wait(DEADLINE)
        compiler.end()
    assert lines == [LINE]
    assert compiler.told == ["begins", "ends"]


@pytest.mark.parametrize("ends", [True, False], ids=["a short one", "one that fails"])
def test_nothing_is_announced_of(compiler, monkeypatch, ends):
    monkeypatch.setattr(compiling, "NOTICED_AFTER", float(DEADLINE))
    with Announcing(pytest.fail):
        compiler.begin()
        (timer,) = compiling._timers
        if ends:
            compiler.end()
    timer.join(DEADLINE)
    assert timer.finished.is_set()


def test_a_compilation_outside_of_a_scope_is_the_other_library_s_matter(compiler):
    with Announcing(pytest.fail):
        pass
    compiler.begin()
    assert not compiling._timers
    compiler.end()
    assert compiler.told == ["begins", "ends"]
