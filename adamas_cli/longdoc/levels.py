"""Progress of a reading in parts: the levels with their prompts, built from its events."""

from __future__ import annotations

from dataclasses import dataclass, field

from adamas_cli.engine.events import Prefill
from adamas_cli.longdoc.events import Finished, Planned, Started, Step, Working


@dataclass
class Branch:
    """One prompt and its state."""

    label: str
    tokens: int
    resumed: bool
    read: float = 0.0  # share that has been read
    reused: int = 0
    written: int = 0
    finished: Finished | None = None


@dataclass
class Level:
    """The prompts of one level."""

    number: int  # 0 for the parts
    branches: list[Branch]
    running: int | None = None
    finished: list[int] = field(default_factory=list)  # in this run, in order

    @property
    def name(self) -> str:
        """`parts`, `merge 1` and so on."""
        return f"merge {self.number}" if self.number else "parts"

    @property
    def done(self) -> int:
        """The number of answered prompts, of any run."""
        return len(self.finished) + sum(branch.resumed for branch in self.branches)

    @property
    def seconds(self) -> float:
        """The seconds that this run has spent on the level."""
        ended = (self.branches[index].finished for index in self.finished)
        return sum(done.read_seconds + done.write_seconds for done in ended if done is not None)

    @property
    def left(self) -> float:
        """Tokens still to be read."""
        waiting = (branch for branch in self.branches if not branch.resumed and branch.finished is None)
        return sum(branch.tokens * (1 - branch.read) for branch in waiting)


@dataclass
class Tree:
    """All levels so far, the last one being worked on."""

    levels: list[Level] = field(default_factory=list)

    def update(self, step: Step) -> None:
        """Update the state with an event."""
        if isinstance(step, Planned):
            branches = [
                Branch(label, tokens, index in step.resumed)
                for index, (label, tokens) in enumerate(zip(step.labels, step.tokens, strict=True))
            ]
            below = [level for level in self.levels if level.number < step.level]
            self.levels = [*below, Level(step.level, branches)]
            return
        level = self.levels[-1]
        if isinstance(step, Started):
            level.running = step.index
        elif isinstance(step, Finished):
            level.branches[step.index].finished = step
            level.finished.append(step.index)
            level.running = None
        elif isinstance(step, Working) and level.running is not None:
            branch = level.branches[level.running]
            if isinstance(step.event, Prefill):
                branch.read = step.event.done / step.event.total
                branch.reused = step.event.reused
            else:
                branch.read = 1.0
                branch.written = step.event.index + 1

    @property
    def remaining_seconds(self) -> float | None:
        """Seconds until the last answer begins; None until a prompt was answered in this run.

        The level above will read what this one writes.
        """
        ended = [
            (branch, branch.finished)
            for level in self.levels
            for branch in level.branches
            if branch.finished is not None
        ]
        if not ended:
            return None
        read = sum(branch.tokens - done.reused for branch, done in ended)
        per_token = sum(done.read_seconds for _, done in ended) / max(1, read)
        writing = sum(done.write_seconds for _, done in ended) / len(ended)
        written = sum(done.written for _, done in ended) / len(ended)
        level = self.levels[-1]
        waiting = len(level.branches) - level.done
        return per_token * (level.left + written * len(level.branches)) + writing * waiting
