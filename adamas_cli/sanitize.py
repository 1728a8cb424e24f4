"""Text that is safe for a terminal: without escape codes and control characters."""

from __future__ import annotations

import re

# ECMA-48: CSI (colours, cursor), OSC (titles, links, clipboard) and other strings, two-character escapes.
_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONGEST_ESCAPE = 4096  # an unfinished code is held back for at most this many characters


def plain(text: str) -> str:
    """`text` without escape codes and without control characters other than tab and line feed."""
    return _CONTROL.sub("", _ESCAPE.sub("", text))


def one_line(text: str) -> str:
    """`plain(text)` with tabs and line feeds as spaces, for file names and labels."""
    return plain(text).replace("\n", " ").replace("\t", " ")


class Sanitizer:
    """`plain` for text that arrives in pieces, which may end inside an escape code."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The part of the text that can be printed now."""
        if not self._held and text.isprintable():
            return text
        text = _ESCAPE.sub("", self._held + text)
        start = re.search(r"[\x1b\x9b\x9d\x90\x98\x9e\x9f]", text)
        cut = len(text) if start is None or len(text) - start.start() > _LONGEST_ESCAPE else start.start()
        self._held = text[cut:]
        return _CONTROL.sub("", text[:cut])

    def flush(self) -> str:
        """The held-back text, at the end."""
        held, self._held = self._held, ""
        return plain(held)
