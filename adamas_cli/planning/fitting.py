"""Which models this machine has memory for, and with how much context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adamas_cli.machine.gpus import gpus
from adamas_cli.machine.memory import memory
from adamas_cli.models.aliases import aliases
from adamas_cli.models.device import device_kind, dtype_name
from adamas_cli.models.inventory import find
from adamas_cli.models.shape import ITEM_BYTES, expected_weights, shape_of
from adamas_cli.planning.needs import PROGRAM
from adamas_cli.settings import DENSE_LAYERS


@dataclass(frozen=True)
class Fit:
    """One model. largest: tokens of context that there is memory for. needed: bytes for its whole context."""

    name: str
    present: bool
    context: int
    largest: int
    needed: int


def fits() -> Iterator[Fit]:
    """Every model that has a short name and a known shape, as it would be loaded by default."""
    kind = device_kind("auto")
    item = ITEM_BYTES[dtype_name("auto", kind)]
    there = gpus()[0].memory if kind == "cuda" else memory().available
    for alias in (alias for alias in aliases().values() if alias.shape):
        config = alias.shape | {"max_position_embeddings": alias.context}
        shape, count = shape_of(config), expected_weights(config)
        weights = count.bytes(item) if kind == "cuda" else count.packed_bytes(item)
        each = shape.cache_bytes(1, item) + shape.code_bytes(1, DENSE_LAYERS)
        room = max(0, there - weights - PROGRAM) // each
        entry = find(alias.name)
        present = entry is not None and entry.file is not None
        needed = weights + PROGRAM + each * alias.context
        yield Fit(alias.name, present, alias.context, min(alias.context, room), needed)
