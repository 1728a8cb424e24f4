"""PowerPoint presentations, slide by slide, through the extra `office`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from adamas_cli.documents.formats.archive import open_archive
from adamas_cli.documents.formats.markdown_table import table
from adamas_cli.documents.formats.markup import label
from adamas_cli.documents.formats.spreadsheet import shown
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

_DIAGRAM = "http://schemas.openxmlformats.org/drawingml/2006/diagram"
_DIAGRAM_DATA = f"{{{_DIAGRAM}}}relIds"
_DATA_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}dm"
_TEXT = "{http://schemas.openxmlformats.org/drawingml/2006/main}t"
_PARAGRAPH = "{http://schemas.openxmlformats.org/drawingml/2006/main}p"


def read(path: str) -> Iterator[Part | Remark]:
    """A section for each slide, "slide 3: Its title", with its tables, chart values and notes; hidden slides
    are marked. Raises UnreadableError, and what python-pptx raises for damaged files.
    """
    try:
        from pptx import Presentation
    except ImportError as error:
        raise UnreadableError(Trouble.NO_OFFICE) from error
    with open(path, "rb") as file:
        if not file.read(4).startswith(b"PK"):
            raise UnreadableError(Trouble.ENCRYPTED)
    open_archive(path).close()
    for number, slide in enumerate(Presentation(path).slides, start=1):
        title = slide.shapes.title
        named = label(title.text_frame.text) if title is not None else ""
        hidden = " (hidden)" if slide.element.get("show") == "0" else ""
        name = f"slide {number}{hidden}: {named}" if named else f"slide {number}{hidden}"
        blocks: list[str] = []
        for found in _shapes(slide.shapes, title):
            if isinstance(found, Remark):
                yield found
            else:
                blocks.append(found)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            notes = slide.notes_slide.notes_text_frame.text.strip()
            if notes:
                blocks.append(f"Notes: {notes}")
        text = "\n\n".join(filter(None, [f"[{name}]", *blocks]))
        yield Part(f"{_lines(text)}\n\n", name)


def _shapes(shapes: Iterable[Any], title: Any) -> Iterator[str | Remark]:
    """The texts of shapes in drawing order, without the title, which names the slide."""
    from pptx.enum.shapes import MSO_SHAPE_TYPE

    for shape in shapes:
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if shape.shape_type == MSO_SHAPE_TYPE.GROUP:
            yield from _shapes(shape.shapes, title)
        elif getattr(shape, "has_table", False) and shape.has_table:
            yield "".join(table([cell.text for cell in row.cells] for row in shape.table.rows)).strip()
        elif getattr(shape, "has_chart", False) and shape.has_chart:
            yield _chart(shape.chart)
        elif shape.has_text_frame:
            yield _frame(shape.text_frame)
        elif isinstance(shape.shape_type, MSO_SHAPE_TYPE) and "PICTURE" in shape.shape_type.name:
            yield Remark("pictures")
        elif (data := shape._element.find(f".//{_DIAGRAM_DATA}")) is not None:
            yield _diagram(shape.part, data)
        elif shape.shape_type in (MSO_SHAPE_TYPE.MEDIA, MSO_SHAPE_TYPE.EMBEDDED_OLE_OBJECT):
            yield Remark("sounds, films and embedded files")


def _frame(frame: Any) -> str:
    """Paragraphs; those at lower levels as lists."""
    lines = []
    for paragraph in frame.paragraphs:
        text = paragraph.text.strip()
        if text:
            lines.append(f"{'  ' * paragraph.level}- {text}" if paragraph.level else text)
    return "\n".join(lines)


def _chart(chart: Any) -> str:
    """The values of a chart, one column for each series."""
    title = (
        chart.chart_title.text_frame.text.strip()
        if chart.has_title and chart.chart_title.has_text_frame
        else ""
    )
    rows: list[list[str]] = []
    for plot in chart.plots:
        categories = [str(category) for category in plot.categories]
        series = [(str(one.name or ""), list(one.values)) for one in plot.series]
        rows.append(["", *(name for name, _ in series)])
        longest = max((len(values) for _, values in series), default=0)
        for n in range(longest):
            values = [values[n] if n < len(values) else None for _, values in series]
            cells = ["" if value is None else shown(value) for value in values]
            rows.append([categories[n] if n < len(categories) else str(n + 1), *cells])
    return f"Chart: {title}".rstrip() + f"\n\n{''.join(table(rows))}".rstrip()


def _diagram(part: Any, data: Any) -> str:
    """The texts of a SmartArt diagram, one per line."""
    from defusedxml.ElementTree import fromstring

    blob = part.related_part(data.get(_DATA_RELATION)).blob
    root = fromstring(blob)
    texts = ["".join(node.text or "" for node in one.iter(_TEXT)).strip() for one in root.iter(_PARAGRAPH)]
    return "\n".join(f"- {text}" for text in texts if text)


def _lines(text: str) -> str:
    """Replace python-pptx's vertical tabs, which are soft line breaks."""
    return text.replace("\v", "\n")
