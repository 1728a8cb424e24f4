"""Why a file of a known format cannot be read."""

from __future__ import annotations

from enum import StrEnum

from adamas_cli.errors import AdamasError


class Trouble(StrEnum):
    """What is reported instead of the file."""

    DAMAGED = "damaged"
    ENCRYPTED = "encrypted"
    NO_TEXT = "without text"
    SCANNED = "without text (scanned?)"
    TOO_LARGE = "too large when unpacked"
    TOO_DEEP = "nested too deeply"
    TOO_SLOW = "too slow to convert"
    TOO_HUNGRY = "using too much memory"
    NO_OFFICE = "need adamas[office]"  # counted by suffix: "3 .pptx need adamas[office]"
    NO_OCR = "need adamas[ocr]"
    CHANGED = "changed while it was converted"


EXTRAS = (Trouble.NO_OFFICE, Trouble.NO_OCR)  # an extra would read them


class UnreadableError(AdamasError):
    """A reader gives up: `trouble` is what is counted, `why` has the details."""

    def __init__(self, trouble: Trouble, why: str = "") -> None:
        super().__init__(f"{trouble}: {why}" if why else trouble)
        self.trouble = trouble
        self.why = why
