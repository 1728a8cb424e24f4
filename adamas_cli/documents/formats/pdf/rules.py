"""The straight lines drawn on a PDF page, which form tables."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pypdfium2.raw as pdfium

from adamas_cli.documents.formats.pdf.characters import quick

MAX_OBJECTS = 20_000  # on a page: with more, it is a drawing
MAX_RULES = 2_000
_MAX_SEGMENTS = 2_000  # in one path
_DEPTH = 4  # of nested forms
_THIN = 3.0  # points: a filled box of at most this height is a line
_SHORTEST = 6.0

_MIN_UPRIGHT = 3  # in a table with two columns
_INT, _POINTER = ctypes.c_int, ctypes.c_void_p

_Matrix = tuple[float, float, float, float, float, float]
_IDENTITY: _Matrix = (1, 0, 0, 1, 0, 0)


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line on the page: at `at`, from `start` to `end`."""

    at: float
    start: float
    end: float


def turned_box(box: tuple[float, float, float, float], turn: int) -> tuple[float, float, float, float]:
    """left, low, right, high of a box in the coordinates of text turned by `turn` quarters."""
    left, low, right, high = box
    return [
        (left, low, right, high),
        (low, -right, high, -left),
        (-right, -high, -left, -low),
        (-high, left, -low, right),
    ][turn]


def may_hold_grid(page: Any) -> bool:
    """Whether an open page draws upright lines that may separate cells."""
    handle = ctypes.cast(page.raw, _POINTER).value
    count = pdfium.FPDFPage_CountObjects(page.raw)
    drawn = (pdfium.FPDF_PAGEOBJ_PATH, pdfium.FPDF_PAGEOBJ_FORM)
    paths = sum(_kind(_object(handle, index)) in drawn for index in range(min(count, MAX_OBJECTS)))
    return paths > 0 and len(Rules(page).turned(0)[1]) >= _MIN_UPRIGHT


class Rules:
    """The rules of a page, across and upright, for text turned by quarters."""

    def __init__(self, page: Any) -> None:
        self._boxes: list[tuple[float, float, float, float]] = []
        count = pdfium.FPDFPage_CountObjects(page.raw)
        if count <= MAX_OBJECTS:
            get = pdfium.FPDFPage_GetObject
            for box in _boxes(page.raw, count, get, _IDENTITY, _DEPTH):
                self._boxes.append(box)
                if len(self._boxes) > MAX_RULES:
                    self._boxes.clear()
                    break

    def turned(self, turn: int) -> tuple[list[Rule], list[Rule]]:
        """Rules across and upright rules, in the coordinates of text turned by `turn` quarters."""
        across, upright = [], []
        for box in self._boxes:
            left, low, right, high = turned_box(box, turn)
            if high - low < _THIN:
                across.append(Rule((low + high) / 2, left, right))
            else:
                upright.append(Rule((left + right) / 2, low, high))
        return across, upright


_object = quick(pdfium.FPDFPage_GetObject, _POINTER, _INT, result=_POINTER)
_kind = quick(pdfium.FPDFPageObj_GetType, _POINTER)


def _boxes(
    holder: Any, count: int, get: Any, matrix: _Matrix, depth: int
) -> Iterator[tuple[float, float, float, float]]:
    """left, low, right, high of lines and of the edges of boxes."""
    for index in range(count):
        thing = get(holder, index)
        kind = pdfium.FPDFPageObj_GetType(thing)
        if kind == pdfium.FPDF_PAGEOBJ_PATH:
            yield from _edges(thing, _times(_matrix(thing), matrix))
        elif kind == pdfium.FPDF_PAGEOBJ_FORM and depth:
            inner = pdfium.FPDFFormObj_CountObjects(thing)
            if 0 < inner <= MAX_OBJECTS:
                moved = _times(_matrix(thing), matrix)
                yield from _boxes(thing, inner, pdfium.FPDFFormObj_GetObject, moved, depth - 1)


def _edges(path: Any, matrix: _Matrix) -> Iterator[tuple[float, float, float, float]]:
    count = pdfium.FPDFPath_CountSegments(path)
    if not 2 <= count <= _MAX_SEGMENTS:
        return
    x, y = ctypes.c_float(), ctypes.c_float()
    pieces: list[list[tuple[float, float]]] = []
    for index in range(count):
        segment = pdfium.FPDFPath_GetPathSegment(path, index)
        pdfium.FPDFPathSegment_GetPoint(segment, x, y)
        point = _moved(x.value, y.value, matrix)
        kind = pdfium.FPDFPathSegment_GetType(segment)
        if kind == pdfium.FPDF_SEGMENT_BEZIERTO:
            return
        if kind == pdfium.FPDF_SEGMENT_MOVETO or not pieces:
            pieces.append([point])
        else:
            pieces[-1].append(point)
        if pdfium.FPDFPathSegment_GetClose(segment):
            pieces[-1].append(pieces[-1][0])
    for points in pieces:
        yield from _straight(points)


def _straight(points: list[tuple[float, float]]) -> Iterator[tuple[float, float, float, float]]:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, low, right, high = min(xs), min(ys), max(xs), max(ys)
    if min(right - left, high - low) < _THIN:
        if max(right - left, high - low) >= _SHORTEST:
            yield left, low, right, high
        return
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        level, plumb = abs(y0 - y1) < 0.5, abs(x0 - x1) < 0.5
        if level != plumb and max(abs(x0 - x1), abs(y0 - y1)) >= _SHORTEST:
            yield min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _matrix(thing: Any) -> _Matrix:
    held = pdfium.FS_MATRIX()
    if not pdfium.FPDFPageObj_GetMatrix(thing, held):
        return _IDENTITY
    return held.a, held.b, held.c, held.d, held.e, held.f


def _times(inner: _Matrix, outer: _Matrix) -> _Matrix:
    a, b, c, d, e, f = inner
    p, q, r, s, t, u = outer
    return (a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s, e * p + f * r + t, e * q + f * s + u)


def _moved(x: float, y: float, matrix: _Matrix) -> tuple[float, float]:
    a, b, c, d, e, f = matrix
    return a * x + c * y + e, b * x + d * y + f
