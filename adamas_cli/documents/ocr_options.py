"""The reader options for the user's choice of OCR on this machine."""

from __future__ import annotations

from typing import Any

from adamas_cli.documents.filtering import Selection
from adamas_cli.documents.formats.ocr import trouble_with
from adamas_cli.errors import UsageError


def ocr_options(selection: Selection) -> dict[str, Any]:
    """The options for the readers of PDFs and pictures; none if OCR is not wanted or not installed.

    Raises UsageError if it is requested but not possible.
    """
    if selection.ocr == "never":
        return {}
    trouble = trouble_with(selection.ocr_language)
    if trouble is not None:
        if selection.ocr == "always" or selection.ocr_language != "auto":
            raise UsageError(trouble)
        return {}
    sample = {"sample": True} if selection.ocr_sample else {}
    return {"ocr": selection.ocr, "language": selection.ocr_language, **sample}
