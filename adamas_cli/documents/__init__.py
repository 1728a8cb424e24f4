"""From paths and streams to text: walk, ignore, decode, convert."""

from __future__ import annotations

from adamas_cli.documents.collection import Collection, Reason
from adamas_cli.documents.document import Document
from adamas_cli.documents.filtering import DEFAULT_MAX_FILE_SIZE, Selection
from adamas_cli.documents.parts import Part
from adamas_cli.documents.sources import STDIN, collect, read_file_list

__all__ = [
    "DEFAULT_MAX_FILE_SIZE",
    "STDIN",
    "Collection",
    "Document",
    "Part",
    "Reason",
    "Selection",
    "collect",
    "read_file_list",
]
