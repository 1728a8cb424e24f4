"""The one-line texts of progress: tasks, the prefill bar, the status below an answer, the final summary."""

from __future__ import annotations

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adamas_cli.engine.events import Done, Prefill, Token
from adamas_cli.session.answer import rate

_SEPARATOR = " · "
_LONGEST_BAR = 40
_SHORTEST_BAR = 8


def count(number: float) -> str:
    """`31,204`; one decimal below ten."""
    return f"{number:.1f}" if isinstance(number, float) and number < 10 else f"{number:,.0f}"


def size(number: int) -> str:
    """Bytes in the decimal units of disks and downloads: `491 MB`."""
    value, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.1f} {unit}" if value < 10 and unit != "B" else f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    """`3.2 s`, `45 s`, `2:05` or `1:02:05`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def joined(pieces: list[str]) -> str:
    """All pieces in one line of any length."""
    return _SEPARATOR.join(pieces)


def fitted(pieces: list[str], width: int) -> str:
    """The first pieces that fit one line of `width` columns; at least one."""
    line = pieces[0]
    for piece in pieces[1:]:
        if len(line) + len(_SEPARATOR) + len(piece) > width:
            break
        line += _SEPARATOR + piece
    return line


def bar(label: str, done: int, total: int | None, facts: list[str], width: int) -> RenderableType:
    """`label ━━━━━━━━ 45% · facts` in one line; if narrow, the bar shrinks, then the last facts go."""
    if not total:
        return Text(fitted([label, *facts], width), no_wrap=True, overflow="ellipsis")
    percent = f"{min(100, 100 * done // total)}%"
    told = fitted([percent, *facts], width)
    room = width - len(told) - 1
    if room < len(label):
        return Text(told, no_wrap=True, overflow="ellipsis")
    room -= len(label) + 1
    if room < _SHORTEST_BAR:
        return Text(f"{label} {told}", no_wrap=True)
    grid = Table.grid(padding=(0, 1))
    grid.add_row(label, ProgressBar(total, min(done, total), width=min(room, _LONGEST_BAR)), told)
    return grid


def prefill_line(event: Prefill, waited: float, width: int) -> RenderableType:
    """The prefill bar, `waited` seconds after the event arrived."""
    facts = []
    if event.remaining_seconds is not None:
        facts.append(f"ETA {duration(max(0.0, event.remaining_seconds - waited))}")
    speed = rate(event.done - event.reused, event.seconds)
    if speed is not None:
        facts.append(f"{count(speed)} tok/s")
    facts.append(f"{count(event.done)} of {count(event.total)} tokens")
    if event.reused:
        facts.append(f"{count(event.reused)} reused")
    label = "reading sparsely" if event.sparsely else "reading"
    return bar(label, event.done, event.total, facts, width)


def status_line(event: Token, width: int) -> RenderableType:
    """The status line for one answer token."""
    speed = rate(event.index, event.seconds)
    pieces = [] if speed is None else [f"{count(speed)} tok/s"]
    pieces += [
        f"{count(event.attended)} of {count(event.context)} tokens attended",
        f"{count(event.index + 1)} written",
        size(event.memory_bytes),
    ]
    return Text(fitted(pieces, width), style="dim", no_wrap=True, overflow="ellipsis")


def summary(done: Done) -> str:
    """The numbers of tokens read, reused and written, and the speeds."""
    read = done.prompt_tokens - done.reused_tokens
    pieces = [
        f"read {count(read)} tokens, reused {count(done.reused_tokens)} of {count(done.prompt_tokens)}",
        f"answer {count(done.completion_tokens)} tokens"
        + (", cut at --max-tokens" if done.finish_reason == "length" else ""),
        f"first token {duration(done.first_token_seconds)}",
    ]
    for name, speed in (
        ("prefill", rate(read, done.prefill_seconds)),
        ("decode", rate(done.completion_tokens - 1, done.decode_seconds)),
    ):
        if speed is not None:
            pieces.append(f"{name} {count(speed)} tok/s")
    pieces.append(f"memory {size(done.peak_memory_bytes)}")
    return joined(pieces)
