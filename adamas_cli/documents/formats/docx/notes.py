"""Comments, footnotes, headers and footers of Word documents, written into their text."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from adamas_cli.documents.formats.docx.markup_xml import W, paragraph, parents, plain_text, replace, run
from adamas_cli.documents.formats.docx.package import Package

_NUMBERS_ALONE = re.compile(
    r"[\W\d_]*(?:\b(?:page|seite|página|pagina|of|von|de|sur|di|[ivxlc]+)\b[\W\d_]*)*", re.IGNORECASE
)
_LONGEST_AUTHOR = 60
_SEPARATORS = ("separator", "continuationSeparator", "continuationNotice")


def write_notes(root: Element, package: Package) -> None:
    """Put comments and notes where the text refers to them, headers before the text, footers after it."""
    above = parents(root)
    for kind in ("footnote", "endnote"):
        texts = {
            node.get(f"{W}id", ""): plain_text(node)
            for part in package.related(f"{kind}s")
            for node in part.findall(f"{W}{kind}")
            if node.get(f"{W}type") not in _SEPARATORS
        }
        for reference in list(root.iter(f"{W}{kind}Reference")):
            _insert(above, reference, f" [{kind}: {texts.get(reference.get(f'{W}id', ''), '')}]", texts)
    comments = {}
    for part in package.related("comments"):
        for node in part.findall(f"{W}comment"):
            author = " ".join(node.get(f"{W}author", "").split())[:_LONGEST_AUTHOR]
            by = f" by {author}" if author else ""
            comments[node.get(f"{W}id", "")] = f" [comment{by}: {plain_text(node)}]"
    for reference in list(root.iter(f"{W}commentReference")):
        name = reference.get(f"{W}id", "")
        _insert(above, reference, comments.get(name, ""), comments)
    body = root.find(f"{W}body")
    if body is not None:
        body[0:0] = [paragraph(f"[header: {text}]") for text in _once(package, "header")]
        last = len(body) - (len(body) > 0 and body[-1].tag == f"{W}sectPr")
        body[last:last] = [paragraph(f"[footer: {text}]") for text in _once(package, "footer")]


def _insert(above: dict[Element, Element], reference: Element, text: str, known: dict[str, str]) -> None:
    """Put a note's text after the run that refers to it, and remove the reference."""
    holder = above[reference]
    holder.remove(reference)
    if reference.get(f"{W}id", "") in known and holder in above:
        replace(above[holder], holder, [holder, made := run(text)])
        above[made] = above[holder]


def _once(package: Package, kind: str) -> list[str]:
    """The distinct texts of headers or footers, without those that contain only page numbers."""
    texts = dict.fromkeys(plain_text(part) for part in package.related(kind))
    return [text for text in texts if not _NUMBERS_ALONE.fullmatch(text)]
