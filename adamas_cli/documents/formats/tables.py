"""Tables of a page as Markdown can write them: each row with all its cells, and none for layout alone."""

from __future__ import annotations

from typing import Any

from selectolax.lexbor import LexborHTMLParser

_MOST_COLUMNS = 1000  # as in HTML's own rules for colspan
_MOST_ROWS = 65_534
_MOST_ADDED = 20  # cells for each cell that there is
_GROUPS = ("thead", "tbody", "tfoot")
_BLOCKS = "table, h1, h2, h3, h4, h5, h6, pre, blockquote, form, hr"


def plain_tables(tree: LexborHTMLParser) -> None:
    """Replace tables that only arrange a page by their cells, and fill the cells that spans cover.

    A cell that covers several rows or columns is repeated in each of them; a cell as wide as its table, such
    as a title between rows, stands once.
    """
    for table in reversed(tree.css("table")):  # those inside first
        rows = _rows(table)
        if _is_layout(table, rows):
            _unfold(tree, table, rows)
        elif any("rowspan" in cell.attributes or "colspan" in cell.attributes for row in rows for cell in _cells(row)):
            _fill(tree, rows)


def _rows(table: Any) -> list[Any]:
    rows = []
    for child in table.iter():
        if child.tag == "tr":
            rows.append(child)
        elif child.tag in _GROUPS:
            rows += [row for row in child.iter() if row.tag == "tr"]
    return rows


def _cells(row: Any) -> list[Any]:
    return [cell for cell in row.iter() if cell.tag in ("td", "th")]


def _is_layout(table: Any, rows: list[Any]) -> bool:
    if table.attributes.get("role") in ("presentation", "none"):
        return True
    if table.css_first("th, caption") is not None:
        return False
    return table.css_first(_BLOCKS) is not None or all(len(_cells(row)) < 2 for row in rows)


def _unfold(tree: LexborHTMLParser, table: Any, rows: list[Any]) -> None:
    block = tree.create_node("div")
    for row in rows:
        for cell in _cells(row):
            part = tree.create_node("div")
            for child in cell.iter(include_text=True):
                part.insert_child(child)
            block.insert_child(part)
    table.insert_before(block)
    table.decompose()


def _fill(tree: LexborHTMLParser, rows: list[Any]) -> None:
    cells = [_cells(row) for row in rows]
    room = _MOST_ADDED * sum(map(len, cells)) + _MOST_ADDED
    width = max((sum(_span(cell, "colspan", _MOST_COLUMNS) for cell in row) for row in cells), default=0)
    below: dict[int, tuple[Any, int]] = {}  # by column: a cell from above, and for how many rows it goes on
    for row in cells:
        column = 0
        for cell in row:
            column, room = _from_above(tree, below, column, cell, room, before=True)
            rowspan, colspan = _span(cell, "rowspan", _MOST_ROWS), _span(cell, "colspan", _MOST_COLUMNS)
            title = colspan >= width and len(row) == 1
            for extra in range(colspan):
                if extra and room > 0:
                    copy = tree.create_node(cell.tag) if title else cell.clone()
                    cell.insert_after(copy)
                    room -= 1
                if rowspan > 1:
                    below[column] = (cell, rowspan - 1)
                column += 1
        if row:
            _from_above(tree, below, column, row[-1], room, before=False)
    for row in rows:
        for cell in _cells(row):
            for name in ("rowspan", "colspan"):
                if name in cell.attributes:
                    del cell.attrs[name]


def _from_above(
    tree: LexborHTMLParser, below: dict[int, tuple[Any, int]], column: int, cell: Any, room: int, *, before: bool
) -> tuple[int, int]:
    """Put copies of the cells that reach down into the columns from `column` on, before or after `cell`."""
    after = []
    while column in below:
        above, rows = below.pop(column)
        if rows > 1:
            below[column] = (above, rows - 1)
        if room > 0:
            if before:
                cell.insert_before(above.clone())
            else:
                after.append(above)
            room -= 1
        column += 1
    for above in reversed(after):
        cell.insert_after(above.clone())
    return column, room


def _span(cell: Any, name: str, most: int) -> int:
    digits = (cell.attributes.get(name) or "").strip()
    return min(max(int(digits), 1), most) if digits.isdecimal() and len(digits) < 9 else 1
