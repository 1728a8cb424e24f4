"""EPUB books, in the order of their spine, chapter by chapter."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element
from zipfile import ZipFile

from bs4 import BeautifulSoup
from defusedxml.ElementTree import fromstring

from adamas_cli.documents.formats.archive import open_archive
from adamas_cli.documents.formats.markup import label, markdown
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"  # of chapters, by a shop; often of fonts only, which is no matter
_PAGES = ("application/xhtml+xml", "text/html")
_HEADING = re.compile(r"^#{1,6} +(\S.*)$", re.MULTILINE)
_COUNTED = re.compile(
    r"(chapter|part|book|section|appendix|volume|letter)\b|\d+\b|[ivxlc]+[.: ]", re.IGNORECASE
)


def read(path: str) -> Iterator[Part]:
    """A section for each chapter, "chapter 3: The Trial", whose text begins with `[chapter 3: The Trial]`.

    Chapters are the files of the spine that hold text. Raises UnreadableError, and whatever zipfile and XML
    parsers raise for damaged files.
    """
    with open_archive(path) as archive:
        container = fromstring(archive.read(_CONTAINER))
        package_name = next(node.get("full-path", "") for node in _all(container, "rootfile"))
        package = fromstring(archive.read(package_name))
        manifest = {node.get("id"): node for node in _all(package, "item")}
        spine = [
            manifest[node.get("idref")] for node in _all(package, "itemref") if node.get("idref") in manifest
        ]
        pages = [_resolved(package_name, node) for node in spine if node.get("media-type") in _PAGES]
        if not pages:
            raise UnreadableError(Trouble.DAMAGED, "no chapters in the spine")
        _refuse_encrypted(archive, pages)
        titles = _titles(archive, package, package_name, list(manifest.values()))
        number = 0
        for page in pages:
            text = markdown(archive.read(page))
            if not text:
                continue  # a cover
            number += 1
            name = _name(number, titles.get(page, ""), _first_heading(text))
            yield Part(f"[{name}]\n{text}\n\n", name)


def _name(number: int, title: str, heading: str) -> str:
    """The book's own number where it has one: it counts otherwise than its spine does."""
    for name in (title, heading):
        if _COUNTED.match(name):
            return name
    return f"chapter {number}: {title or heading}" if title or heading else f"chapter {number}"


def _first_heading(text: str) -> str:
    found = _HEADING.search(text)
    return label(found[1]) if found else ""


def _titles(archive: ZipFile, package: Element, package_name: str, items: list[Element]) -> dict[str, str]:
    """The titles of files, by the table of contents: that of EPUB 3, else that of EPUB 2."""
    for node in items:
        if "nav" in node.get("properties", "").split():
            name = _resolved(package_name, node)
            soup = BeautifulSoup(archive.read(name), "html.parser")
            links = [(str(a.get("href", "")), a.get_text()) for a in soup.select("nav a[href]")]
            return _by_file(name, links)
    for node in items:
        if node.get("media-type") == "application/x-dtbncx+xml":
            name = _resolved(package_name, node)
            links = []
            for point in _all(fromstring(archive.read(name)), "navPoint"):
                sources = [content.get("src", "") for content in _all(point, "content")]
                texts = ["".join(text.itertext()) for text in _all(point, "text")]
                links += list(zip(sources[:1], texts[:1], strict=True)) if sources and texts else []
            return _by_file(name, links)
    return {}


def _by_file(base: str, links: list[tuple[str, str]]) -> dict[str, str]:
    titles: dict[str, str] = {}
    for target, title in links:
        titles.setdefault(_joined(base, target), label(title))
    return titles


def _refuse_encrypted(archive: ZipFile, pages: list[str]) -> None:
    if _ENCRYPTION not in archive.namelist():
        return
    encrypted = {
        unquote(node.get("URI", ""))
        for node in _all(fromstring(archive.read(_ENCRYPTION)), "CipherReference")
    }
    if encrypted & set(pages):
        raise UnreadableError(Trouble.ENCRYPTED)


def _resolved(package_name: str, item: Element) -> str:
    return _joined(package_name, item.get("href", ""))


def _joined(base: str, target: str) -> str:
    """The archive's member that `target` names, as seen from the member `base`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(urlsplit(target).path)))


def _all(root: Element, name: str) -> Iterator[Element]:
    """Elements of this local name, whatever their namespace."""
    return (node for node in root.iter() if isinstance(node.tag, str) and node.tag.rpartition("}")[2] == name)
