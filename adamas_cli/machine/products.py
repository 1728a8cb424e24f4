"""How this CPU reads packed weights: in the numbers that a short measurement finds fastest, kept for later
runs, so that a machine computes the same numbers each time. Needs neither torch nor numba, except to measure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from statistics import median
from typing import NamedTuple, Protocol, TypeVar

from adamas_cli import __version__
from adamas_cli.errors import UsageError
from adamas_cli.machine.cores import usual_threads
from adamas_cli.machine.cpu import (
    cpu_features,
    cpu_flags,
    cpu_level,
    cpu_multiplies_bfloat16,
    cpu_name,
)
from adamas_cli.memo import Memo

VARIABLE = "ADAMAS_PRODUCTS"
MEASURED, BY_FEATURES = "measured", "features"  # its values besides the names of PRODUCTS
GAIN = 1.1  # how much faster something else must be than what the CPU's features suggest
SECONDS, LEAST_ROUNDS = 0.12, 3  # of one measurement
DISTURBED = 1.5  # a median this many times the least
LEAST_THREADS = 4  # from this many on, fewer are tried too
_MEMO = Memo("products.json")
Name = TypeVar("Name")


@dataclass(frozen=True)
class Products:
    """How many tokens meet packed weights. dtype: the number format of activations, by torch's name;
    in_bytes: whether they are rounded to 8 bits for it.
    """

    dtype: str
    in_bytes: bool


PRODUCTS: Mapping[str, Products] = {
    "bfloat16": Products("bfloat16", in_bytes=False),
    "integers": Products("float32", in_bytes=True),
    "float32": Products("float32", in_bytes=False),
}


@dataclass(frozen=True)
class Choice:
    """What is used on this machine. name: of PRODUCTS. threads: None for the usual number. rates: measured
    GFLOP/s by name, empty if nothing was measured. disturbed: whether they did not count, since other
    programs ran.
    """

    name: str
    threads: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    disturbed: bool = False

    @property
    def products(self) -> Products:
        """What the name stands for."""
        return PRODUCTS[self.name]

    def __str__(self) -> str:
        name = self.name if self.threads is None else f"{self.name} on {self.threads} threads"
        if not self.rates:
            return f"{name} (by the features of this CPU)"
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.rates.items())
        why = "by the features of this CPU: others ran beside the measurement, " if self.disturbed else ""
        return f"{name} ({why}GFLOP/s: {rates})"


class Layer(Protocol):
    """Something to time, see `adamas_kernels.cpu.trial`."""

    def multiply(self) -> None:
        """The product of a chunk."""
        ...

    def attend(self) -> None:
        """The attention of a chunk."""
        ...

    def step(self) -> None:
        """The product of one token."""
        ...


def known() -> Choice:
    """The choice so far, without measuring. Raises UsageError for an unknown value of VARIABLE."""
    return _named() or _kept() or by_features()


def measured(announce: Callable[[str], None]) -> Choice:
    """The choice for this machine, measured if it was not yet. What cannot be kept is not measured: another
    run might find something else. announce: called with one line before kernels are compiled. Raises
    UsageError.
    """
    if (found := _named() or _kept()) is not None:
        return found
    if find_spec("numba") is not None and _MEMO.put("tried", True):
        found = _measure_here(announce)
        if _kept() is None:  # else another process was first
            _MEMO.put(_key(), asdict(found))
    return _kept() or by_features()


def by_features() -> Choice:
    """What the features of this CPU suggest."""
    return Choice("bfloat16" if cpu_multiplies_bfloat16() else "integers")


def choose(
    names: Sequence[str],
    threads: int,
    layer: Callable[[str, int], Layer],
    operations: int,
    clock: Callable[[], float],
) -> Choice:
    """The fastest of PRODUCTS among these names, and the best number of threads up to this one; the usual
    ones if other programs disturb. layer: makes a layer for both; operations: of its product.
    """
    layers = {name: layer(name, threads) for name in names}
    timings = timed({name: each.multiply for name, each in layers.items()}, clock)
    rates = {name: operations / each.least / 1e9 for name, each in timings.items()}
    usual = by_features().name if by_features().name in names else names[-1]
    if any(each.disturbed for each in timings.values()):
        return Choice(usual, None, rates, disturbed=True)
    name = _fastest(usual, layers, timings, clock)
    best, of_best = threads, _both(layers[name], clock)
    while best >= LEAST_THREADS:
        fewer = _both(layer(name, best // 2), clock)
        if not (GAIN * fewer[0] < of_best[0] and fewer[1] <= of_best[1]):
            break
        best, of_best = best // 2, fewer
    return Choice(name, None if best == threads else best, rates)


def _fastest(
    usual: str, layers: Mapping[str, Layer], timings: Mapping[str, Timing], clock: Callable[[], float]
) -> str:
    """The usual products, unless others are clearly faster, together with attention if its number format is
    another one. timings: of products.
    """
    seconds = {name: each.least for name, each in timings.items()}
    faster = [name for name, each in seconds.items() if GAIN * each < seconds[usual]]
    formats = {PRODUCTS[name].dtype: layers[name].attend for name in (usual, *faster)}
    attention = dict.fromkeys(formats, Timing(0.0, 0.0))
    if len(formats) > 1:  # compiled for this if it is not the usual one
        attention = timed(formats, clock)
    total = {name: seconds[name] + attention[PRODUCTS[name].dtype].least for name in (usual, *faster)}
    best = min(total, key=lambda name: total[name])
    return best if GAIN * total[best] < total[usual] else usual


class Timing(NamedTuple):
    """Seconds of several runs: the least, and the median."""

    least: float
    median: float

    @property
    def disturbed(self) -> bool:
        """Whether half of the runs took so long that something else must have run, too."""
        return self.median > DISTURBED * self.least


def timed(works: Mapping[Name, Callable[[], None]], clock: Callable[[], float]) -> dict[Name, Timing]:
    """The timings of works that run in turns, after a first run that may compile."""
    for work in works.values():
        work()
    seconds: dict[Name, list[float]] = {name: [] for name in works}
    begun, rounds = clock(), 0
    while rounds < LEAST_ROUNDS or clock() - begun < SECONDS:
        for name, work in works.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
        rounds += 1
    return {name: Timing(min(each), median(each)) for name, each in seconds.items()}


def _both(layer: Layer, clock: Callable[[], float]) -> tuple[float, float]:
    """The least seconds of a chunk's product and of a step's."""
    timings = timed({"chunk": layer.multiply, "step": layer.step}, clock)
    return timings["chunk"].least, timings["step"].least


def _measure_here(announce: Callable[[str], None]) -> Choice:
    import torch
    from adamas_kernels.cpu.trial import OPERATIONS, Trial, multiplies_bytes

    def layer(name: str, threads: int) -> Layer:
        torch.set_num_threads(threads)
        products = PRODUCTS[name]
        return Trial(getattr(torch, products.dtype), in_bytes=products.in_bytes, announce=announce)

    there = {
        "bfloat16": cpu_multiplies_bfloat16() or "bf16" in cpu_flags(),
        "integers": multiplies_bytes(),
        "float32": True,
    }
    names = [name for name, has in there.items() if has]
    return choose(names, usual_threads(), layer, OPERATIONS, time.perf_counter)


def _named() -> Choice | None:
    """The choice that VARIABLE makes."""
    value = os.environ.get(VARIABLE) or MEASURED
    if value == MEASURED:
        return None
    if value == BY_FEATURES:
        return by_features()
    if value not in PRODUCTS:
        choices = ", ".join([MEASURED, BY_FEATURES, *PRODUCTS])
        raise UsageError(f"{VARIABLE} is {value}: choose {choices}.")
    return Choice(value)


def _kept() -> Choice | None:
    found = _MEMO.get(_key())
    try:
        choice = Choice(**found)
        return choice if choice.name in PRODUCTS else None
    except TypeError:  # nothing, or something else
        return None


def _key() -> str:
    """What a measurement depends on."""
    versions = [f"adamas {__version__}"]
    for package in ("torch", "numba"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    features = " ".join(cpu_features())
    return ", ".join([cpu_name(), features, cpu_level(), f"{usual_threads()} threads", *versions])
