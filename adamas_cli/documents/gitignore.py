"""The rules of one .gitignore file, matched as git matches them.

A rule applies to the path that it matches, never to what is below it: a walk does not enter an ignored
folder. (pathspec's rules match below a folder too, so it reads `a` then `!/a` differently from git.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_POSIX_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": " \\t-\\r",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
_WILDCARD = re.compile(r"[*?\[\\]")


class PatternError(ValueError):
    """A pattern that git drops because it can match nothing, such as one with an open bracket."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line: what it matches, and whether it ignores or re-includes that."""

    regex: re.Pattern[str]
    ignores: bool
    folders_only: bool
    whole_path: bool  # otherwise only the name


class Rules:
    """The rules of one file, for paths relative to its folder, with `/`."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._last_first = tuple(rules)[::-1]

    @classmethod
    def from_lines(cls, lines: Iterable[str], *, strict: bool = False) -> Rules:
        """Rules without comments, blank lines and invalid patterns; if `strict`, those raise PatternError."""
        rules = []
        for line in lines:
            try:
                rule = parse(line)
            except PatternError:
                if strict:
                    raise
                continue
            if rule is not None:
                rules.append(rule)
        return cls(rules)

    def verdict(self, path: str, *, is_folder: bool) -> bool | None:
        """The last matching rule: ignore (True) or not (False); None if no rule matches."""
        name = path.rpartition("/")[2]
        for rule in self._last_first:
            if rule.folders_only and not is_folder:
                continue
            if rule.regex.fullmatch(path if rule.whole_path else name):
                return rule.ignores
        return None


def parse(line: str) -> Rule | None:
    """The rule of a line without its line end; None for a comment or a blank line. Raises PatternError."""
    if line.startswith("#"):
        return None
    pattern = _without_trailing_spaces(line)
    if not pattern:
        return None
    ignores = not pattern.startswith("!")
    pattern = pattern.removeprefix("!")
    folders_only = pattern.endswith("/")
    pattern = pattern.removesuffix("/")
    whole_path = "/" in pattern
    pattern = pattern.removeprefix("/")
    if not pattern:
        raise PatternError(line)
    return Rule(re.compile(_regex(pattern), re.DOTALL), ignores, folders_only, whole_path)


def _without_trailing_spaces(line: str) -> str:
    """`line` without trailing spaces, except the first if a backslash escapes it."""
    stripped = line.rstrip(" ")
    backslashes = len(stripped) - len(stripped.rstrip("\\"))
    return line[: len(stripped) + 1] if backslashes % 2 else stripped


def _regex(pattern: str) -> str:
    """The regular expression for a whole path; if `pattern` has no slash, it also matches a name."""
    # Git compares the part before the first wildcard separately, so `**` after it acts as at the start.
    literal = _WILDCARD.search(pattern)
    start = at = literal.start() if literal else len(pattern)
    parts = [re.escape(pattern[:start])]
    while at < len(pattern):
        character = pattern[at]
        if character == "*":
            end = at + len(pattern[at:]) - len(pattern[at:].lstrip("*"))
            alone = at == start or pattern[at - 1] == "/"
            after = pattern[end : end + 2]
            if end - at == 1 or not (alone and (not after or after[0] == "/" or after == "\\/")):
                parts.append("[^/]*")
            elif after.startswith("/"):
                parts.append("(?:.*/)?")
                end += 1
            else:
                parts.append(".*")
            at = end
        elif character == "?":
            parts.append("[^/]")
            at += 1
        elif character == "[":
            set_regex, at = _set(pattern, at + 1)
            parts.append(set_regex)
        else:
            at += character == "\\"
            if at == len(pattern):
                raise PatternError(pattern)
            parts.append(re.escape(pattern[at]))
            at += 1
    return "".join(parts)


def _set(pattern: str, at: int) -> tuple[str, int]:
    """The regular expression for the bracket set whose inside begins at `at`, and the index after it."""
    negated = pattern[at : at + 1] in ("!", "^")
    at += negated
    members: list[str] = []
    previous = ""  # the character that may begin a range
    first = True
    while first or pattern[at : at + 1] != "]":
        first = False
        named = re.compile(r"\[:([^\]]*):\]").match(pattern, at)
        if named:
            if named[1] not in _POSIX_CLASSES:
                raise PatternError(pattern)
            members.append(_POSIX_CLASSES[named[1]])
            previous, at = "", named.end()
        elif pattern[at : at + 1] == "-" and previous and pattern[at + 1 : at + 2] not in ("", "]"):
            end, at = _set_character(pattern, at + 1)
            if previous <= end:
                members.append(f"{re.escape(previous)}-{re.escape(end)}")
            previous = ""
        else:
            previous, at = _set_character(pattern, at)
            members.append(re.escape(previous))
    if negated:
        return f"[^/{''.join(members)}]", at + 1
    return (f"(?!/)[{''.join(members)}]" if members else "(?!)"), at + 1


def _set_character(pattern: str, at: int) -> tuple[str, int]:
    """The character at `at`, unescaped, and the index of the next one."""
    at += pattern[at : at + 1] == "\\"
    if at >= len(pattern):
        raise PatternError(pattern)
    return pattern[at], at + 1
