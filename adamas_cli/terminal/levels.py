"""A reading in parts as rows: one row per finished level, and the running level with its prompts below it."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from adamas_cli.longdoc.events import Finished, Step
from adamas_cli.longdoc.levels import Branch, Level, Tree
from adamas_cli.sanitize import one_line
from adamas_cli.terminal import lines

_SHORTEST_LABEL = 8  # columns
_SHOWN_FINISHED = 3  # finished prompts shown per level; others are only counted


class TreeView:
    """Draws a Tree, and returns the lines that should stay."""

    def __init__(self) -> None:
        self._tree = Tree()
        self._drawn = False

    def update(self, step: Step) -> None:
        """Update the state with an event."""
        self._tree.update(step)
        self._drawn = True

    def leave(self) -> list[str]:
        """Stop drawing until the next step; returns a line for each drawn level, to keep in its place."""
        levels = self._tree.levels if self._drawn else []
        self._drawn = False
        return [lines.joined(_whole(level)) for level in levels]

    def plain_line(self, step: Step) -> str | None:
        """The line for a step if nothing can be redrawn."""
        if not isinstance(step, Finished):
            return None
        level = self._tree.levels[-1]
        name = "part" if level.number == 0 else level.name
        branch = level.branches[step.index]
        told = f"{name} {step.index + 1:,} of {len(level.branches):,}: {one_line(branch.label)}"
        return lines.joined([told, *_result(branch, step)])

    def rows(self, width: int) -> list[RenderableType]:
        """The tree in its current state, for a terminal of `width` columns."""
        if not self._drawn or not self._tree.levels:
            return []
        *finished, current = self._tree.levels
        rows: list[RenderableType] = [_row("", _whole(level), width) for level in finished]
        rows.append(self._heading(current, width))
        branches = _branches(current)
        marks = ["├ "] * (len(branches) - 1) + ["└ "]
        return rows + [_row(mark, pieces, width) for mark, pieces in zip(marks, branches, strict=False)]

    def _heading(self, level: Level, width: int) -> RenderableType:
        total = sum(branch.tokens for branch in level.branches)
        facts = [f"{level.done:,} of {len(level.branches):,}"]
        remaining = self._tree.remaining_seconds
        if remaining is not None:
            facts.insert(0, f"ETA {lines.duration(remaining)}")
        resumed = sum(branch.resumed for branch in level.branches)
        if resumed:
            facts.append(f"{resumed:,} resumed")
        return lines.bar(level.name, round(total - level.left), total, facts, width)


def _whole(level: Level) -> list[str]:
    return [f"{level.name} {level.done:,} of {len(level.branches):,}", lines.duration(level.seconds)]


def _branches(level: Level) -> list[list[str]]:
    """The rows below a level, each with its most important piece first."""
    rows = []
    hidden = len(level.finished) - _SHOWN_FINISHED
    if hidden > 0:
        rows.append([f"{hidden:,} more finished"])
    for index in level.finished[-_SHOWN_FINISHED:]:
        branch = level.branches[index]
        if branch.finished is not None:
            rows.append([one_line(branch.label), "\N{CHECK MARK}", *_result(branch, branch.finished)])
    if level.running is not None:
        branch = level.branches[level.running]
        doing = f"{branch.written:,} written" if branch.written else f"reading {branch.read:.0%}"
        rows.append([one_line(branch.label), doing])
    waiting = len(level.branches) - level.done - (level.running is not None)
    if waiting:
        rows.append([f"{waiting:,} waiting"])
    return rows


def _result(branch: Branch, done: Finished) -> list[str]:
    facts = [f"{branch.tokens:,} tokens"]
    if done.reused:
        facts.append(f"{done.reused:,} reused")
    facts.append(f"{done.written:,} written" if done.knows else "knows nothing")
    return [*facts, lines.duration(done.read_seconds + done.write_seconds)]


def _row(mark: str, pieces: list[str], width: int) -> RenderableType:
    """The pieces in one line. In a narrow one, the first two stay, and the first is cut at its start."""
    room = width - len(mark)
    first, *rest = pieces
    left = room - len(lines.joined(["", *rest[:1]]))
    if rest and len(first) > left >= _SHORTEST_LABEL:
        first = "…" + first[1 - left :]
    return Text(mark + lines.fitted([first, *rest], room), no_wrap=True, overflow="ellipsis")
