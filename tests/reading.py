"""Reads files as `adamas ask` does, up to their text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from adamas_cli.documents import Collection, Part, Selection, collect
from adamas_cli.progress import Silent


def found(*sources: str, stdin: bytes = b"", **selection: Any) -> Collection:
    """What the sources hold."""
    chosen = Selection(**({"tree": False} | selection))
    return collect(sources, chosen, stdin=io.BytesIO(stdin), progress=Silent(), keep_converted=False)


def parts_of(name: str, content: bytes) -> list[Part]:
    """The parts of the one document in a file of this name and content."""
    Path(name).write_bytes(content)
    (document,) = found(name).documents
    return list(document.parts())


def text_of(name: str, content: bytes) -> str:
    """The text of the one document in a file of this name and content."""
    return "".join(part.text for part in parts_of(name, content))


def sections_of(name: str, content: bytes) -> list[str]:
    """The sections of the one document in a file of this name and content."""
    return [part.section for part in parts_of(name, content) if part.section is not None]


def note_of(name: str, content: bytes) -> str:
    """The one note about a file of this name and content."""
    Path(name).write_bytes(content)
    (note,) = found(name).note_lines()
    return note
