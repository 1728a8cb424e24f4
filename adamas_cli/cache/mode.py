"""How the tokens of one pass through a model attend: decided before the pass, the same for all layers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adamas_kernels import reading
from adamas_kernels.contract import Backend, SparseSettings
from adamas_kernels.reading import ReadSettings
from torch import Tensor

from adamas_cli.settings import DENSE_LAYERS

if TYPE_CHECKING:
    from adamas_cli.cache.tally import Tally


@dataclass(frozen=True)
class Sparse:
    """How layers with codes choose the tokens they attend to."""

    settings: SparseSettings
    backend: Backend


@dataclass(frozen=True)
class SparseReading:
    """How layers with means skip blocks of tokens. computed: int64 [2] on the device, a running count of
    computed blocks and of all blocks. backend: what computes it; None for the fastest one that can.
    """

    settings: ReadSettings
    computed: Tensor
    backend: Backend | None = None


def reading_facts(settings: ReadSettings) -> dict[str, Any]:
    """What sparsely read keys and values depend on, in addition to what densely read ones do."""
    sizes = {name: value for name, value in vars(reading).items() if isinstance(value, int | float)}
    return asdict(settings) | sizes | {"dense_layers": DENSE_LAYERS}


@dataclass(frozen=True)
class Mode:
    """One pass.

    answers: its tokens are an answer's, one after another. sparse: how layers with codes then attend; None
    for full attention. dense: the backend that attends fully from one token, by a length on the device, if
    there is one. tally: where attention is counted. encodes: layers encode their keys in this pass. read: how
    layers with means read; None to read densely.
    """

    answers: bool = False
    sparse: Sparse | None = None
    dense: Backend | None = None
    tally: Tally | None = None
    encodes: bool = False
    read: SparseReading | None = None


READING = Mode()
