"""The characters of a PDF page with their positions, through PDFium's own functions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pypdfium2.raw as pdfium

if TYPE_CHECKING:
    import numpy as np

HYPHEN_MARK = "\x02"  # replaces a hyphen at which PDFium saw a line end
_GIVEN_MARK = "\ufffe"  # PDFium's own mark for it in the text of a whole page
_INT, _POINTER = ctypes.c_int, ctypes.c_void_p


def quick(function: Any, *arguments: Any, result: Any = _INT) -> Any:
    """A PDFium function that takes addresses as numbers, which halves the time of a call."""
    address = ctypes.cast(function, _POINTER).value
    assert address is not None
    return ctypes.CFUNCTYPE(result, *arguments)(address)


_box = quick(pdfium.FPDFText_GetLooseCharBox, _POINTER, _INT, _POINTER)
_unicode = quick(pdfium.FPDFText_GetUnicode, _POINTER, _INT)


class Gap(NamedTuple):
    """White space in a line: the indices of its first space and of the next character, and its left and right
    edge. `width`: of the narrower of the two characters beside it.
    """

    at: int
    behind: int
    left: float
    right: float
    width: float


class Characters:
    """The text of a page, with a position for each character.

    text: with `\\r\\n` where PDFium sees a new line, spaces where it sees a gap, and `HYPHEN_MARK`s.
    """

    def __init__(self, page: Any) -> None:
        self._page = page.get_textpage()  # lives as long as this object
        self._handle = ctypes.cast(self._page.raw, _POINTER).value
        count = self._page.count_chars()
        text = self._page.get_text_range() if count else ""
        if len(text) != count:  # it omits characters without a code, and splits large codes in two
            text = "".join(_character(_unicode(self._handle, index)) for index in range(count))
        self.text: str = text.replace(_GIVEN_MARK, HYPHEN_MARK)
        self._one = (ctypes.c_float * 4)()
        self._address = ctypes.addressof(self._one)

    def box(self, index: int) -> tuple[float, float, float, float]:
        """left, top, right, bottom in points, with y upwards; the height is the font's."""
        _box(self._handle, index, self._address)
        return tuple(self._one)

    def gaps(self, start: int, end: int, least: float, back: float) -> Iterator[Gap]:
        """The gaps between words of a line that are wider than `least`, or go back by more than `back`."""
        text, one, handle, address = self.text, self._one, self._handle, self._address
        at = text.find(" ", start, end)
        while at >= 0:
            behind = at + 1
            while text[behind] == " ":
                behind += 1
            _box(handle, behind, address)
            right = one[0]
            _box(handle, at - 1, address)
            if not -back < right - one[2] <= least:
                left, width = one[2], one[2] - one[0]
                _box(handle, behind, address)
                yield Gap(at, behind, left, right, min(width, one[2] - one[0]))
            at = text.find(" ", behind, end)

    def boxes(self) -> np.ndarray:
        """float32 [characters, 4]: the boxes of all characters."""
        import numpy as np

        count = len(self.text)
        held = np.zeros((count, 4), np.float32)
        address = held.ctypes.data
        for index in range(count):
            _box(self._handle, index, address + 16 * index)
        return held

    def angle(self, index: int) -> float:
        """A character's clockwise rotation in radians, from 0 to 2π."""
        return float(pdfium.FPDFText_GetCharAngle(self._page.raw, index))


def _character(code: int) -> str:
    return "\ufffd" if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF else chr(code)
