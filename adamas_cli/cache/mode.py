"""How the tokens of one pass through a model attend: decided before the pass, the same for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adamas_kernels.contract import Backend, SparseSettings

if TYPE_CHECKING:
    from adamas_cli.cache.tally import Tally


@dataclass(frozen=True)
class Sparse:
    """How layers with codes choose the tokens that they attend to."""

    settings: SparseSettings
    backend: Backend


@dataclass(frozen=True)
class Mode:
    """One pass.

    answers: its tokens are an answer's, one after another. sparse: how layers with codes attend then; None
    attends fully. dense: what attends fully from one token, by a length on the device, where something does.
    tally: where what is attended to is counted. encodes: layers encode their keys in this pass.
    """

    answers: bool = False
    sparse: Sparse | None = None
    dense: Backend | None = None
    tally: Tally | None = None
    encodes: bool = False


READING = Mode()
READING_AND_ENCODING = Mode(encodes=True)
