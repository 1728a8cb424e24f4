"""The files of a folder that may become documents, including those of nested archives."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from adamas_cli.documents.archives import DEEPEST, Archives, Folder, is_archive
from adamas_cli.documents.candidate import Candidate
from adamas_cli.documents.collection import Collection, Reason
from adamas_cli.documents.filtering import Choice, Selection
from adamas_cli.documents.formats.trouble import UnreadableError
from adamas_cli.documents.generated import Origins
from adamas_cli.documents.listing import Entry, Lister


class Finder:
    """Finds the files of a selection; unreadable folders are counted in `collection`."""

    def __init__(self, selection: Selection, collection: Collection, archives: Archives) -> None:
        """Raises UsageError for a wrong pattern."""
        self._generated = selection.generated
        self._collection = collection
        self._archives = archives
        self._choice = Choice(selection)
        self._use_ignore_files = selection.gitignore

    def unpacked(self, path: str, name: str) -> list[Folder]:
        """The folder unpacked from the archive at `path`, called `name`, and those of archives inside it;
        empty if it cannot be unpacked, which is counted.
        """
        return self._unpacked(path, name, None, 1)

    def candidates(self, folder: Folder) -> Iterator[tuple[str, Candidate]]:
        """The candidates below a folder with their names, in no particular order."""

        def count(path: str, reason: Reason) -> None:
            self._collection.add(folder.name_of(path), reason)

        origins = None if self._generated else Origins.of(folder.path)
        for entry in self._entries(folder, count):
            name = folder.name_of(entry.path)
            if "://" not in name:
                name = os.path.normpath(name)
            yield name, Candidate(entry.path, entry.status, folder, origins, folder.holder)

    def _entries(self, folder: Folder, count: Callable[[str, Reason], None]) -> Iterator[Entry]:
        return Lister(self._choice, self._use_ignore_files, count).entries(folder.path)

    def _unpacked(self, path: str, name: str, around: Folder | None, depth: int) -> list[Folder]:
        try:
            folder = self._archives.unpacked(path, name, around)
        except UnreadableError as error:
            self._collection.add(name, error.trouble, error.why)
            return []
        except OSError:
            self._collection.add(name, Reason.UNREADABLE)
            return []
        folders = [folder]
        if depth < DEEPEST:
            for entry in list(self._entries(folder, lambda path, reason: None)):
                if _is_archive(entry):
                    folders += self._unpacked(entry.path, folder.name_of(entry.path), folder, depth + 1)
                    os.unlink(entry.path)  # its files are listed instead
        return folders


def _is_archive(entry: Entry) -> bool:
    try:
        return stat.S_ISREG(entry.status.st_mode) and is_archive(entry.path, entry.path)
    except (OSError, UnreadableError):  # reported when it is read
        return False
