"""Word documents."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from adamas_cli.documents.formats.archive import open_archive
from adamas_cli.documents.formats.docx.markup_xml import W
from adamas_cli.documents.formats.docx.math import write_equations
from adamas_cli.documents.formats.docx.notes import write_notes
from adamas_cli.documents.formats.docx.numbers import Numbers
from adamas_cli.documents.formats.docx.package import Package
from adamas_cli.documents.formats.docx.shapes import unread_drawings, write_boxes, write_diagrams
from adamas_cli.documents.formats.docx.tables import BAR, write_tables
from adamas_cli.documents.formats.markup import headed, markdown
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

_BACKSLASH = "\ue003"  # private use; replaces "\" in equations until the text is Markdown
_NUMBER = re.compile(r"^( *\d+)\\([.)])", re.MULTILINE)  # a paragraph's number, escaped as it is not a list's


def read(path: str) -> Iterator[Part | Remark]:
    """Markdown, with a section for each heading. Raises UnreadableError, and whatever zipfile, XML parsers
    and mammoth raise for damaged files.

    mammoth reads paragraphs, styles, links and changes; what it omits is written into the text first.
    """
    import defusedxml
    import mammoth

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        defusedxml.defuse_stdlib()  # mammoth's XML parser; this process does nothing else
    with open(path, "rb") as file:
        if not file.read(4).startswith(b"PK"):
            raise UnreadableError(Trouble.ENCRYPTED)
    with open_archive(path) as archive:
        package = Package(archive)
        left_out = _prepare(package)
        page = mammoth.convert_to_html(
            package.changed(), convert_image=mammoth.images.img_element(lambda _: {})
        )
    text = markdown(page.value.replace("\\", _BACKSLASH)).replace(BAR, "\\|").replace(_BACKSLASH, "\\")
    yield from headed(_NUMBER.sub(r"\1\2", text))
    yield from (Remark(kind, count) for kind, count in left_out.items() if count)


def _prepare(package: Package) -> Counter[str]:
    """Write what mammoth does not read into the main part; return counts of what is omitted, by kind."""
    root = package.text()
    left_out = unread_drawings(root)
    left_out["passages deleted by tracked changes"] = _deletions(root)
    numbering, styles = package.related("numbering"), package.related("styles")
    write_equations(root)
    write_boxes(root)
    Numbers(numbering[0] if numbering else None, styles[0] if styles else None).write(root)
    write_notes(root, package)
    write_tables(root)
    write_diagrams(root, package)
    left_out["damaged parts"] = len(package.damaged)
    return left_out


def _deletions(root: Element) -> int:
    return sum(next(node.iter(f"{W}delText"), None) is not None for node in root.iter(f"{W}del"))
