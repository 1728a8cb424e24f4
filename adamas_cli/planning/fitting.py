"""Which models fit this machine's memory, and with how much context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adamas_cli.machine.gpus import gpus
from adamas_cli.machine.memory import memory
from adamas_cli.models.aliases import Alias, aliases
from adamas_cli.models.device import device_kind, dtype_name
from adamas_cli.models.inventory import find
from adamas_cli.models.recommended import Recommended, recommended
from adamas_cli.models.shape import ITEM_BYTES, shape_of
from adamas_cli.planning.needs import PROGRAM
from adamas_cli.settings import DENSE_LAYERS

LONG = 32 * 1024  # tokens of context that must fit before a model is recommended


@dataclass(frozen=True)
class Fit:
    """One model. largest: tokens of context that fit the memory. needed: bytes for its whole context."""

    name: str
    present: bool
    context: int
    largest: int
    needed: int


def fits() -> Iterator[Fit]:
    """Every model with a short name and a known shape, as it would be loaded by default."""
    kind, there = _room()
    for alias in (alias for alias in aliases().values() if alias.shape):
        entry = find(alias.name)
        yield _fit(alias.name, alias, kind, there, present=entry is not None and entry.file is not None)


def recommended_fits() -> list[Fit]:
    """Every recommended model, in table order."""
    kind, there = _room()
    return [_fit(model.name, model, kind, there, present=_is_here(model)) for model in recommended()]


def best() -> Fit | None:
    """The recommended model that suits this machine best; None if it has too little memory for any."""
    on_cpu = device_kind("auto") != "cuda"
    rows = zip(recommended(), recommended_fits(), strict=True)
    fitting = [fit for model, fit in rows if fit.largest >= LONG and (model.laptop or not on_cpu)]
    return fitting[-1] if fitting else None


def _room() -> tuple[str, int]:
    """The kind of device that models would be loaded on, and its memory in bytes."""
    kind = device_kind("auto")
    return kind, gpus()[0].memory if kind == "cuda" else memory().available


def _fit(name: str, model: Alias | Recommended, kind: str, there: int, *, present: bool) -> Fit:
    item = ITEM_BYTES[dtype_name("auto", kind)]
    shape = shape_of(model.shape | {"max_position_embeddings": model.context})
    each = shape.cache_bytes(1, item) + shape.code_bytes(1, DENSE_LAYERS)
    taken = model.bytes + PROGRAM + shape.state_bytes(item)  # weights stay as they are in the file
    room = max(0, there - taken) // each
    return Fit(name, present, model.context, min(model.context, room), taken + each * model.context)


def _is_here(model: Recommended) -> bool:
    from adamas_cli.models.quantizations import SeveralFilesError
    from adamas_cli.models.stores import file_in_hub_cache

    repository, _, tag = model.name.partition(":")
    try:
        return file_in_hub_cache(repository, tag) is not None
    except SeveralFilesError:
        return True
