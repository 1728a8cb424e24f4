"""Listing files while other processes add and remove some."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from adamas_cli.files import files_below, size_of


def test_folders_may_go_while_they_are_listed(tmp_path: Path) -> None:
    (tmp_path / "stays").write_bytes(b"12345")
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for number in range(20):
                folder = tmp_path / f"unpacked{number}" / "below"
                folder.mkdir(parents=True)
                (folder / "file").write_bytes(b"1")
            for number in range(20):
                shutil.rmtree(tmp_path / f"unpacked{number}")

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(300):
            assert max(map(size_of, files_below(tmp_path))) == 5
    finally:
        stop.set()
        other.join()


def test_a_file_that_is_gone_has_no_bytes(tmp_path: Path) -> None:
    assert size_of(tmp_path / "gone") == 0
    assert list(files_below(tmp_path / "gone")) == []
