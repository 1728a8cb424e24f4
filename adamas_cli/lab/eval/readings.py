"""Ways to read a document, each with what it leaves out of attention."""

from __future__ import annotations

from adamas_kernels.reading import ReadSettings

DENSE = "dense"
READINGS: dict[str, ReadSettings | None] = {DENSE: None, "sparse": ReadSettings()}
