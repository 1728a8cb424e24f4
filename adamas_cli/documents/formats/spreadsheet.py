"""Spreadsheets (.xlsx, .xlsm, .xlsb, .xls, .ods): each sheet as a table of its values."""

from __future__ import annotations

import datetime
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from adamas_cli.documents.formats.archive import open_archive
from adamas_cli.documents.formats.markdown_table import table
from adamas_cli.documents.formats.markup import label
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

_LINES = 500  # lines of a table per part
_WHOLE = 2**53  # floats represent every whole number below this
_BESIDE = (
    ("pictures", re.compile(r"(?:xl/media|Pictures)/.")),
    ("charts", re.compile(r"xl/charts/chart\d+\.xml|Object \d+/content\.xml")),
)
_COMMENTS = re.compile(r"xl/(?:threadedC|c)omments/?.*\.xml")
_COMMENT = re.compile(rb"<(?:\w+:)?(?:threadedC|c)omment\s")


def read(path: str) -> Iterator[Part | Remark]:
    """A section for each sheet, "sheet Budget"; formulas are read as their last values. Raises
    UnreadableError, and what calamine raises for damaged files.
    """
    from python_calamine import CalamineWorkbook, PasswordError, SheetTypeEnum, SheetVisibleEnum

    with open(path, "rb") as file:
        zipped = zipfile.is_zipfile(file)
        if zipped:
            yield from _beside(path)
        file.seek(0)
        try:
            book = CalamineWorkbook.from_filelike(file)
        except PasswordError as error:
            raise UnreadableError(Trouble.ENCRYPTED) from error
        for sheet in book.sheets_metadata:
            if sheet.typ is not SheetTypeEnum.WorkSheet:
                yield Remark("sheets of charts or macros")
                continue
            hidden = "" if sheet.visible is SheetVisibleEnum.Visible else " (hidden)"
            name = f"sheet {label(sheet.name)}{hidden}"
            rows = book.get_sheet_by_name(sheet.name).iter_rows()
            yield from _sheet(name, table([shown(value) for value in row] for row in rows))


def shown(value: Any) -> str:
    """A cell's value as people write it: whole numbers without a point, dates without midnight."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < _WHOLE else f"{value:.15g}"
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat(sep=" ", timespec="seconds")
    return str(value)


def _sheet(name: str, lines: Iterable[str]) -> Iterator[Part]:
    section: str | None = name
    held = [f"[{name}]\n"]
    for line in lines:
        held.append(line)
        if len(held) >= _LINES:
            yield Part("".join(held), section)
            held, section = [], None
    if section is None or len(held) > 1:
        yield Part("".join([*held, "\n"]), section)


def _beside(path: str) -> Iterator[Remark]:
    """Remarks on content that calamine does not report. Raises UnreadableError."""
    with open_archive(path) as archive:
        names = archive.namelist()
        for kind, pattern in _BESIDE:
            if count := sum(bool(pattern.match(name)) for name in names):
                yield Remark(kind, count)
        comments = [name for name in names if _COMMENTS.fullmatch(name)]
        if count := sum(len(_COMMENT.findall(archive.read(name))) for name in comments):
            yield Remark("comments", count)
