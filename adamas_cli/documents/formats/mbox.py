"""Mailboxes: a sequence of mails, each after a line that begins with `From `.

The standard library's `mailbox.mbox` takes every such line for a new mail, even in the middle of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from adamas_cli.documents.formats.mail import MAX_BYTES, read_mail
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

_POSTMARK = re.compile(rb"From \S+ .*\d\d:\d\d.*\d{4}")
_QUOTED = re.compile(rb"^>(>*From )", re.MULTILINE)


def read(path: str, depth: int = 0) -> Iterator[Part | Remark]:
    """A section for each mail, "mail 3: Its subject", and for each attachment. Raises UnreadableError."""
    for number, content in enumerate(_mails(path), start=1):
        if number > 1:
            yield Part("\n")
        yield from read_mail(content, f"mail {number}", depth)


def _mails(path: str) -> Iterator[bytes]:
    lines: list[bytes] = []
    size = 0
    empty = True  # the previous line
    with open(path, "rb") as stream:
        for line in stream:
            if empty and _POSTMARK.match(line):
                if lines:
                    yield _whole(lines)
                lines, size = [], 0
                continue
            size += len(line)
            if size > MAX_BYTES:
                raise UnreadableError(Trouble.TOO_LARGE)
            lines.append(line)
            empty = not line.strip()
    if lines:
        yield _whole(lines)


def _whole(lines: list[bytes]) -> bytes:
    return _QUOTED.sub(rb"\1", b"".join(lines))
