"""The parts of a Word document, and a copy of the document with changed parts."""

from __future__ import annotations

import io
import posixpath
from xml.etree.ElementTree import Element, tostring
from zipfile import ZIP_STORED, ZipFile

from defusedxml.ElementTree import ParseError, fromstring

_STRICT = {  # ISO namespaces and the ones that Word itself writes
    b"http://purl.oclc.org/ooxml/wordprocessingml/main": b"http://schemas.openxmlformats.org/"
    b"wordprocessingml/2006/main",
    b"http://purl.oclc.org/ooxml/officeDocument/relationships": b"http://schemas.openxmlformats.org/"
    b"officeDocument/2006/relationships",
    b"http://purl.oclc.org/ooxml/officeDocument/math": b"http://schemas.openxmlformats.org/"
    b"officeDocument/2006/math",
    b"http://purl.oclc.org/ooxml/drawingml/": b"http://schemas.openxmlformats.org/drawingml/2006/",
}
_XML = (".xml", ".rels")


class Package:
    """A Word document's parts.

    main: the name of the part with its text. damaged: requested parts that are missing or not XML.
    """

    def __init__(self, archive: ZipFile) -> None:
        self._archive = archive
        self._changed: dict[str, Element] = {}
        self.damaged: set[str] = set()
        self.main = "word/document.xml"
        for kind, target in self._relations(""):
            if kind == "officeDocument":
                self.main = target.lstrip("/")
        self._related = self._relations(self.main)

    def text(self) -> Element:
        """The root of the main part. Raises KeyError if it is missing and ParseError if it is damaged."""
        return self._parsed(self.main)

    def related(self, kind: str) -> list[Element]:
        """The roots of all readable parts of a kind, such as "comments"."""
        found = []
        for name in dict.fromkeys(target for related, target in self._related if related == kind):
            try:
                found.append(self._parsed(name))
            except (KeyError, ParseError):
                self.damaged.add(name)
        return found

    def changed(self) -> io.BytesIO:
        """The document with the changed parts, without pictures and damaged parts."""
        made = io.BytesIO()
        with ZipFile(made, "w", ZIP_STORED) as archive:
            for name in self._archive.namelist():
                if name in self.damaged:
                    continue
                if name in self._changed:
                    archive.writestr(name, tostring(self._changed[name], encoding="utf-8"))
                elif name.lower().endswith(_XML):
                    archive.writestr(name, self._archive.read(name))
        made.seek(0)
        return made

    def _parsed(self, name: str) -> Element:
        if name not in self._changed:
            content = self._archive.read(name)
            for strict, usual in _STRICT.items():
                content = content.replace(strict, usual)
            self._changed[name] = fromstring(content)
        return self._changed[name]

    def _relations(self, part: str) -> list[tuple[str, str]]:
        """Kind and name of each part that a part refers to."""
        folder, name = posixpath.split(part)
        try:
            root = fromstring(self._archive.read(posixpath.join(folder, "_rels", f"{name}.rels")))
        except (KeyError, ParseError):
            return []
        found = []
        for node in root:
            if node.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, node.get("Target", "")))
                found.append((node.get("Type", "").rpartition("/")[2], target.lstrip("/")))
        return found
