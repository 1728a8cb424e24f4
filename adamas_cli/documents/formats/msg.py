"""Outlook mails (.msg), through the extra `office`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from adamas_cli.documents.formats import attachment
from adamas_cli.documents.formats.attachment import Attachment
from adamas_cli.documents.formats.markup import label, markdown
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

_DISPLAYED = (("To", 0x0E04), ("Cc", 0x0E03), ("Bcc", 0x0E02))  # MAPI properties of the display names
_RTF_BODY = 0x1009
_INSIDE = 5  # attachment method of an embedded mail


def read(path: str, depth: int = 0) -> Iterator[Part | Remark]:
    """A section for the mail, "mail: Its subject", and one for each attachment. Raises UnreadableError, and
    whatever olefile and oxmsg raise for damaged files.
    """
    try:
        from oxmsg import Message
    except ImportError as error:
        raise UnreadableError(Trouble.NO_OFFICE) from error
    mail = Message.load(path)
    subject = label(mail.subject or "")
    fields = {"From": mail.sender, "Subject": mail.subject}
    for name, number in _DISPLAYED:
        fields[name] = mail.properties.str_prop_value(number)
    if mail.recipients and not fields["To"]:
        fields["To"] = ", ".join(f"{one.name} <{one.email_address}>" for one in mail.recipients)
    if mail.sent_date is not None and mail.sent_date.year > 1601:  # MAPI's epoch, which means no date
        fields["Date"] = mail.sent_date.isoformat()
    names = ("From", "To", "Cc", "Bcc", "Date", "Subject")
    head = "\n".join(f"{name}: {' '.join(str(fields[name]).split())}" for name in names if fields.get(name))
    inside = [one for one in mail.attachments if one.properties.int_prop_value(0x3705) == _INSIDE]
    attached = [
        Attachment(
            label(re.split(r"[/\\]", one.file_name or "")[-1]) or f"part {number}",
            one.mime_type or "of no declared type",
            one.file_bytes or b"",
        )
        for number, one in enumerate(mail.attachments, start=1)
        if one not in inside
    ]
    body = _body(mail)
    yield Part(
        f"{head}\n\n{body.strip()}\n{attachment.listed(attached)}\n",
        f"mail: {subject}" if subject else "mail",
    )
    if not body and mail.properties.binary_prop_value(_RTF_BODY):
        yield Remark("bodies in compressed RTF alone")
    if inside:
        yield Remark("mails inside an Outlook mail", len(inside))
    yield from attachment.read_all(attached, depth)


def _body(mail: Any) -> str:
    """The plain text, or the HTML body if there is none."""
    plain = (mail.body or "").replace("\r\n", "\n")
    return plain if plain.strip() else markdown(mail.html_body or "")
