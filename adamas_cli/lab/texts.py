"""Texts to measure on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from adamas_cli.errors import UsageError

DIGITS = 12  # of a sha256


def read_text(path: Path) -> tuple[str, str]:
    """A UTF-8 text, and the first digits of its bytes' sha256. Raises UsageError."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8"), hashlib.sha256(data).hexdigest()[:DIGITS]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"`text` {path}: {reason}") from None
