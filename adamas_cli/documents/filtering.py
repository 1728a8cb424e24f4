"""Which files below a folder are documents: hidden files, ignore files, the user's patterns.

Paths in this module are relative, with `/` and without a trailing one.
"""

from __future__ import annotations

import codecs
import os
import stat
from dataclasses import dataclass

from adamas_cli.documents.gitignore import PatternError, Rules
from adamas_cli.documents.secrets import by_name, is_template
from adamas_cli.errors import UsageError

DEFAULT_MAX_FILE_SIZE = 10 * 1024 * 1024
# Hidden names that belong to a project's text, whether or not git tracks them.
_SHOWN = frozenset(
    [
        ".buildkite",
        ".circleci",
        ".devcontainer",
        ".forgejo",
        ".gitea",
        ".github",
        ".gitlab",
        ".gitlab-ci.yml",
        ".travis.yml",
    ]
)


@dataclass(frozen=True)
class Selection:
    """What a walk takes. Files that the user names are always read.

    `include` and `exclude` are gitignore patterns, relative to each named folder: a file is taken if it (or a
    folder above it) matches `include`, if that is given, and does not match `exclude`. `gitignore=False`
    ignores the ignore files. `hidden` takes hidden files that git does not track, `secrets` those that hold
    secrets. `max_file_size` is in bytes, None for no limit. `generated` also takes generated, vendored,
    minified and lock files. `tree` puts the names of each folder's files before their texts, `line_numbers` a
    number before each line. `whole_pages` also reads menus and comments of web pages. `ocr` reads pictures of
    pages: "auto" those of a PDF and named pictures, "always" everything in PDFs and pictures, "never" none;
    `ocr_sample` reads only one page of each document, as an estimate. `encoding` is the codec of named
    files, and of non-Unicode files in folders; None detects it. `text` reads every file as text.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    gitignore: bool = True
    hidden: bool = False
    secrets: bool = False
    max_file_size: int | None = DEFAULT_MAX_FILE_SIZE
    generated: bool = False
    tree: bool = True
    line_numbers: bool = False
    whole_pages: bool = False
    ocr: str = "auto"
    ocr_language: str = "auto"
    ocr_sample: bool = False
    encoding: str | None = None
    text: bool = False


class Choice:
    """The user's part of the decision below a named folder: `include`, `exclude` and `hidden`."""

    def __init__(self, selection: Selection) -> None:
        """Raises UsageError for a pattern that is not gitignore syntax."""
        self._include = _user_rules("`include`", selection.include) if selection.include else None
        self._exclude = _user_rules("`exclude`", selection.exclude)
        self._hidden = selection.hidden

    def takes(self, path: str, *, is_folder: bool) -> bool:
        """Whether to take a file or enter a folder; the folders above it have been taken."""
        if os.path.basename(path) == ".git" or self._exclude.verdict(path, is_folder=is_folder):
            return False
        return is_folder or self._include is None or _matches(self._include, path, is_folder=False)

    def hides(self, path: str, *, is_folder: bool) -> bool:
        """Whether an untracked entry is skipped because its name, or a folder name above it, starts with a
        dot. Build configuration is read anyway, and secrets are counted as secrets.
        """
        if self._hidden or not (path.startswith(".") or "/." in path):
            return False
        *folders, name = path.split("/")
        if is_folder:
            folders.append(name)
        elif name.startswith(".") and name not in _SHOWN and not is_template(name) and by_name(path) is None:
            return True
        return any(folder.startswith(".") and folder not in _SHOWN for folder in folders)


class IgnoreRules:
    """The ignore files of the tree at `top`, each read when first needed and valid for its folder and below.

    As in git, the last matching rule of a folder decides, inner folders override outer ones, and nothing
    below an ignored folder can be re-included.
    """

    def __init__(self, top: str, names: tuple[str, ...]) -> None:
        self._top = top
        self._names = names
        self._chains: dict[str, tuple[tuple[int, Rules], ...]] = {}

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """Whether `path` is ignored, given that the folders above it are not."""
        for prefix, rules in self._chain(os.path.dirname(path)):
            verdict = rules.verdict(path[prefix:], is_folder=is_folder)
            if verdict is not None:
                return verdict
        return False

    def ignores_folder(self, folder: str) -> bool:
        """Whether `folder` or a folder above it is ignored."""
        return bool(folder) and (
            self.ignores_folder(os.path.dirname(folder)) or self.ignores(folder, is_folder=True)
        )

    def _chain(self, folder: str) -> tuple[tuple[int, Rules], ...]:
        """The rules in force in `folder`, innermost first, each with the length of the path prefix to cut."""
        if folder not in self._chains:
            outer = self._chain(os.path.dirname(folder)) if folder else ()
            lines = [
                line for name in self._names for line in file_lines(os.path.join(self._top, folder, name))
            ]
            own = ((len(folder) + bool(folder), Rules.from_lines(lines)),) if lines else ()
            self._chains[folder] = own + outer
        return self._chains[folder]


class Filter:
    """Both parts of the decision for the entries below one folder, cached for its subfolders.

    `below_named` and `below_top` are its paths from the folder that the user named and from the rules' top.
    """

    def __init__(
        self, choice: Choice, rules: IgnoreRules, below_named: str = "", below_top: str = ""
    ) -> None:
        self._choice = choice
        self._rules = rules
        self._below_named = below_named
        self._below_top = below_top
        self._folders = {"": True}

    def keeps_file(self, path: str) -> bool:
        """Whether the file at `path` is a document, judging by its name."""
        return self.keeps_folder(os.path.dirname(path)) and self._keeps(path, is_folder=False)

    def keeps_folder(self, path: str) -> bool:
        """Whether to enter the folder at `path`: neither it nor a folder above it is excluded."""
        unknown = []
        while path not in self._folders:
            unknown.append(path)
            path = os.path.dirname(path)
        kept = self._folders[path]
        for folder in reversed(unknown):  # no recursion: paths can be deeper than Python's stack
            kept = kept and self._keeps(folder, is_folder=True)
            self._folders[folder] = kept
        return kept

    def _keeps(self, path: str, *, is_folder: bool) -> bool:
        if not self._choice.takes(os.path.join(self._below_named, path), is_folder=is_folder):
            return False
        return not self._rules.ignores(os.path.join(self._below_top, path), is_folder=is_folder)


def _user_rules(flag: str, patterns: tuple[str, ...]) -> Rules:
    try:
        return Rules.from_lines(patterns, strict=True)
    except PatternError as error:
        raise UsageError(f"{flag} needs a pattern in gitignore syntax, not {str(error)!r}.") from error


def _matches(rules: Rules, path: str, *, is_folder: bool) -> bool:
    """Whether the innermost verdict about `path` or a folder above it is a match."""
    while path:
        verdict = rules.verdict(path, is_folder=is_folder)
        if verdict is not None:
            return verdict
        path, is_folder = os.path.dirname(path), True
    return False


def file_lines(path: str) -> list[str]:
    """The lines of a rules file; none if it is missing, unreadable, or (as in git) not a regular file."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return []
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return []
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [os.fsdecode(line.removesuffix(b"\r")) for line in lines]
