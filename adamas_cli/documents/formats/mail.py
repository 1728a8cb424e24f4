"""Mails, and web pages saved as mails (.mht): their main fields, text and attachments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

from adamas_cli.documents.decoding import decode
from adamas_cli.documents.encodings import codec_of
from adamas_cli.documents.formats import attachment
from adamas_cli.documents.formats.attachment import Attachment
from adamas_cli.documents.formats.markup import label, markdown
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

MAX_BYTES = 256 * 2**20  # a mail is parsed as a whole
_FIELDS = ("From", "To", "Cc", "Bcc", "Reply-To", "Date", "Subject", "Snapshot-Content-Location")
_SIGNATURES = ("application/pgp-signature", "application/pkcs7-signature", "application/x-pkcs7-signature")
_ENCRYPTED = ("application/pgp-encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime")
_FLOWED = re.compile(r"(?<!^--) \n(?![>\n])", re.MULTILINE)
_MOSTLY_ELSEWHERE = 4  # an HTML text this many times longer: the plain text only says that the mail is HTML


def read(path: str, depth: int = 0) -> Iterator[Part | Remark]:
    """A section for the mail, "mail: Its subject", and one for each attachment. Raises UnreadableError."""
    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise UnreadableError(Trouble.TOO_LARGE)
    yield from read_mail(file.read_bytes(), "mail", depth)


def read_mail(content: bytes, name: str, depth: int) -> Iterator[Part | Remark]:
    """The parts of one mail, whose section is called `name: Its subject`. `depth` mails enclose it."""
    mail = message_from_bytes(content, policy=policy.compat32)
    subject = label(_field(mail, "Subject"))
    body, attached, counts = _contents(mail)
    lines = [f"{field}: {value}" for field in _FIELDS if (value := _field(mail, field))]
    head = "\n".join(lines)
    text = f"{head}\n\n{body.strip()}\n{attachment.listed(attached)}\n"
    yield Part(text, f"{name}: {subject}" if subject else name)
    if others := len({field.lower() for field in mail} - {field.lower() for field in _FIELDS}):
        counts.append(Remark("technical fields of mails", others))
    yield from counts
    yield from attachment.read_all(attached, depth)


def _contents(mail: Message) -> tuple[str, list[Attachment], list[Remark]]:
    """The text, the attachments, and counts of everything else."""
    bodies: list[str] = []
    attached: list[Attachment] = []
    counts: list[Remark] = []
    _gather(mail, bodies, attached, counts)
    return "\n\n".join(filter(None, bodies)), attached, counts


def _gather(part: Message, bodies: list[str], attached: list[Attachment], counts: list[Remark]) -> None:
    media_type = part.get_content_type()
    children = part.get_payload()
    if media_type == "message/rfc822" and isinstance(children, list) and children:
        inner = children[0]
        if isinstance(inner, Message):
            name = _name(part) or f"{label(_field(inner, 'Subject')) or 'mail'}.eml"
            attached.append(Attachment(name, media_type, inner.as_bytes()))
    elif isinstance(children, list):
        parts = [child for child in children if isinstance(child, Message)]
        if media_type == "multipart/alternative":
            _gather_one_of(parts, bodies, attached, counts)
        elif media_type == "multipart/related":
            _gather_related(part, parts, bodies, attached, counts)
        else:
            for child in parts:
                _gather(child, bodies, attached, counts)
    elif media_type in _SIGNATURES:
        counts.append(Remark("signatures"))
    elif media_type in _ENCRYPTED:
        counts.append(Remark("encrypted parts of mails"))
    elif _is_text(part):
        bodies.append(_body(part))
    else:
        number = len(attached) + 1
        extension = {"text/plain": ".txt", "text/html": ".html"}.get(media_type, "")
        attached.append(Attachment(_name(part) or f"part {number}{extension}", media_type, _bytes(part)))


def _gather_one_of(
    parts: list[Message], bodies: list[str], attached: list[Attachment], counts: list[Remark]
) -> None:
    """The same text in several forms: plain text if it says as much, else the page. The other forms are
    searched only for attachments.
    """
    forms: list[list[str]] = []
    for part in parts:
        own: list[str] = []
        _gather(part, own, attached, counts)
        forms.append(own)
    texts = ["\n\n".join(form).strip() for form in forms]
    plain = [n for n, part in enumerate(parts) if part.get_content_type() == "text/plain" and texts[n]]
    longest = max(map(len, texts), default=0)
    for n in plain:
        if len(texts[n]) * _MOSTLY_ELSEWHERE >= longest:
            bodies.append(texts[n])
            return
    bodies += [text for text in texts if len(text) == longest][-1:]


def _gather_related(
    whole: Message,
    parts: list[Message],
    bodies: list[str],
    attached: list[Attachment],
    counts: list[Remark],
) -> None:
    """A page and its resources: pictures and styles are not text, pages in frames are."""
    start = whole.get_param("start")
    roots = [part for part in parts if part.get("Content-ID") == start] or parts[:1]
    for root in roots[:1]:
        _gather(root, bodies, attached, counts)
    for part in parts:
        if part in roots[:1]:
            continue
        media_type = part.get_content_type()
        if part.get_content_disposition() == "attachment" or media_type.startswith(
            ("multipart/", "message/")
        ):
            _gather(part, bodies, attached, counts)
        elif media_type in ("text/html", "text/plain", "application/xhtml+xml"):
            bodies.append(_body(part))
        elif media_type.startswith("image/"):
            counts.append(Remark("pictures"))
        elif media_type in (
            "text/css",
            "text/javascript",
            "application/javascript",
            "application/x-javascript",
        ):
            counts.append(Remark("styles and scripts"))
        else:
            _gather(part, bodies, attached, counts)


def _is_text(part: Message) -> bool:
    """Whether the part is shown with the mail; invitations (text/calendar) are."""
    if part.get_content_disposition() == "attachment":
        return False
    shown = part.get_content_maintype() == "text" or part.get_content_type() == "application/xhtml+xml"
    return shown and not (part.get_filename() and part.get_content_type() not in ("text/plain", "text/html"))


def _body(part: Message) -> str:
    if part.get_content_type() in ("text/html", "application/xhtml+xml"):
        return markdown(_text(part))
    text = _text(part)
    return _FLOWED.sub(" ", text) if part.get_param("format") == "flowed" else text


def _text(part: Message) -> str:
    """A part's characters, by the declared encoding, or by a guess from its bytes if that is missing."""
    content = _bytes(part)
    declared = str(part.get_content_charset() or "").strip().lower()
    encoding = "utf-8" if declared in ("us-ascii", "ascii") else codec_of(declared)
    try:
        if encoding == "utf-8":
            content.decode("utf-8")
        if encoding is not None:
            return content.decode(encoding, "replace").replace("\r\n", "\n")
    except UnicodeError:
        pass
    return "".join(decode([content]))


def _bytes(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _name(part: Message) -> str:
    """The file's name, on one line and without any folders in it."""
    try:
        name = part.get_filename() or part.get_param("name") or ""
        name = str(make_header(decode_header(str(name))))
    except (LookupError, UnicodeError, ValueError):
        name = ""
    return label(re.split(r"[/\\]", name)[-1])


def _field(mail: Message, name: str) -> str:
    """The values of a field, decoded, on one line."""
    values = []
    for text in (str(value) for field, value in mail.raw_items() if field.lower() == name.lower()):
        if not text.isascii():  # bytes without a declaration
            text = "".join(decode([text.encode("utf-8", "surrogateescape")]))
        with suppress(LookupError, UnicodeError, ValueError):
            text = str(make_header(decode_header(text)))
        values.append(" ".join(text.split()))
    return ", ".join(filter(None, values))
