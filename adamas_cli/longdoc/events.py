"""Events of a reading in parts, besides the engine's events of the final answer."""

from __future__ import annotations

from dataclasses import dataclass

from adamas_cli.engine.events import Prefill, Token
from adamas_cli.session.answer import Step


@dataclass(frozen=True)
class Planned(Step):
    """The prompts of the next level; all are answered before the level above begins."""

    level: int  # 0 for the parts, 1 for the first merges, and so on
    labels: tuple[str, ...]  # label of each prompt's content
    tokens: tuple[int, ...]  # of the documents in each
    resumed: frozenset[int]  # prompts answered in an earlier run


@dataclass(frozen=True)
class Started(Step):
    """A prompt of the level is being read."""

    index: int


@dataclass(frozen=True)
class Working(Step):
    """The engine's event for the prompt that started last."""

    event: Prefill | Token


@dataclass(frozen=True)
class Finished(Step):
    """A prompt of the level is answered."""

    index: int
    knows: bool  # whether the answer holds information
    reused: int  # tokens reused
    written: int  # tokens
    read_seconds: float
    write_seconds: float
