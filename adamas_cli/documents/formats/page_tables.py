"""A page's tables in a form that Markdown can write: full rows, and no layout tables."""

from __future__ import annotations

from typing import Any

from selectolax.lexbor import LexborHTMLParser

_MOST_COLUMNS = 1000  # as in HTML's own rules for colspan
_MOST_ROWS = 65_534
_MOST_ADDED = 20  # grid cells per existing cell; a table with fewer than this squared is small
_GROUPS = ("thead", "tbody", "tfoot")
_SPANS = ("rowspan", "colspan")
_BLOCKS = "h1, h2, h3, h4, h5, h6, pre, blockquote, form, hr"
_INNER_SHARE = 0.5  # if more of a table's text than this is in inner tables, it is only layout


def plain_tables(tree: LexborHTMLParser) -> None:
    """Replace layout tables by their cells, and fill the cells that spans cover.

    A cell that spans several rows or columns is repeated in each of them; a cell as wide as its table, such
    as a title between rows, appears once. A table whose grid would be far larger than its text is written as
    lines.
    """
    for table in reversed(tree.css("table")):  # inner tables first
        rows = _rows(table)
        if _is_layout(table, rows):
            _unfold(tree, table, [[cell] for row in rows for cell in _cells(row)])
            continue
        for inner in reversed(_inner_tables(table)):
            inner.insert_before(_line(inner))
            inner.decompose()
        cells = [_cells(row) for row in rows]
        if any(name in cell.attributes for row in cells for cell in row for name in _SPANS):
            if _is_reasonable(sum(_area(cell, len(rows)) for row in cells for cell in row), cells):
                _fill(tree, cells)
            cells = [_cells(row) for row in rows]
            _forget_spans(cells)
        if not _is_reasonable(max(map(len, cells), default=0) * len(cells), cells):
            _unfold(tree, table, cells)


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
    if table.css_first(_BLOCKS) is not None or all(len(_cells(row)) < 2 for row in rows):
        return True
    inner = sum(len(_line(found)) for found in _inner_tables(table))
    return inner > 0 and (len(rows) < 2 or inner > _INNER_SHARE * len(table.text(deep=True)))


def _inner_tables(table: Any) -> list[Any]:
    return [found for found in table.css("table") if found.mem_id != table.mem_id]


def _line(table: Any) -> str:
    """A table inside a cell, as one line."""
    rows = ([" ".join(cell.text(deep=True).split()) for cell in _cells(row)] for row in _rows(table))
    return "; ".join(", ".join(row) for row in rows)


def _is_reasonable(grid: int, cells: list[list[Any]]) -> bool:
    return grid <= _MOST_ADDED * (sum(map(len, cells)) + _MOST_ADDED)


def _unfold(tree: LexborHTMLParser, table: Any, lines: list[list[Any]]) -> None:
    """Replace a table by a paragraph for each list of cells."""
    block = tree.create_node("div")
    for line in lines:
        part = tree.create_node("div")
        for index, cell in enumerate(line):
            if index:
                part.insert_child(" | ")
            for child in cell.iter(include_text=True):
                part.insert_child(child)
        block.insert_child(part)
    table.insert_before(block)
    table.decompose()


def _fill(tree: LexborHTMLParser, cells: list[list[Any]]) -> None:
    width = max((sum(_span(cell, "colspan", _MOST_COLUMNS) for cell in row) for row in cells), default=0)
    below: dict[int, tuple[Any, int]] = {}  # by column: a cell from above, and its remaining rows
    for row in cells:
        column = 0
        for cell in row:
            for above in _from_above(below, column):
                cell.insert_before(above.clone())
                column += 1
            rowspan, colspan = _span(cell, "rowspan", _MOST_ROWS), _span(cell, "colspan", _MOST_COLUMNS)
            is_title = colspan >= width and len(row) == 1
            for _ in range(colspan - 1):
                cell.insert_after(tree.create_node(cell.tag) if is_title else cell.clone())
            if rowspan > 1:
                below.update((column + extra, (cell, rowspan - 1)) for extra in range(colspan))
            column += colspan
        if row:
            last = row[-1]
            while last.next is not None:  # its own copies
                last = last.next
            for above in reversed(_from_above(below, column)):
                last.insert_after(above.clone())


def _from_above(below: dict[int, tuple[Any, int]], column: int) -> list[Any]:
    """The cells that extend down into this row in the columns from `column` on."""
    found = []
    while column in below:
        cell, rows = below.pop(column)
        if rows > 1:
            below[column] = (cell, rows - 1)
        found.append(cell)
        column += 1
    return found


def _forget_spans(cells: list[list[Any]]) -> None:
    for row in cells:
        for cell in row:
            for name in _SPANS:
                if name in cell.attributes:
                    del cell.attrs[name]


def _area(cell: Any, rows: int) -> int:
    return _span(cell, "colspan", _MOST_COLUMNS) * min(_span(cell, "rowspan", _MOST_ROWS), rows)


def _span(cell: Any, name: str, most: int) -> int:
    digits = (cell.attributes.get(name) or "").strip()
    return min(max(int(digits), 1), most) if digits.isdecimal() and len(digits) < 9 else 1
