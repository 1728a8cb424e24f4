"""OpenDocument presentations, slide by slide, through the extra `office`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adamas_cli.documents.formats.markdown_table import table
from adamas_cli.documents.formats.markup import label
from adamas_cli.documents.formats.odt import refuse_encrypted
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark


def read(path: str) -> Iterator[Part | Remark]:
    """A section for each slide, "slide 3: Its title", with its tables and notes. Raises UnreadableError, and
    whatever zipfile, XML parsers and odfpy raise for damaged files.
    """
    try:
        from odf.opendocument import load
    except ImportError as error:
        raise UnreadableError(Trouble.NO_OFFICE) from error
    from odf.namespaces import DRAWNS, PRESENTATIONNS

    refuse_encrypted(path)
    pages = load(path).presentation.childNodes
    for number, page in enumerate((page for page in pages if page.qname == (DRAWNS, "page")), start=1):
        title, blocks, notes = "", [], []
        for shape in page.childNodes:
            if shape.qname == (PRESENTATIONNS, "notes"):
                notes += [block for block in _blocks(shape) if isinstance(block, str)]
                continue
            is_title = _attribute(shape, PRESENTATIONNS, "class") == "title"
            for block in _blocks(shape):
                if isinstance(block, Remark):
                    yield block
                elif is_title and not title:
                    title = label(block)
                else:
                    blocks.append(block)
        name = f"slide {number}: {title}" if title else f"slide {number}"
        noted = "\n".join(notes)
        text = "\n\n".join([f"[{name}]", *blocks, *([f"Notes: {noted}"] if noted else [])])
        yield Part(f"{text}\n\n", name)


def _blocks(element: Any) -> Iterator[str | Remark]:
    """Paragraphs and tables in order, and remarks on everything else."""
    from odf.namespaces import DRAWNS, TABLENS, TEXTNS
    from odf.teletype import extractText

    name = getattr(element, "qname", None)
    if name in ((TEXTNS, "p"), (TEXTNS, "h")):
        if text := extractText(element).strip():
            yield text
    elif name == (TABLENS, "table"):
        yield "".join(table(_rows(element))).strip()
    elif name == (DRAWNS, "image"):
        yield Remark("pictures")
    elif name in ((DRAWNS, "object"), (DRAWNS, "object-ole"), (DRAWNS, "plugin")):
        yield Remark("charts, films and embedded files")
    else:
        for child in element.childNodes:
            yield from _blocks(child)


def _rows(element: Any) -> Iterator[list[str]]:
    from odf.namespaces import TABLENS
    from odf.teletype import extractText

    for child in element.childNodes:
        name = getattr(child, "qname", None)
        if name == (TABLENS, "table-row"):
            yield [extractText(cell) for cell in child.childNodes if cell.qname[1].endswith("table-cell")]
        elif name is not None and child.hasChildNodes():
            yield from _rows(child)


def _attribute(element: Any, namespace: str, name: str) -> str:
    return str(getattr(element, "attributes", {}).get((namespace, name), ""))
