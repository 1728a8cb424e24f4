"""How packed weights are multiplied on a CPU: by what a measurement finds fastest, once for each machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from adamas_kernels.cpu.strips import multiplies
from test_decision import file_facts, machine_facts
from transformers import LlamaConfig

from adamas_cli.errors import UsageError
from adamas_cli.machine import cores, products, threads
from adamas_cli.machine.products import PRODUCTS, Choice, choose, known, measured
from adamas_cli.models import resolve
from adamas_cli.models.load import load
from adamas_cli.planning.decision import decide
from adamas_cli.progress import Silent
from adamas_cli.settings import DecodingSettings, ModelSettings
from adamas_cli.store.keys import first_link, model_facts

OPERATIONS = 10**9


@dataclass
class Made:
    """Layers that take as long as they are told, by a clock of their own. seconds: of a chunk's product and
    of a step's, by name and number of threads; attention: of a chunk, by name.
    """

    seconds: dict[tuple[str, int], tuple[float, float]]
    attention: dict[str, float] = field(default_factory=dict)
    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def layer(self, name: str, count: int) -> Layer:
        return Layer(self, *self.seconds[name, count], self.attention.get(name, math.inf))

    def choose(self, count: int) -> Choice:
        names = [name for name, each in self.seconds if each == count]
        return choose(names, count, self.layer, OPERATIONS, self.clock)


@dataclass
class Layer:
    made: Made
    chunk: float
    token: float
    attention: float

    def attend(self) -> None:
        self.made.now += self.attention

    def multiply(self) -> None:
        self.made.now += self.chunk

    def step(self) -> None:
        self.made.now += self.token


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bfloat16."""
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: True)


def test_the_fastest_products_are_chosen_and_the_usual_ones_unless_something_is_clearly_faster(bfloat16):
    two = {("float32", 2): (0.08, 0.01), ("bfloat16", 2): (0.02, 0.01)}
    close = Made(two | {("integers", 2): (0.019, 0.01)}).choose(2)
    assert close.name == "bfloat16"
    assert {name: round(rate) for name, rate in close.rates.items()} == {
        "float32": 12, "bfloat16": 50, "integers": 53
    }  # fmt: skip
    three = two | {("integers", 2): (0.01, 0.01)}
    assert Made(three, {"bfloat16": 0.02, "integers": 0.02}).choose(2).name == "integers"
    assert Made(three, {"bfloat16": 0.02, "integers": 0.04}).choose(2).name == "bfloat16"


def test_without_products_of_bfloat16_those_of_bytes_are_usual(monkeypatch):
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: False)
    assert Made({("integers", 2): (0.01, 0.01), ("float32", 2): (0.02, 0.01)}).choose(2).name == "integers"
    assert Made({("integers", 2): (0.03, 0.01), ("float32", 2): (0.02, 0.01)}).choose(2).name == "float32"
    assert Made({("float32", 2): (0.02, 0.01)}).choose(2).name == "float32"


def test_fewer_threads_are_used_only_where_chunks_and_steps_are_no_slower(bfloat16):
    def best(*each: tuple[int, float, float]) -> int | None:
        return Made({("bfloat16", count): (chunk, token) for count, chunk, token in each}).choose(16).threads

    assert best((16, 0.05, 0.02), (8, 0.03, 0.01), (4, 0.028, 0.01)) == 8
    assert best((16, 0.05, 0.02), (8, 0.03, 0.01), (4, 0.02, 0.01), (2, 0.03, 0.02)) == 4
    assert best((16, 0.05, 0.02), (8, 0.03, 0.03)) is None
    assert best((16, 0.05, 0.02), (8, 0.05, 0.01)) is None
    assert Made({("bfloat16", 2): (0.05, 0.02)}).choose(2).threads is None  # fewer are not tried


def test_a_disturbed_measurement_decides_nothing(bfloat16):
    made = Made({("bfloat16", 8): (0.02, 0.01), ("integers", 8): (0.001, 0.01)}, {})
    late = iter(range(100))

    def layer(name: str, count: int) -> Layer:
        found = made.layer(name, count)
        if name == "integers":
            found.multiply = lambda: setattr(made, "now", made.now + (0.001 if next(late) == 1 else 0.05))
        return found

    found = choose(["bfloat16", "integers"], 8, layer, OPERATIONS, made.clock)
    assert (found.name, found.threads, found.disturbed) == ("bfloat16", None, True)
    assert str(found).startswith("bfloat16 (by the features of this CPU: others ran beside")


