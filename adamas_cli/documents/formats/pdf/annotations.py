"""PDF content outside the text of the pages: form field values, text boxes and notes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pypdfium2.raw as pdfium

MAX_ANNOTATIONS = 5_000  # on a page
MAX_CHARACTERS = 100_000  # in one annotation
_LINE = 12.0  # points: height of the line on which a value is placed
_HIDDEN = pdfium.FPDF_ANNOT_FLAG_HIDDEN | pdfium.FPDF_ANNOT_FLAG_NOVIEW
_NOT_NOTES = (
    pdfium.FPDF_ANNOT_LINK, pdfium.FPDF_ANNOT_POPUP, pdfium.FPDF_ANNOT_WIDGET, pdfium.FPDF_ANNOT_FREETEXT
)  # fmt: skip
_TICKED = (pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON)
_CHOSEN = (pdfium.FPDF_FORMFIELD_COMBOBOX, pdfium.FPDF_FORMFIELD_LISTBOX)
_WITHOUT_VALUE = (pdfium.FPDF_FORMFIELD_PUSHBUTTON, pdfium.FPDF_FORMFIELD_SIGNATURE)
_PASSWORD = 1 << 13  # a flag of text fields


@dataclass(frozen=True, slots=True)
class Annotation:
    """A text and its place on the page: left, low, right, high. `note`: a comment on the page's text."""

    text: str
    box: tuple[float, float, float, float]
    note: bool = False


def annotations_of(page: Any) -> list[Annotation]:
    """The visible annotations of an open page, in file order."""
    count = min(pdfium.FPDFPage_GetAnnotCount(page.raw), MAX_ANNOTATIONS)
    form = page.formenv.raw if page.formenv else None
    found: list[Annotation] = []
    for index in range(count):
        handle = pdfium.FPDFPage_GetAnnot(page.raw, index)
        if handle:
            try:
                found += _read(handle, form)
            finally:
                pdfium.FPDFPage_CloseAnnot(handle)
    return found


def _read(handle: Any, form: Any) -> Iterator[Annotation]:
    kind = pdfium.FPDFAnnot_GetSubtype(handle)
    if pdfium.FPDFAnnot_GetFlags(handle) & _HIDDEN:
        return
    rect = pdfium.FS_RECTF()
    pdfium.FPDFAnnot_GetRect(handle, rect)
    low, high = sorted((rect.bottom, rect.top))
    line = (rect.left, max(low, high - _LINE) if high - low > 2 * _LINE else low, rect.right, high)
    if kind == pdfium.FPDF_ANNOT_WIDGET:
        if value := _field(handle, form):
            yield Annotation(value, line)
    elif text := _text(handle, b"Contents"):
        if kind == pdfium.FPDF_ANNOT_FREETEXT:
            yield Annotation(text, line)
        elif kind not in _NOT_NOTES:
            author = _text(handle, b"T")
            yield Annotation(f"[note{f' by {author}' if author else ''}: {text}]", line, note=True)


def _field(handle: Any, form: Any) -> str:
    """A field with its value, such as `[surname: Lovelace]`; empty if it has no value or is secret."""
    if form is None:
        name, value = _text(handle, b"T"), _text(handle, b"V")
        return f"[{name}: {value}]" if value else ""
    kind = pdfium.FPDFAnnot_GetFormFieldType(form, handle)
    name = _string(pdfium.FPDFAnnot_GetFormFieldAlternateName, form, handle)
    name = name or _string(pdfium.FPDFAnnot_GetFormFieldName, form, handle)
    if kind in _TICKED:
        ticked = bool(pdfium.FPDFAnnot_IsChecked(form, handle))
        if kind == pdfium.FPDF_FORMFIELD_CHECKBOX:
            return f"[{name}: {'yes' if ticked else 'no'}]"
        value = _string(pdfium.FPDFAnnot_GetFormFieldExportValue, form, handle) if ticked else ""
    elif kind in _WITHOUT_VALUE or pdfium.FPDFAnnot_GetFormFieldFlags(form, handle) & _PASSWORD:
        return ""
    else:
        value = ", ".join(_chosen(form, handle)) if kind in _CHOSEN else ""
        value = value or _string(pdfium.FPDFAnnot_GetFormFieldValue, form, handle)
    return f"[{name}: {value}]" if value else ""


def _chosen(form: Any, handle: Any) -> Iterator[str]:
    for index in range(min(pdfium.FPDFAnnot_GetOptionCount(form, handle), MAX_ANNOTATIONS)):
        if pdfium.FPDFAnnot_IsOptionSelected(form, handle, index):
            yield _string(pdfium.FPDFAnnot_GetOptionLabel, form, handle, index)


def _text(handle: Any, key: bytes) -> str:
    return _string(pdfium.FPDFAnnot_GetStringValue, handle, key)


def _string(function: Callable[..., int], *arguments: Any) -> str:
    """A string that PDFium writes into our buffer, on one line."""
    size = min(function(*arguments, None, 0), 2 * MAX_CHARACTERS)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    function(*arguments, ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)), size)
    return " ".join(buffer.raw.decode("utf-16-le", errors="replace").split("\0")[0].split())
