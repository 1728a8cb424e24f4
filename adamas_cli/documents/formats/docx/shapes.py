"""Text boxes and drawings of Word documents."""

from __future__ import annotations

from collections import Counter
from xml.etree.ElementTree import Element

from adamas_cli.documents.formats.docx.markup_xml import MC, W, paragraph, parents
from adamas_cli.documents.formats.docx.package import Package

_A_TEXT = "{http://schemas.openxmlformats.org/drawingml/2006/main}t"
_A_PARAGRAPH = "{http://schemas.openxmlformats.org/drawingml/2006/main}p"
_BOX = f"{W}txbxContent"
_GRAPHIC_DATA = "{http://schemas.openxmlformats.org/drawingml/2006/main}graphicData"
_PICTURES = ("/picture", "/chart", "/diagram", "/ink")


def write_boxes(root: Element) -> None:
    """Move the content of text boxes after the paragraphs that hold them; duplicates only once."""
    _choose(root)
    above = parents(root)
    for box in list(root.iter(_BOX)):
        holder: Element | None = above.get(box)
        if holder is None:
            continue
        holder.remove(box)
        while holder is not None and holder.tag != f"{W}p":
            holder = above.get(holder)
        if holder is None or holder not in above:
            continue
        outside = above[holder]
        at = list(outside).index(holder) + 1
        moved = list(box)
        outside[at:at] = moved
        above.update(dict.fromkeys(moved, outside))


def write_diagrams(root: Element, package: Package) -> None:
    """Append the words of diagrams (SmartArt) to the text, one paragraph for each of theirs."""
    body = root.find(f"{W}body")
    for diagram in package.related("diagramData") if body is not None else ():
        for node in diagram.iter(_A_PARAGRAPH):
            words = "".join(part.text or "" for part in node.iter(_A_TEXT)).strip()
            if words and body is not None:
                body.insert(len(body) - (body[-1].tag == f"{W}sectPr" if len(body) else 0), paragraph(words))


def unread_drawings(root: Element) -> Counter[str]:
    """Counts of pictures and other drawings; at most their descriptions are read."""
    found: Counter[str] = Counter()
    for data in root.iter(_GRAPHIC_DATA):
        kind = data.get("uri", "").rpartition("/")[2].lower()
        if kind in ("picture", "chart"):
            found[f"{kind}s"] += 1
    for node in root.iter():
        if node.tag == "{urn:schemas-microsoft-com:vml}imagedata":
            found["pictures"] += 1
        elif node.tag == "{urn:schemas-microsoft-com:office:office}OLEObject":
            found["embedded objects"] += 1
    return found


def _choose(root: Element) -> None:
    """Of alternative contents, keep the first, which newer programs read."""
    for parent in list(root.iter()):
        for node in list(parent):
            if node.tag != f"{MC}AlternateContent":
                continue
            ways = [way for way in node if next(way.iter(_BOX), None) is not None] or list(
                node.findall(f"{MC}Fallback")
            )
            way = ways[0] if ways else next(iter(node), None)
            at = list(parent).index(node)
            parent[at : at + 1] = list(way) if way is not None else []
