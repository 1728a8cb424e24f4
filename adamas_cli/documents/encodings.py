"""Names of encodings, and a file's own declaration of its encoding."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from enum import StrEnum

FALLBACK = "cp1252"
DECLARED_WITHIN = 4096  # bytes; HTML's own rule is 1024, which long comments exceed

# As in browsers: the larger encoding that is meant by these labels.
_LARGER = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "euc_jp": "euc_jis_2004",
    "iso2022_jp": "iso2022_jp_ext",
    "utf_8_sig": "utf-8",
}
# Labels unknown to Python: from browsers, Emacs, Vim and LaTeX's inputenc.
_ALIASES = {
    "ansinew": "cp1252",
    "applemac": "mac_roman",
    "cp936": "gb18030",
    "iso-8859-8-i": "iso8859-8",
    "iso-8859-8-e": "iso8859-8",
    "ks_c_5601-1987": "cp949",
    "latin9": "iso8859-15",
    "mule-utf-8": "utf-8",
    "utf8x": "utf-8",
    "unicode": "utf-16",
    "windows-31j": "cp932",
    "windows-874": "cp874",
    "windows-949": "cp949",
    "x-euc-jp": "euc_jis_2004",
    "x-gbk": "gb18030",
    "x-mac-cyrillic": "mac_cyrillic",
    "x-mac-ce": "mac_latin2",
    "x-mac-roman": "mac_roman",
    "x-sjis": "cp932",
    "x-x-big5": "big5hkscs",
}
_LATEX = {"latin2": "iso8859-2", "latin3": "iso8859-3", "latin4": "iso8859-4", "latin5": "iso8859-9"}
_SHOWN = {"euc_jis_2004": "euc-jp", "big5hkscs": "big5", "mac_roman": "mac-roman", "cp874": "windows-874"}

_LABEL = rb"([A-Za-z][\w.:+-]{1,30})"
_XML = re.compile(rb"\s*<\?xml\b[^>]{0,200}?\bencoding\s*=\s*[\"']" + _LABEL)
_CSS = re.compile(rb"@charset\s+[\"']" + _LABEL)
# Also matches in a fragment, but not where a page quotes such a tag in its text, escaped.
_META = re.compile(rb"<[mM][eE][tT][aA]\s[^>]{0,300}?charset\s*=\s*[\"']?\s*" + _LABEL, re.IGNORECASE)
_COMMENT = re.compile(
    rb"[ \t\f\v]*(?:#|//|/\*|\*|--|;|%|<!--|\"|\.\\\"|@c)[^\n]{0,300}?coding[:=][ \t]*" + _LABEL
)
_TEX = re.compile(rb"^[^%\n]{0,80}\\usepackage\[" + _LABEL + rb"\]\{inputenc\}", re.MULTILINE)
_GETTEXT = re.compile(rb"^\"Content-Type: text/plain; charset=" + _LABEL, re.MULTILINE)
_UNIX_OR_DOS = re.compile(rb"-(?:unix|dos|mac)$")  # line ends in Emacs's names


class Origin(StrEnum):
    """How an encoding was determined."""

    ASCII = "ascii"
    UTF8 = "utf-8"
    MARK = "mark"
    PATTERN = "pattern"
    DECLARED = "declared"
    NAMED = "named"
    GUESSED = "guessed"


@dataclass(frozen=True)
class Encoding:
    """How bytes become text: Python's codec, the length of the byte order mark, and how the encoding was
    determined. `contrary` is an encoding that the file declares but does not use.
    """

    codec: str
    mark: int = 0
    origin: Origin = Origin.UTF8
    contrary: str = ""

    @property
    def name(self) -> str:
        """Its usual name, which `codec_of` understands."""
        return shown_name(self.codec)


def shown_name(codec: str) -> str:
    """The usual name of a codec."""
    if codec in _SHOWN:
        return _SHOWN[codec]
    name = codec.replace("_", "-").lower()
    return f"windows-{name[2:]}" if re.fullmatch(r"cp125\d", name) else name.replace("iso8859", "iso-8859")


def codec_of(label: str) -> str | None:
    """Python's codec for an encoding's name, or the larger codec that is usually meant; None if unknown."""
    name = label.strip().lower()
    name = _ALIASES.get(name, name)
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    if not getattr(found, "_is_text_encoding", True) or found.name in ("idna", "punycode", "unicode_escape"):
        return None
    if found.name in ("raw_unicode_escape", "undefined", "mbcs", "oem"):
        return None
    return _LARGER.get(found.name, found.name)


def declared(head: bytes) -> str | None:
    """The encoding name that a file beginning with `head` declares, or None.

    Understands XML, HTML (fragments too), CSS, PEP 263 and similar comments of other languages and editors,
    LaTeX's inputenc and gettext's catalogues.
    """
    head = head[:DECLARED_WITHIN].removeprefix(codecs.BOM_UTF8)
    if b"coding" not in head and b"charset" not in head and b"inputenc" not in head:
        return None
    found = _XML.match(head) or _CSS.match(head)
    if found is None:
        for line in head.split(b"\n", 2)[:2]:
            found = found or _COMMENT.match(line)
    if found is not None:
        return _UNIX_OR_DOS.sub(b"", found[1]).decode("ascii", "replace")
    if b"inputenc" in head and (found := _TEX.search(head)) is not None:
        label = found[1].decode("ascii", "replace")
        return _LATEX.get(label, label)
    found = _META.search(head) if b"<" in head else None
    if found is None and b'\n"Content-Type:' in head:
        found = _GETTEXT.search(head)
    return None if found is None else found[1].decode("ascii", "replace")
