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
    """How layers with codes choose the tokens that they attend to."""

    settings: SparseSettings
    backend: Backend


@dataclass(frozen=True)
class SparseReading:
    """How layers with means leave out blocks of tokens. computed: int64 [2] on the device, to which blocks
    that are computed and all blocks are added. backend: what computes it; None for the fastest that serves.
    """

    settings: ReadSettings
    computed: Tensor
    backend: Backend | None = None


def reading_facts(settings: ReadSettings) -> dict[str, Any]:
    """What the keys and values of sparsely read tokens depend on besides those of densely read ones."""
    sizes = {
        name: getattr(reading, name)
        for name in ("KEY_BLOCK", "QUERY_BLOCK", "KEY_PART", "QUERY_PART", "NEAR")
    }
    return asdict(settings) | sizes | {"dense_layers": DENSE_LAYERS}


@dataclass(frozen=True)
class Mode:
    """One pass.

    answers: its tokens are an answer's, one after another. sparse: how layers with codes attend then; None
    attends fully. dense: what attends fully from one token, by a length on the device, where something does.
    tally: where what is attended to is counted. encodes: layers encode their keys in this pass. read: how
    layers with means read; None reads densely.
    """

    answers: bool = False
    sparse: Sparse | None = None
    dense: Backend | None = None
    tally: Tally | None = None
    encodes: bool = False
    read: SparseReading | None = None


READING = Mode()
