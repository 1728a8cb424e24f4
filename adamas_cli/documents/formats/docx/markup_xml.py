"""Names and helpers for the XML of Word documents."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
V = "{urn:schemas-microsoft-com:vml}"
_SPACE = "{http://www.w3.org/XML/1998/namespace}space"
_DELETED = (f"{W}del", f"{W}moveFrom")
_DRAWN = (f"{W}drawing", f"{W}pict", f"{W}object", f"{MC}AlternateContent")


def value(node: Element | None, default: str = "") -> str:
    """The attribute `w:val` or `m:val`."""
    if node is None:
        return default
    return node.get(f"{W}val", node.get(f"{M}val", default))


def parents(root: Element) -> dict[Element, Element]:
    """Each element's parent in the current tree."""
    return {child: parent for parent in root.iter() for child in parent}


def run(text: str) -> Element:
    """A run of plain text."""
    made = Element(f"{W}r")
    node = Element(f"{W}t", {_SPACE: "preserve"})
    node.text = text
    made.append(node)
    return made


def paragraph(text: str) -> Element:
    """A paragraph of plain text."""
    made = Element(f"{W}p")
    made.append(run(text))
    return made


def replace(parent: Element, old: Element, new: list[Element]) -> None:
    """Replace one element by others."""
    at = list(parent).index(old)
    parent[at : at + 1] = new


def plain_text(node: Element) -> str:
    """The text of paragraphs with all tracked changes accepted, on one line, without field instructions."""
    return " ".join("".join(_texts(node)).split())


def _texts(node: Element) -> Iterator[str]:
    for child in node:
        if child.tag in _DELETED or child.tag in _DRAWN:
            continue
        if child.tag == f"{W}t":
            yield child.text or ""
        elif child.tag in (f"{W}tab", f"{W}br", f"{W}cr"):
            yield " "
        elif child.tag == f"{W}noBreakHyphen":
            yield "-"
        else:
            yield from _texts(child)
            if child.tag in (f"{W}p", f"{W}tc"):
                yield " "
