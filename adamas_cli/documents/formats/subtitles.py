"""Subtitles (.srt, .vtt) as text with times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from adamas_cli.documents.decoding import decode
from adamas_cli.documents.encodings import Encoding
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

MAX_BYTES = 32 * 2**20
_SECTION_MILLISECONDS = 5 * 60 * 1000
_SPEAKER = re.compile(r"<v(?:\.[^ \t>]*)?[ \t]+([^>]+)>")
_TAGS = re.compile(r"</?[a-zA-Z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")
_COMMENT = re.compile(r"^(?:NOTE|STYLE|REGION)(?:[ \t].*)?$(?:\n(?!\n).*)*", re.MULTILINE)


def read(path: str, encoding: str | None = None) -> Iterator[Part | Remark]:
    """A line for each cue, `[00:01:02] What is said.`, and a section for every five minutes, "from 00:05:00".
    Text repeated from the previous cue, as in rolling captions, appears once. encoding: the codec.
    Raises UnreadableError.
    """
    import pysubs2
    from pysubs2.time import ms_to_str

    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise UnreadableError(Trouble.TOO_LARGE)
    known = Encoding(encoding) if encoding else None
    text = "".join(decode([file.read_bytes()], known)).removeprefix("\ufeff")
    is_vtt = text.startswith("WEBVTT")
    if is_vtt:
        text, comments = _COMMENT.subn("", text)
        if comments:
            yield Remark("comments and styles", comments)
    cues = pysubs2.SSAFile.from_string(text, format_="vtt" if is_vtt else "srt", keep_unknown_html_tags=True)
    before: list[str] = []
    section: int | None = None
    for cue in cues:
        lines = _lines(cue.text)
        new = lines[_overlap(before, lines) :]
        before = lines
        if not new:
            continue
        at = ms_to_str(cue.start)
        part = cue.start // _SECTION_MILLISECONDS
        named = None if part == section else f"from {ms_to_str(part * _SECTION_MILLISECONDS)}"
        section = part
        yield Part(f"[{at}] {' '.join(new)}\n", named)


def _lines(text: str) -> list[str]:
    text = _SPEAKER.sub(r"\1: ", text.replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " "))
    plain = _TAGS.sub("", text)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", " "), ("&amp;", "&")):
        plain = plain.replace(entity, character)
    return [line for line in (" ".join(line.split()) for line in plain.split("\n")) if line]


def _overlap(before: list[str], lines: list[str]) -> int:
    """How many of the first lines are the last lines of the previous cue."""
    return next((n for n in range(len(lines), 0, -1) if before[-n:] == lines[:n]), 0)
