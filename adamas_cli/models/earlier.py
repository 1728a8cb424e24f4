"""Removes model data that earlier versions kept on disk; this version reads the model's own file instead."""

from __future__ import annotations

import shutil
from pathlib import Path

from adamas_cli.files import files_below, size_of
from adamas_cli.models.places import packed_directory, weights_directory
from adamas_cli.progress import Progress


def remove_earlier(progress: Progress) -> None:
    """Delete weights that earlier versions unpacked or packed, with a note of the space freed; undeletable
    files stay.
    """
    for folder in (weights_directory(), packed_directory()):
        if not folder.is_dir():
            continue
        before = _bytes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        freed = before - (_bytes(folder) if folder.is_dir() else 0)
        if freed:
            progress.note(
                f"freed {freed / 1e6:,.0f} MB in {folder}: weights are read from the model's own file now"
            )


def _bytes(folder: Path) -> int:
    return sum(map(size_of, files_below(folder)))
