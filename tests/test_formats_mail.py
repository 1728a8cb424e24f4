"""Mails, mailboxes, saved pages and Outlook's mails: fields, text and attachments."""

from __future__ import annotations

import gzip
import sys
from email.message import EmailMessage
from pathlib import Path

import pytest
from document_files import docx, encrypted_pdf, pdf
from mail_files import mail, outlook
from reading import found, note_of, parts_of, sections_of, text_of

from adamas_cli.documents.formats.recognize import Format, recognized
from adamas_cli.errors import NothingReadableError

FIELDS = b"From: a@example.org\nTo: b@example.org\nSubject: %s\nDate: Mon, 1 Jun 2026 10:00:00 +0000\n"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def raw(fields: bytes, body: bytes, subject: bytes = b"Hello") -> bytes:
    """A mail with these bytes."""
    return FIELDS % subject + fields + b"\n" + body


def test_fields_and_text_of_a_mail() -> None:
    (part,) = parts_of("a.eml", mail().as_bytes())
    assert part.section == "mail: Größe und Preis"
    assert part.text.startswith(
        "From: Ada <ada@example.org>\nTo: Bob <bob@example.org>\nDate: Mon, 01 Jun 2026 10:00:00 +0000\n"
        "Subject: Größe und Preis\n\nSee you at nine.\n"
    )


@pytest.mark.parametrize(
    ("fields", "body", "text"),
    [
        (b"Content-Transfer-Encoding: quoted-printable\nContent-Type: text/plain; charset=utf-8\n",
         b"Gr=C3=B6=\n=C3=9Fe", "Größe"),
        (b"Content-Transfer-Encoding: base64\nContent-Type: text/plain; charset=koi8-r\n", b"8NLJ18XU",
         "Привет"),
        (b"Content-Type: text/plain; charset=iso-8859-1\n", b"\x93quoted\x94", "“quoted”"),
        (b"Content-Type: text/plain; charset=x-unknown\n", "Größe und Maß".encode(), "Größe und Maß"),
        (b"Content-Type: text/plain\n", "Größe und Maß".encode("latin-1"), "Größe und Maß"),
        (b"Content-Type: text/plain; format=flowed\n", b"one line \nof text\n-- \nAda",
         "one line of text\n-- \nAda"),
        (b"Content-Type: text/html; charset=utf-8\n", "<style>p{}</style><p>Größe: 42 m²</p>".encode(),
         "Größe: 42 m²"),
    ],
)  # fmt: skip
def test_bodies_are_decoded(fields: bytes, body: bytes, text: str) -> None:
    read = text_of("a.eml", raw(b"MIME-Version: 1.0\n" + fields, body))
    assert text in read
    assert "p{}" not in read


def test_encoded_and_raw_fields() -> None:
    encoded = raw(b"", b"x", subject=b"=?iso-8859-1?Q?Gr=F6=DFe?= =?utf-8?B?IOKCrA==?=")
    assert sections_of("a.eml", encoded) == ["mail: Größe €"]
    assert sections_of("a.eml", raw(b"", b"x", subject="Größe".encode())) == ["mail: Größe"]
    assert sections_of("a.eml", raw(b"", b"x", subject=b"=?x-none?Q?a=F6?=")) != []


def test_of_two_forms_the_plain_one_is_read_unless_it_says_less() -> None:
    both = text_of("a.eml", mail("Nine o'clock.", page="<p>Nine <b>o'clock</b>.</p>").as_bytes())
    assert both.count("o'clock") == 1
    assert "**" not in both
    long = "<p>" + "The contract ends in March. " * 10 + "</p>"
    assert "contract" in text_of("b.eml", mail("Your program shows no HTML.", page=long).as_bytes())


def test_attachments_are_listed_and_read() -> None:
    attachments = [
        ("bericht ü.pdf", pdf(["in the report"])),
        ("brief.docx", docx([("Heading1", "Greetings"), ("", "in the letter")])),
        ("zahlen.csv", b"a,b\n1,2\n"),
        ("../../p.png", PNG),
        ("locked.pdf", encrypted_pdf()),
        ("x.bin", bytes(300)),
    ]
    inner = mail("in the inner mail", Subject="Inner")
    content = mail(attachments=attachments, mails=[inner]).as_bytes()
    text = text_of("a.eml", content)
    for expected in (
        "in the report",
        "in the letter",
        "a,b\n1,2",
        "in the inner mail",
        "[locked.pdf is encrypted]",
    ):
        assert expected in text
    assert "- bericht ü.pdf (application/octet-stream, " in text
    assert "- p.png (application/octet-stream, 108 bytes)" in text
    sections = sections_of("a.eml", content)
    assert "attachment bericht ü.pdf: page 1" in sections
    assert "attachment brief.docx: Greetings" in sections
    assert "attachment Inner.eml: mail: Inner" in sections
    assert note_of("a.eml", content) == (
        "a.eml: left out: technical fields of mails (7), pictures (1), attachments encrypted (1), "
        "attached binary (1)"
    )


def test_mails_inside_each_other_end_somewhere() -> None:
    message = mail("the innermost")
    for _ in range(12):
        message = mail("around", mails=[message])
    assert "mails inside too many others (1)" in note_of("a.eml", message.as_bytes())


