"""Tables of Word documents, changed so that each row has a cell for each column."""

from __future__ import annotations

from copy import deepcopy
from xml.etree.ElementTree import Element, SubElement

from adamas_cli.documents.formats.docx.markup_xml import W, paragraph, parents, plain_text, replace, value

BAR = "\ue002"  # private use; replaces "|" in a cell until the table is Markdown
_LONGEST_REPEATED = 200  # characters
_MOST_COLUMNS = 64  # that one cell may span
_TABLE, _ROW, _CELL = f"{W}tbl", f"{W}tr", f"{W}tc"


def write_tables(root: Element) -> None:
    """Fill merged cells: downwards with the same text, sideways with empty cells. Tables in cells become a
    paragraph for each row; the first row becomes the head.
    """
    above = parents(root)
    for table in reversed(list(root.iter(_TABLE))):
        holder = above[table]
        if _inside_cell(above, table):
            rows = ("; ".join(plain_text(cell) for cell in row.iter(_CELL)) for row in table.iter(_ROW))
            replace(holder, table, [paragraph(row) for row in rows if row.strip("; ")])
        else:
            _even(table)
    for table in root.iter(_TABLE):
        for text in table.iter(f"{W}t"):
            text.text = (text.text or "").replace("|", BAR)


def _inside_cell(above: dict[Element, Element], node: Element) -> bool:
    while node in above:
        node = above[node]
        if node.tag == _CELL:
            return True
    return False


def _even(table: Element) -> None:
    merged: dict[int, Element] = {}
    for number, row in enumerate(table.findall(_ROW)):
        properties = _child(row, f"{W}trPr")
        for head in properties.findall(f"{W}tblHeader"):
            properties.remove(head)
        if number == 0:
            SubElement(properties, f"{W}tblHeader")
        place = 0
        for cell in list(row.iter(_CELL)):
            about = cell.find(f"{W}tcPr")
            span = about.find(f"{W}gridSpan") if about is not None else None
            below = about.find(f"{W}vMerge") if about is not None else None
            width = value(span, "1")
            columns = min(int(width), _MOST_COLUMNS) if width.isdigit() and len(width) < 6 else 1
            if below is not None and value(below) != "restart" and place in merged:
                _take(cell, merged[place])
            elif below is not None:
                merged[place] = deepcopy(cell)
            else:
                merged.pop(place, None)
            for found in (span, below):
                if about is not None and found is not None:
                    about.remove(found)
            place += max(columns, 1)
            _pad(row, cell, columns - 1)


def _take(cell: Element, first: Element) -> None:
    """Give a cell the text of the one it is merged with; long text is not repeated."""
    if not plain_text(cell) and len(plain_text(first)) <= _LONGEST_REPEATED:
        cell[:] = [child for child in cell if child.tag == f"{W}tcPr"]
        cell.extend(deepcopy(child) for child in first if child.tag != f"{W}tcPr")


def _pad(row: Element, cell: Element, count: int) -> None:
    if count < 1:
        return
    holder = next(parent for parent in row.iter() if cell in list(parent))
    at = list(holder).index(cell) + 1
    for _ in range(count):
        empty = Element(_CELL)
        empty.append(Element(f"{W}p"))
        holder.insert(at, empty)


def _child(node: Element, tag: str) -> Element:
    found = node.find(tag)
    if found is None:
        found = Element(tag)
        node.insert(0, found)
    return found
