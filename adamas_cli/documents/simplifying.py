"""Removes what a model need not read: terminal codes, overwritten progress, repeated lines, data in URIs.

Each omission within a line is replaced by its count in brackets. Terminal codes are counted elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LEAST_REPEATS = 25  # of a line, before they are replaced by a count
LEAST_DATA = 120  # characters in a URI; fewer are kept
LEAST_STATES = 3  # of a progress line
_TIMES = "\N{MULTIPLICATION SIGN}"
_LONGEST_STATE = 400  # characters
_LONGEST_LINE = 2**22  # characters; longer lines are simplified in pieces of this length

_CODE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # colours and movements
    r"|[\]PX^_][^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\)"  # titles and links
    r"|[ -/]+[0-~]|[0-~])"  # character sets and the rest
    r"|\x1b"
)
_URI = re.compile(r"data:[a-z]+/[\w.+-]+(?:;[\w.+-]+(?:=[\w.+-]*)?)*,")
_BASE64 = re.compile(r"[A-Za-z0-9+/=_%-]*")
_BASE64_LINE = re.compile(
    r"[ \t]*([A-Za-z0-9+/]{40,}={0,2}|[A-Za-z0-9+/]*=?=$|[A-Za-z0-9+/]+={0,2}(?=[\"')>]))"
)
_UNQUOTED = re.compile(r"[^\s\"'<>()]*")
_QUOTED = {'"': re.compile(r'[^"\n]*'), "'": re.compile(r"[^'\n]*")}
_PROGRESS = re.compile(
    r"\d\s?%|\d+\s?/\s?\d+|[=#>.\u2500-\u25ff-]{3,}|\d[\d.,]*\s?[kKMG]?i?B\b|[\u2800-\u28ff]|^\s*[-\\|/] ?"
)
_NUMBERS = re.compile(r"[\W\d_]+")


def simplified(pieces: Iterable[str], *, keep_lines: bool = False) -> Iterator[str]:
    """The text of `pieces` simplified, with `\\n` line ends. keep_lines: keep the number of lines."""
    lines = _Lines(keep_lines)
    held = ""
    for piece in pieces:
        held += piece
        cut = held.rfind("\n") + 1
        if not cut and len(held) < _LONGEST_LINE:
            continue
        cut = cut or len(held)
        if text := "".join(lines.feed(held[:cut])):
            yield text
        held = held[cut:]
    if text := "".join([*lines.feed(held), *lines.end()]):
        yield text


class _Lines:
    """Takes lines and yields simpler ones."""

    def __init__(self, keep_lines: bool) -> None:
        self._keep_lines = keep_lines
        self._repeated = ""  # the last line, which may repeat
        self._times = 0
        self._begun: str | None = None  # a line up to URI data that continues in the next line
        self._data: list[str] = []
        self._ended = False  # whether that line had a line end

    def feed(self, text: str) -> Iterator[str]:
        start = 0
        while start < len(text):
            end = text.find("\n", start) + 1 or len(text)
            yield from self._line(text[start:end])
            start = end

    def end(self) -> Iterator[str]:
        if self._begun is not None:
            yield from self._finished(self._begun + _left_out("".join(self._data)), ended=self._ended)
        yield from self._counted()

    def _line(self, line: str) -> Iterator[str]:
        ended = line.endswith("\n")
        line = line.rstrip("\n").rstrip("\r") if ended else line
        before = ""
        if self._begun is not None:
            found = _BASE64_LINE.match(line)
            if found is not None:
                self._data.append(found[1])
                if found.end() == len(line):
                    self._ended = ended
                    return
            before = self._begun + _left_out("".join(self._data))
            self._begun = None
            if found is None:
                yield from self._finished(before, ended=True)
                before = ""
            else:
                line = line[found.end() :]
        if "\x1b" in line:
            line = _CODE.sub("", line)
        if "\b" in line:
            line = _overstruck(line)
        if "data:" in line:
            line = self._without_data(line)
        if self._begun is not None:
            self._begun = before + self._begun
            self._ended = ended
        else:
            yield from self._finished(before + line, ended=ended)

    def _finished(self, line: str, *, ended: bool) -> Iterator[str]:
        if "\r" in line:
            line = " ".join(_states(line)) if self._keep_lines else "\n".join(_states(line))
        yield from self._whole(line + "\n" * ended)

    def _whole(self, line: str) -> Iterator[str]:
        if self._keep_lines:
            yield line
        elif line == self._repeated:
            self._times += 1
        else:
            yield from self._counted()
            self._repeated, self._times = line, 1

    def _counted(self) -> Iterator[str]:
        line, times = self._repeated, self._times
        self._repeated, self._times = "", 0
        if times >= LEAST_REPEATS and line.strip():
            bare = line.rstrip("\n")
            yield f"{bare} [{_TIMES} {times:,}]{line[len(bare) :]}"
        else:
            yield line * times

    def _without_data(self, line: str) -> str:
        """The line with a count in place of each URI's data, up to one that continues in the next line."""
        done, position = [], 0
        for uri in _URI.finditer(line):
            if uri.start() < position:
                continue
            data = _data_of(line, uri)
            end = uri.end() + len(data)
            goes_on = end == len(line) and ";base64" in uri[0] and not self._keep_lines
            done.append(line[position : uri.end()])
            position = end
            if goes_on:
                self._begun, self._data = "".join(done), [data]
                return ""
            done.append(_left_out(data))
        return "".join([*done, line[position:]])


def _data_of(line: str, uri: re.Match[str]) -> str:
    """The data after the beginning `uri`, up to the closing quote if there is one."""
    quoted = _QUOTED.get(line[uri.start() - 1 : uri.start()])
    if ";base64" in uri[0].lower():
        pattern = _BASE64
    elif quoted is not None:
        pattern = quoted
    else:
        pattern = _UNQUOTED
    found = pattern.match(line, uri.end())
    return found[0] if found else ""


def _left_out(data: str) -> str:
    return data if len(data) < LEAST_DATA else f"[{len(data):,} characters]"


def _overstruck(line: str) -> str:
    """The line without characters that a backspace and another character overwrote."""
    shown: list[str] = []
    for character in line:
        if character != "\b":
            shown.append(character)
        elif shown:
            shown.pop()
    return "".join(shown)


def _states(line: str) -> Iterator[str]:
    """The line's states as a terminal would show them before overwriting them.

    Of progress, only the last state is kept, with the number of earlier ones; other text is split at `\\r`.
    """
    states = line.split("\r")
    run = 0
    for index, state in enumerate(states):
        following = states[index + 1] if index + 1 < len(states) else None
        if following is not None and _is_overwritten(state, following):
            run += 1
            continue
        if run + 1 < LEAST_STATES:
            yield from states[index - run : index]
            if state or index + 1 == len(states) > 1 or index:
                yield state
        else:
            yield f"{state} [after {run:,} earlier states]"
        run = 0


def _is_overwritten(state: str, following: str) -> bool:
    """Whether a state is progress that the following state continues."""
    if len(state) > _LONGEST_STATE or _PROGRESS.search(state) is None:
        return False
    return _subject(state) == _subject(following)


def _subject(state: str) -> str:
    """The first word of a progress line, which is the same in all its states."""
    return next((word for word in _NUMBERS.split(state[:80]) if len(word) > 2), "")
