"""What a reading in parts reports while it works, beside the engine's events of the final answer."""

from __future__ import annotations

from dataclasses import dataclass

from adamas_cli.engine.events import Prefill, Token
from adamas_cli.session.answer import Step


@dataclass(frozen=True)
class Planned(Step):
    """The prompts of the next level, all of which will be answered before the level above begins."""

    level: int  # 0 for the parts, 1 for the first merges, and so on
    labels: tuple[str, ...]  # what each prompt holds
    tokens: tuple[int, ...]  # of the documents in each
    resumed: frozenset[int]  # those that were answered in an earlier run


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
    knows: bool  # whether the answer says anything
    reused: int  # tokens that were not read again
    written: int  # tokens
    read_seconds: float
    write_seconds: float
