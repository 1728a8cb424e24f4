"""LaTeX documents with the files that they include."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from adamas_cli.documents.decoding import HEAD_BYTES, decode, find_encoding, is_binary
from adamas_cli.documents.document import File, shown_path
from adamas_cli.documents.listing import work_tree
from adamas_cli.documents.parts import Part

SUFFIXES = (".tex", ".ltx", ".latex")
MAX_FILES = 1000
MAX_BYTES = 64 * 2**20  # of all files together
_PIECE = 2**18


@dataclass
class Expanded:
    """The text of a LaTeX document with every included file in its place.

    `taken`: the real paths of the included files. `missing`: files not found. `outside`: files outside the
    document's folder and repository, which are not read. `beyond`: files over the limits.
    """

    taken: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    characters: int = 0
    _parts: list[Part] = field(default_factory=list)
    _size: int = 0
    _encoding: str | None = None

    @classmethod
    def of(cls, path: str, encoding: str | None = None) -> Expanded:
        """Read the document at `path`, which holds text. encoding: the codec that the user names.

        Raises OSError, and AdamasError if the file changes.
        """
        expanded = cls(_encoding=encoding)
        folder = os.path.dirname(path)
        real = os.path.realpath(folder or os.curdir)
        expanded._expand(path, path, folder, work_tree(real) or real, (os.path.realpath(path),))
        return expanded

    def parts(self) -> Iterator[Part]:
        """A section for each passage of a file, named after the file."""
        return iter(self._parts)

    def notes(self, name: str) -> Iterator[str]:
        """The files that were not included."""
        reasons = {
            "missing": self.missing,
            "outside of its folder and not read": self.outside,
            f"beyond its first {MAX_FILES:,} files or {MAX_BYTES:,} bytes": self.beyond,
        }
        for why, files in reasons.items():
            if files:
                named = ", ".join(files[:3]) + (" …" if len(files) > 3 else "")
                yield f"{name}: {len(files):,} files that it takes in are {why}: {named}"

    def _expand(self, path: str, name: str, root: str, top: str, around: tuple[str, ...]) -> None:
        """Add a file. root: the folder that its names are relative to. around: the files that include it."""
        text = self._read(path)
        self._size += len(text)
        at = 0
        for found in _inputs().finditer(text):
            target = found["code"] or found["below"] or found["braced"] or found["bare"]
            if target is None:
                continue  # a comment
            folder = root
            if found["folder"] is not None:
                relative = found[0].startswith("\\sub")
                folder = os.path.join(os.path.dirname(path) if relative else root, found["folder"].strip())
            place = self._found(target.strip(), folder, path, top, around, code=found["code"] is not None)
            if place is None:
                continue
            self._add(text[at : found.start()], name)
            at = found.end()
            self.taken.add(os.path.realpath(place))
            inner = shown_path(place)
            if found["code"] is not None:
                code = self._read(place)
                self._size += len(code)
                self._add(code, inner)
            else:
                below = folder if found["folder"] is not None else root
                self._expand(place, inner, below, top, (*around, os.path.realpath(place)))
            at += text.startswith("\n", at)
        self._add(text[at:], name)

    def _read(self, path: str) -> str:
        blocks = list(File(path, os.stat(path).st_size).blocks())
        return "".join(decode(blocks, find_encoding(blocks, self._encoding)))

    def _found(
        self, target: str, folder: str, path: str, top: str, around: tuple[str, ...], *, code: bool
    ) -> str | None:
        """The file that is meant, if it should be read here."""
        folders = dict.fromkeys([folder, os.path.dirname(path)])
        suffixes = ("",) if code else (".tex", "")
        for place in (os.path.join(base, target + suffix) for base in folders for suffix in suffixes):
            real = os.path.realpath(place)
            if not _is_text(real):
                continue
            if os.path.commonpath([top, real]) != top:
                self.outside.append(target)
                return None
            if real in around:
                return None  # an endless inclusion
            if len(self.taken) >= MAX_FILES or self._size + os.path.getsize(real) > MAX_BYTES:
                self.beyond.append(target)
                return None
            return place
        self.missing.append(target)
        return None

    def _add(self, text: str, name: str | None) -> None:
        """Add a passage of a file, starting a new line."""
        if not text:
            return
        if name is not None and self._parts and not self._parts[-1].text.endswith("\n"):
            self._append(Part("\n"))
        for start in range(0, len(text), _PIECE):
            self._append(Part(text[start : start + _PIECE], None if start else name))

    def _append(self, part: Part) -> None:
        self.characters += len(part.text)
        self._parts.append(part)


def takes_in(path: str) -> bool:
    """Whether the file at `path` is LaTeX that includes other files."""
    if not path.lower().endswith(SUFFIXES) or not _is_text(path):
        return False
    with open(path, "rb") as file:
        text = file.read(MAX_BYTES).decode("latin-1")
    return any(found.lastgroup for found in _inputs().finditer(text))


def _is_text(path: str) -> bool:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return False
        with open(path, "rb") as file:
            return not is_binary(file.read(HEAD_BYTES))
    except (OSError, ValueError):
        return False


@cache
def _inputs() -> re.Pattern[str]:
    """Matches an inclusion or a comment; compiled only when there is LaTeX."""
    comment = r"(?<!\\)(?:\\\\)*%.*"
    return re.compile(
        comment
        + r"|\\(?:lstinputlisting|verbatiminput|VerbatimInput|inputminted(?:\[[^\]]*\])?\{[^{}]*\})\*?"
        r"(?:\[[^\]]*\])?\{(?P<code>[^{}\\#]+)\}"
        r"|\\(?:sub)?(?:import|inputfrom|includefrom)\*?\{(?P<folder>[^{}\\#]*)\}\{(?P<below>[^{}\\#]+)\}"
        r"|\\(?:input|include|subfile|subfileinclude)(?:\{(?P<braced>[^{}\\#]+)\}|[ \t]+(?P<bare>[\w./-]+))"
    )
