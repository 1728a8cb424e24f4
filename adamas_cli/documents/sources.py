"""From what the user names to the documents that will be read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from adamas_cli.documents.collection import Collection, Reason
from adamas_cli.documents.decoding import HEAD_BYTES, is_binary
from adamas_cli.documents.document import Document, File, shown_path
from adamas_cli.documents.filtering import Choice, Selection
from adamas_cli.documents.formats import notebook
from adamas_cli.documents.listing import Lister
from adamas_cli.documents.streams import read_pipe, read_stream
from adamas_cli.errors import NothingReadableError, UsageError
from adamas_cli.progress import Progress

STDIN = "-"
_NO_SUCH_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A path that may become a document; one that the user named may be of any size."""

    path: str
    status: os.stat_result
    named: bool


def collect(
    sources: Sequence[str], selection: Selection, *, stdin: BinaryIO, progress: Progress
) -> Collection:
    """Find the documents in `sources`: files, folders, pipes, and `-` for stdin.

    Documents come sorted by the bytes of their paths, the same on every machine, so that the prefix they make
    in the model's cache serves again; streams come last, because they change most. A file reached twice, by
    links too, is read once.

    Raises UsageError for a source that does not exist and for a wrong pattern, NothingReadableError when no
    document is left, AdamasError when a stream breaks off.
    """
    collection = Collection()
    lister = Lister(
        Choice(selection), selection.gitignore, lambda path: collection.add(path, Reason.UNREADABLE)
    )
    candidates: dict[str, _Candidate] = {}  # by normalized path, so that `src` and `./src/app.py` meet
    folders: list[str] = []
    streams: list[str] = []
    for source in dict.fromkeys(sources):
        status = None if source == STDIN else _status(source, collection)
        if source == STDIN or (status is not None and _is_stream(status)):
            streams.append(source)
        elif status is not None and stat.S_ISDIR(status.st_mode):
            folders.append(source)
        elif status is not None:
            candidates[os.path.normpath(source)] = _Candidate(source, status, named=True)
    with progress.task("finding files", None, "files") as advance:
        for folder in folders:
            for entry in lister.entries(folder):
                candidate = _Candidate(entry.path, entry.status, named=False)
                candidates.setdefault(os.path.normpath(entry.path), candidate)
                advance(1)
    with progress.task("looking into files", len(candidates), "files") as advance:
        _read_heads(candidates, selection.max_file_size, collection, advance)
    for source in streams:
        if source == STDIN:
            collection.add("stdin", read_stream("stdin", stdin, progress))
        else:
            collection.add(source, read_pipe(source, progress))
    if not collection.documents:
        raise _nothing_readable(sources, collection)
    return collection


def read_file_list(stream: BinaryIO, nul: bool) -> list[str]:
    """The paths in `stream`, one a line or, with `nul`, each ended by a NUL byte; empty ones are dropped.

    A path `-` is a file of that name, not stdin.
    """
    paths = stream.read().split(b"\0") if nul else stream.read().splitlines()
    return [os.path.join(os.curdir, STDIN) if path == b"-" else os.fsdecode(path) for path in paths if path]


def _status(source: str, collection: Collection) -> os.stat_result | None:
    """What `source` leads to, links followed; None, and counted, where permission is missing."""
    try:
        return os.stat(source)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        if isinstance(error, OSError) and error.errno not in _NO_SUCH_PATH:
            collection.add(source, Reason.UNREADABLE)
            return None
        shown = shown_path(source) if source else source
        raise UsageError(f"There is no file or folder '{shown}'.", path=shown) from error


def _is_stream(status: os.stat_result) -> bool:
    """Whether it has no size before it is read: a pipe, or a file of /proc, which says that it is empty."""
    return stat.S_ISFIFO(status.st_mode) or (stat.S_ISREG(status.st_mode) and not status.st_size)


def _read_heads(
    candidates: dict[str, _Candidate],
    max_size: int | None,
    collection: Collection,
    advance: Callable[[int], None],
) -> None:
    """Add those of `candidates` that hold text, in the order of their paths, and count the others."""
    read: set[tuple[int, int]] = set()
    for path in sorted(candidates, key=os.fsencode):
        candidate = candidates[path]
        identity = (candidate.status.st_dev, candidate.status.st_ino)
        found = Reason.SAME if identity in read else _examined(path, candidate, max_size)
        if isinstance(found, Document):
            read.add(identity)
        collection.add(path, found)
        advance(1)


def _examined(path: str, candidate: _Candidate, max_size: int | None) -> Document | Reason:
    mode, size = candidate.status.st_mode, candidate.status.st_size
    is_notebook = path.lower().endswith(".ipynb")
    if stat.S_ISLNK(mode):
        return Reason.LINK if os.path.exists(candidate.path) else Reason.BROKEN_LINK
    if not stat.S_ISREG(mode):
        return Reason.SPECIAL
    if not size:
        return Reason.EMPTY
    if max_size is not None and size > max_size and not candidate.named:
        return Reason.TOO_LARGE
    if is_notebook and size > notebook.MAX_BYTES:
        return Reason.NOTEBOOK_TOO_LARGE
    try:
        head = _head(candidate.path)
    except FileNotFoundError:
        return Reason.VANISHED
    except OSError:
        return Reason.UNREADABLE
    if is_binary(head):
        return Reason.BINARY
    return Document(shown_path(path), size, File(candidate.path, size), is_notebook)


def _head(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never waits, even if a pipe has taken its place
    try:
        return os.read(descriptor, HEAD_BYTES)
    finally:
        os.close(descriptor)


def _nothing_readable(sources: Sequence[str], collection: Collection) -> NothingReadableError:
    if not sources:
        return NothingReadableError("No document was named: give files, folders, or - for stdin.")
    named = ", ".join("stdin" if source == STDIN else shown_path(source) for source in sources[:3])
    if len(sources) > 3:
        named += f" and {len(sources) - 3:,} more"
    if not collection.skipped:
        advice = "no files are left; --hidden, --no-gitignore and --include choose others"
        return NothingReadableError(f"Nothing to read in {named}: {advice}.")
    return NothingReadableError(
        f"Nothing readable in {named}: {collection.skipped_line()}.", skipped=dict(collection.skipped)
    )
