"""The attributes that a repository's .gitattributes files assign to its files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from adamas_cli.documents.filtering import file_lines
from adamas_cli.documents.gitignore import PatternError, Rule, parse

_FILE = ".gitattributes"
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(.*)')
_NO = ("false", "0", "no")


@dataclass(frozen=True, slots=True)
class _Line:
    rule: Rule
    values: dict[str, bool | None]  # None: reset to unspecified


class Attributes:
    """The attribute files of the tree at `top`, each read when first needed, for its folder and below.

    As in git, the last matching line of a folder decides, and inner folders override outer ones.
    `below`: the path from `top` to the folder that paths are relative to.
    """

    def __init__(self, top: str, below: str = "") -> None:
        self._top = top
        self._below = below
        own = tuple(filter(None, map(_parsed, self._file(""))))
        self._chains: dict[str, tuple[tuple[int, tuple[_Line, ...]], ...]] = {"": ((0, own[::-1]),)}

    def value(self, path: str, name: str) -> bool | None:
        """Whether the attribute `name` is set for a file (True), unset (False) or unspecified (None)."""
        if self._below:
            path = os.path.join(self._below, path)
        for prefix, lines in self._chain(os.path.dirname(path)):
            for line in lines:
                if name in line.values and _matches(line.rule, path[prefix:]):
                    return line.values[name]
        return None

    def _chain(self, folder: str) -> tuple[tuple[int, tuple[_Line, ...]], ...]:
        """The lines for files in `folder`, highest precedence first, with the length of the prefix to cut."""
        unknown = []
        while folder not in self._chains:
            unknown.append(folder)
            folder = os.path.dirname(folder)
        chain = self._chains[folder]
        for below in reversed(unknown):  # no recursion: paths can be deeper than Python's stack
            found = tuple(filter(None, map(_parsed, self._file(below))))
            if found:
                chain = ((len(below) + bool(below), found[::-1]), *chain)
            self._chains[below] = chain
        return chain

    def _file(self, folder: str) -> list[str]:
        return file_lines(os.path.join(self._top, folder, _FILE))


def _parsed(line: str) -> _Line | None:
    """The rule and the linguist attributes of a line; None if it has none."""
    line = line.strip()
    if quoted := _QUOTED.fullmatch(line):
        pattern, words = re.sub(r"\\(.)", r"\1", quoted[1]), quoted[2].split()
    else:
        pattern, *words = line.split() or [""]
    values: dict[str, bool | None] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name.lstrip("-!").startswith("linguist-"):
            values[name.lstrip("-!")] = (
                None if name[0] == "!" else name[0] != "-" and value.lower() not in _NO
            )
    if not values or pattern.startswith("!") or pattern.endswith("/"):
        return None
    try:
        rule = parse(pattern)
    except PatternError:
        return None
    return _Line(rule, values) if rule is not None else None


def _matches(rule: Rule, path: str) -> bool:
    return rule.regex.fullmatch(path if rule.whole_path else os.path.basename(path)) is not None