def test_encrypted_and_signed_parts_are_counted() -> None:
    body = (
        b"--b\nContent-Type: text/plain\n\nsigned text\n--b\nContent-Type: application/pgp-signature"
        b"\n\nabc\n--b\nContent-Type: application/pkcs7-mime\n\nabc\n--b--\n"
    )
    content = raw(b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="b"\n', body)
    assert "signed text" in text_of("a.eml", content)
    assert "signatures (1), encrypted parts of mails (1)" in note_of("a.eml", content)


def test_a_mailbox_is_read_mail_by_mail() -> None:
    box = b"".join(
        b"From ada@example.org Mon Jun  1 10:00:00 2026\n"
        + raw(b"Message-ID: <1>\n", body, subject)
        + b"\n\n"
        for subject, body in [(b"One", b"a\n>From here\nFrom there on\n\nFrom now on"), (b"Two", b"b")]
    )
    assert sections_of("a.mbox", box) == ["mail 1: One", "mail 2: Two"]
    text = text_of("a.mbox", box)
    assert "a\nFrom here\nFrom there on\n\nFrom now on\n" in text
    assert sections_of("a.mbox.gz", gzip.compress(box)) == ["mail 1: One", "mail 2: Two"]


def test_a_page_saved_as_a_mail() -> None:
    body = (
        b"--b\nContent-Type: text/html; charset=utf-8\nContent-ID: <r>\n\n<title>t</title><p>The page.</p>\n"
        b"--b\nContent-Type: text/html\n\n<p>In a frame.</p>\n--b\nContent-Type: image/png\n\nabc\n"
        b"--b\nContent-Type: text/css\n\np{}\n--b--\n"
    )
    content = (
        b"From: <Saved by Blink>\nSnapshot-Content-Location: https://example.org/\nSubject: A page\n"
        b'MIME-Version: 1.0\nContent-Type: multipart/related; type="text/html"; boundary="b"\n\n' + body
    )
    assert sections_of("a.mht", content) == ["mail: A page"]
    text = text_of("a.mhtml", content)
    assert "The page." in text
    assert "In a frame." in text
    assert "https://example.org/" in text
    assert "pictures (1), styles and scripts (1)" in note_of("a.mht", content)


def test_a_mail_of_outlook() -> None:
    content = outlook(
        "Preis", "Guten Tag,\r\n" * 500, attachments=[("a.pdf", pdf(["in the report"])), ("p.png", PNG)]
    )
    assert sections_of("a.msg", content) == ["mail: Preis", "attachment a.pdf", "attachment a.pdf: page 1"]
    text = text_of("a.msg", content)
    assert text.startswith(
        'From: "Ada" <ada@example.org>\nTo: Bob; Carl\nSubject: Preis\n\nGuten Tag,\nGuten'
    )
    assert "in the report" in text
    assert note_of("a.msg", content) == "a.msg: left out: pictures (1)"
    assert "nur als Seite" in text_of("b.msg", outlook("x", page="<div>nur als Seite</div>"))


def test_an_outlook_mail_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from adamas_cli.documents.formats import msg
    from adamas_cli.documents.formats.trouble import Trouble, UnreadableError

    monkeypatch.setitem(sys.modules, "oxmsg", None)
    with pytest.raises(UnreadableError) as caught:
        list(msg.read("any"))
    assert caught.value.trouble is Trouble.NO_OFFICE


@pytest.mark.parametrize(
    ("head", "name", "kind"),
    [
        (mail().as_bytes(), "1687.M1P2.host:2,S", Format.MAIL),
        (mail().as_bytes(), "stdin", Format.MAIL),
        (raw(b"", b"x"), "a.eml", Format.MAIL),
        (raw(b"", b"x"), "notes.txt", None),
        (b"From: a\nDate: b\nSubject: [PATCH] c\nMessage-ID: d\n\n---\n", "a.patch", None),
        (b"From 1234567 Mon Sep 17 00:00:00 2001\nFrom: a\nDate: b\nSubject: c\n\n", "a.patch", None),
        (b"From 1234567 Mon Sep 17 00:00:00 2001\nFrom: a\nDate: b\nSubject: c\n\n", "series", None),
        (b"From the beginning: it was 10:30 in 2026.\nDate: none\n", "a.txt", None),
        (b"Metadata-Version: 2.1\nName: adamas\nAuthor: Ada\n\nText", "PKG-INFO", None),
        (b"Package: bash\nFrom: x\n\n", "control", None),
    ],
)
def test_what_is_a_mail(head: bytes, name: str, kind: Format | None) -> None:
    assert recognized(head, name) is kind


def test_an_empty_mailbox_has_nothing_to_read() -> None:
    Path("a.msg").write_bytes(outlook("")[:600])
    with pytest.raises(NothingReadableError, match="1 damaged"):
        found("a.msg")


def test_a_mail_without_a_body_is_its_fields() -> None:
    message = EmailMessage()
    message["From"], message["Subject"] = "a@example.org", "Nothing more"
    assert "Subject: Nothing more" in text_of("a.eml", message.as_bytes() + b"\n")