@pytest.fixture
def unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Choice]:
    """A machine where nothing was measured yet, and what measuring will find, one after the other."""
    monkeypatch.delenv(products.VARIABLE)
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    found = [Choice("float32", 3, {"float32": 2.0, "integers": 1.0}), Choice("integers")]
    monkeypatch.setattr(products, "_measure_here", lambda announce: found.pop(0))
    return found


def test_a_machine_is_measured_once_and_again_after_an_update(unmeasured, monkeypatch):
    assert known() == products.by_features()
    first = measured(print)
    assert first.name == "float32"
    assert str(first) == "float32 on 3 threads (GFLOP/s: float32 2, integers 1)"
    assert [measured(print), known()] == [first, first]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for module in (cores, threads):
        monkeypatch.setattr(module, "physical_cores", lambda: 6)
    assert known() == products.by_features()  # with other threads
    before = torch.get_num_threads()
    try:
        assert measured(print).name == "integers"
        assert threads.use_threads(None) == 6
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(products, "__version__", "0")
    monkeypatch.setattr(products, "_measure_here", lambda announce: Choice("bfloat16", 5))
    assert measured(print).name == "bfloat16"
    try:
        assert threads.use_threads(None) == 5
        assert threads.use_threads(2) == 2
    finally:
        torch.set_num_threads(before)


def test_what_cannot_be_kept_is_not_measured_and_the_first_process_decides(unmeasured, monkeypatch):
    monkeypatch.setenv("ADAMAS_CACHE_DIR", "/proc/adamas")
    assert measured(print) == products.by_features()
    assert len(unmeasured) == 2  # nothing was measured


def test_another_process_that_was_first_decides(unmeasured, monkeypatch):
    other = Choice("integers", None, {"integers": 9.0})

    def slow(announce) -> Choice:
        products._MEMO.put(products._key(), {"name": "integers", "threads": None, "rates": {"integers": 9.0}})
        return Choice("float32")

    monkeypatch.setattr(products, "_measure_here", slow)
    assert measured(print) == other == known()


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_environment_may_name_the_products(name, unmeasured, monkeypatch):
    monkeypatch.setenv(products.VARIABLE, name)
    assert measured(print) == known() == Choice(name)
    monkeypatch.setenv(products.VARIABLE, "many")
    with pytest.raises(UsageError, match="choose measured, features, bfloat16, integers, float32"):
        known()


def test_the_real_measurement_finds_rates_of_all_that_this_cpu_has(tmp_path, monkeypatch):
    monkeypatch.delenv(products.VARIABLE)
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(products, "SECONDS", 0.0)
    monkeypatch.setattr(products, "usual_threads", lambda: 1)
    before = torch.get_num_threads()
    try:
        found = measured(print)
    finally:
        torch.set_num_threads(before)
    assert found == known()
    assert min(found.rates.values()) > 0
    assert ("integers" in found.rates) == multiplies("Q4_K")
    assert {"float32", found.name} <= found.rates.keys() <= PRODUCTS.keys()


def test_plans_and_loaded_models_use_the_products(tiny_model, monkeypatch):
    files = resolve(str(tiny_model), offline=True, progress=Silent())
    for name, each in PRODUCTS.items():
        monkeypatch.setenv(products.VARIABLE, name)
        machine = machine_facts("cpu")
        plan = decide(file_facts(files), machine, ModelSettings(), DecodingSettings(), 100)
        loaded = load(files, device="cpu", progress=Silent())
        assert (plan.dtype, plan.in_bytes) == (each.dtype, each.in_bytes)
        assert plan.cache_dtype == ("16" if each.in_bytes else "auto")
        assert (loaded.dtype, loaded.in_bytes) == (getattr(torch, each.dtype), each.in_bytes)
        assert loaded.model.lm_head.backend._rounds == each.in_bytes
        exact = ModelSettings(dtype="float32", quantization="packed")
        asked = decide(file_facts(files), machine, exact, DecodingSettings(), 100)
        assert (asked.dtype, asked.in_bytes) == ("float32", False)
        plain = decide(file_facts(files), machine, replace(exact, dtype="auto", quantization="none"),
                       DecodingSettings(), 100)  # fmt: skip
        assert not plain.in_bytes


def test_a_kept_document_of_other_products_is_not_used():
    def link(in_bytes: bool) -> bytes:
        return first_link(
            model_facts(
                LlamaConfig(), fingerprint="", quantization="packed", dtype="float32", device="cpu",
                block=512, kept="auto", in_bytes=in_bytes,
            )
        )  # fmt: skip

    assert link(True) != link(False)
