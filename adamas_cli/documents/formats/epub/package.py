"""An EPUB archive: its package, its spine, and its members, however their names are written."""

from __future__ import annotations

import codecs
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from zipfile import ZipFile

from bs4 import BeautifulSoup, Tag
from defusedxml.ElementTree import ParseError, fromstring

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"  # chapters, encrypted by a shop; often only fonts, which is harmless
_DECLARED = re.compile(rb"<\?xml[^>]{0,200}encoding\s*=\s*[\"']([\w.-]+)")
_INSTRUCTION = re.compile(r"<\?[A-Za-z][^>]*>")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
PAGES = (".xhtml", ".html", ".htm", ".xml")
DRAWINGS = (".svg",)
_SUFFIXES = {"application/xhtml+xml": ".xhtml", "text/html": ".html", "image/svg+xml": ".svg"}


class UnreadPageError(Exception):
    """A page of the book cannot be read; the message is the kind to count."""


@dataclass(frozen=True)
class Item:
    """A file of the book. `suffix`: from its type or name; `properties`: from the package."""

    id: str
    name: str
    suffix: str
    properties: tuple[str, ...] = ()


class Package:
    """An EPUB's own description, as far as it can be read.

    items: all files that it lists. spine: the files in reading order. unlisted: the number of spine entries
    that name no file. locked: whether a file of the spine is encrypted. Raises what defusedxml raises if a
    description declares entities.
    """

    def __init__(self, archive: ZipFile) -> None:
        self._archive = archive
        self._names = {_folded(name): name for name in reversed(archive.namelist())}
        self.items: list[Item] = []
        self.spine: list[Item] = []
        self.unlisted = 0
        self.ncx = ""
        base = self._package_name()
        if base:
            self._describe(base, self.description(base))
        if not self.spine:
            self.spine = [
                item for item in self.items if item.suffix in PAGES and "nav" not in item.properties
            ]
        if not self.spine:
            names = sorted(name for name in archive.namelist() if name.lower().endswith(PAGES[:3]))
            self.spine = [Item("", name, PAGES[0]) for name in names]
        self.locked = not {item.name for item in self.spine}.isdisjoint(self._encrypted())

    def description(self, name: str) -> BeautifulSoup:
        """An XML member, even a malformed one. Raises UnreadPageError, and what defusedxml raises for
        entity declarations.
        """
        content = self.page(name)
        with suppress(ParseError):
            fromstring(content)
        return BeautifulSoup(content, "html.parser")

    def page(self, name: str) -> str:
        """A member as text, without the XML declaration and instructions. Raises UnreadPageError."""
        found = self.found(name)
        if found is None:
            raise UnreadPageError("chapters that are missing from the file")
        try:
            content = self._archive.read(found)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise UnreadPageError("damaged chapters") from error
        return _INSTRUCTION.sub("", decoded(content)).lstrip()

    def found(self, name: str) -> str | None:
        """The archive's name of a member, however `name` is written."""
        if name in self._archive.NameToInfo:
            return name
        return self._names.get(_folded(name))

    def _package_name(self) -> str | None:
        if self.found(_CONTAINER):
            for node in named(self.description(_CONTAINER), "rootfile"):
                if found := self.found(_text_of(node, "full-path")):
                    return found
        return next((name for name in self._archive.namelist() if name.lower().endswith(".opf")), None)

    def _describe(self, base: str, package: BeautifulSoup) -> None:
        for node in named(package, "item"):
            name = joined(base, _text_of(node, "href"))
            suffix = _SUFFIXES.get(_text_of(node, "media-type")) or posixpath.splitext(name)[1].lower()
            self.items.append(
                Item(_text_of(node, "id"), name, suffix, tuple(_text_of(node, "properties").split()))
            )
            if _text_of(node, "media-type") == "application/x-dtbncx+xml":
                self.ncx = name
        by_id = {item.id: item for item in self.items}
        for node in named(package, "itemref"):
            item = by_id.get(_text_of(node, "idref"))
            if item is None:
                self.unlisted += 1
            else:
                self.spine.append(item)

    def _encrypted(self) -> Iterator[str]:
        if self.found(_ENCRYPTION):
            for node in named(self.description(_ENCRYPTION), "cipherreference"):
                yield posixpath.normpath(unquote(_text_of(node, "uri")))


def decoded(content: bytes) -> str:
    """Text decoded by its byte order mark, its declaration, or as UTF-8."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    declared = _DECLARED.search(content[:1024])
    for encoding in (declared[1].decode() if declared else "utf-8", "utf-8"):
        try:
            return content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return content.decode("cp1252", errors="replace")


def joined(base: str, target: str) -> str:
    """The archive's member that `target` names, relative to the member `base`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(urlsplit(target).path)))


def named(root: BeautifulSoup | Tag, name: str) -> list[Tag]:
    """Elements with this local name (lower case), whatever their namespace."""
    return [node for node in root.find_all(True) if node.name.rpartition(":")[2] == name]


def _text_of(node: Tag, attribute: str) -> str:
    value = node.get(attribute) or ""
    return value if isinstance(value, str) else " ".join(value)


def _folded(name: str) -> str:
    return posixpath.normpath(unquote(name).replace("\\", "/")).casefold().lstrip("/")
