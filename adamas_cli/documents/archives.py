"""Archives that the user names, read like folders."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass

from adamas_cli.documents.collection import Collection
from adamas_cli.documents.decoding import HEAD_BYTES
from adamas_cli.documents.document import Content, File
from adamas_cli.documents.formats.reader import Reader
from adamas_cli.documents.formats.recognize import Format, recognized
from adamas_cli.documents.gzipped import Gzipped, compression
from adamas_cli.documents.remark import Remark
from adamas_cli.progress import Progress

DEEPEST = 3  # archives inside archives
MAX_MEMBERS = 100_000
MAX_BYTES = 2**30  # unpacked bytes of one archive and the archives inside it


@dataclass(frozen=True)
class Folder:
    """A folder to read: its shown name and its path. `holder`: deletes it once nothing refers to it."""

    name: str
    path: str
    holder: object | None = None

    def name_of(self, path: str) -> str:
        """The shown name of a path below this folder."""
        return self.name + path[len(self.path) :] if self.name != self.path else path


class _Passing:
    """A temporary folder, deleted with the last document in it."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="adamas-")
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        self.left = MAX_BYTES
        self.count = 0

    def another(self) -> str:
        """A new empty subfolder."""
        self.count += 1
        path = os.path.join(self.path, str(self.count))
        os.mkdir(path)
        return path


def is_archive(path: str, name: str) -> bool:
    """Whether the file at `path`, called `name`, is an archive of files. Raises OSError, UnreadableError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        head = file.read(HEAD_BYTES)
        size = os.fstat(descriptor).st_size
    return kind_inside(head, File(path, size), size, name) is Format.ARCHIVE


def kind_inside(head: bytes, content: Content, size: int, name: str) -> Format | None:
    """The format of a file that begins with `head`, or of the file compressed in it.
    Raises OSError, UnreadableError.
    """
    packed = compression(head)
    if packed is None:
        return recognized(head, name)
    inside = b""
    for block in Gzipped(content, size, packed).blocks():
        inside += block
        if len(inside) >= HEAD_BYTES:
            break
    stem, suffix = os.path.splitext(name)
    inner = f"{stem}.tar" if suffix.lower() in (".tgz", ".tbz2", ".txz") else stem
    return recognized(inside[:HEAD_BYTES], inner)


class Archives:
    """Unpacks the archives of one collection in a supervised process."""

    def __init__(self, largest: int | None, collection: Collection, progress: Progress) -> None:
        """largest: size in bytes of the largest file to unpack."""
        self._largest = largest
        self._collection = collection
        self._progress = progress

    def unpacked(self, path: str, name: str, around: Folder | None = None) -> Folder:
        """Unpack the archive at `path`, called `name`, into a folder. `around`: the folder it was found in.

        Raises UnreadableError, and OSError if the disk is full.
        """
        holder = around.holder if around is not None else None
        passing = holder if isinstance(holder, _Passing) else _Passing()
        into = passing.another()
        with Reader() as reader, self._progress.task(f"unpacking {name}", None, "files") as advance:
            options = {"into": into, "largest": self._largest, "total": passing.left, "most": MAX_MEMBERS}
            for found in reader.read(Format.ARCHIVE, path, **options):
                if isinstance(found, Remark):
                    for _ in range(found.count):
                        self._collection.add(name, found.kind)
                else:
                    advance(1000)
        passing.left -= _size(into)
        return Folder(name, into, passing)


def _size(folder: str) -> int:
    """The total size in bytes of all files below a folder."""
    places = os.walk(folder)
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in places for name in names)
