"""Mail attachments: read by the reader of their format, or named with the reason why not."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from adamas_cli.documents.decoding import HEAD_BYTES, decode, is_binary
from adamas_cli.documents.formats import signs
from adamas_cli.documents.formats.recognize import Format, recognized
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.formats.worker import read
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

MAILS = (Format.MAIL, Format.MBOX, Format.MSG)
DEEPEST = 5  # mails inside mails
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Attachment:
    """A file in a mail."""

    name: str
    media_type: str
    content: bytes

    @property
    def title(self) -> str:
        """For example `report.pdf (application/pdf, 34 KB)`."""
        return f"{self.name} ({self.media_type}, {_size(len(self.content))})"


def listed(attachments: list[Attachment]) -> str:
    """The list at the end of a mail's text; empty without attachments."""
    if not attachments:
        return ""
    return "\nAttachments:\n" + "".join(f"- {attachment.title}\n" for attachment in attachments)


def read_all(attachments: list[Attachment], depth: int) -> Iterator[Part | Remark]:
    """The text of the readable attachments, each after its name; `depth` mails enclose them."""
    for attachment in attachments:
        yield from _read(attachment, depth)


def _read(attachment: Attachment, depth: int) -> Iterator[Part | Remark]:
    name = attachment.name
    head = attachment.content[:HEAD_BYTES]
    kind = recognized(head, name)
    if not attachment.content:
        yield Remark("empty attachments")
        return
    if kind is Format.IMAGE or (kind is None and is_binary(head)):
        what = "pictures" if signs.is_image(head) else f"attached {signs.unread_kind(head, name) or 'binary'}"
        yield Remark(what)
        return
    yield Part(f"\n[attachment {name}]\n", f"attachment {name}")
    if kind is None:
        yield from map(Part, decode([attachment.content]))
        yield Part("\n")
        return
    if kind in MAILS and depth >= DEEPEST:
        yield Remark("mails inside too many others")
        return
    try:
        with _as_file(attachment.content) as path:
            yield from _converted(kind, path, name, depth)
    except MemoryError:
        raise
    except Exception as error:  # libraries raise anything on damaged files; the rest is still read
        why = error.trouble if isinstance(error, UnreadableError) else "damaged"
        yield Part(f"[{name} is {why}]\n")
        yield Remark(f"attachments {why}")


def _converted(kind: Format, path: str, name: str, depth: int) -> Iterator[Part | Remark]:
    options = {"depth": depth + 1} if kind in MAILS else {}
    for part in read(kind, path, **options):
        if isinstance(part, Remark) or part.section is None:
            yield part
        else:
            yield Part(part.text, f"attachment {name}: {part.section}")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A temporary file of the content, in a folder that the reader's parent process deletes.

    Raises UnreadableError if the content is too large.
    """
    if len(content) > MAX_BYTES:
        raise UnreadableError(Trouble.TOO_LARGE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # the process writes nothing else
    try:
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it is closed below
        file.write(content)
        file.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with file:
        yield file.name


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:,.0f} KB" if count < 1e6 else f"{count / 1e6:,.1f} MB"
