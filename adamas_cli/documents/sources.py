"""Collects the documents to read from the sources that the user names."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from adamas_cli.documents import latex, remote
from adamas_cli.documents.archives import Archives, Folder, is_archive
from adamas_cli.documents.candidate import Candidate
from adamas_cli.documents.collection import Collection, Reason
from adamas_cli.documents.conversion import Conversion
from adamas_cli.documents.document import Document, shown_path
from adamas_cli.documents.examining import Examiner
from adamas_cli.documents.file_tree import tree
from adamas_cli.documents.filtering import Selection
from adamas_cli.documents.finding import Finder
from adamas_cli.documents.formats.trouble import UnreadableError
from adamas_cli.documents.streams import take_pipe, take_stream
from adamas_cli.documents.web import WITH_MENUS, Page, fetch, reads_main_text
from adamas_cli.errors import NothingReadableError, UsageError
from adamas_cli.progress import Progress

STDIN = "-"
_NO_SUCH_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def collect(
    sources: Sequence[str],
    selection: Selection,
    *,
    stdin: BinaryIO,
    progress: Progress,
    keep_converted: bool = True,
    offline: bool = False,
) -> Collection:
    """Find the documents in `sources`: files, folders, archives of them, pipes, and `-` for stdin.

    Documents are sorted by the bytes of their paths, the same on every machine, so that the model's cache of
    their prefix can be reused. File trees of folders come first; streams come last, because they change most.
    A file reached twice, also by links, is read once. Files of other formats are converted, and their texts
    kept on disk if `keep_converted`. Remote sources (web addresses and git repositories) are fetched unless
    `offline`.

    Raises UsageError for a source that does not exist, a remote one if `offline`, or a wrong pattern;
    NothingReadableError if no document remains; AdamasError if a stream breaks off or a source cannot be
    fetched.
    """
    collection = Collection()
    archives = Archives(selection.max_file_size, collection, progress)
    finder = Finder(selection, collection, archives)
    candidates: dict[str, Candidate] = {}  # by normalized path, so that `src` and `./src/app.py` match
    folders: list[Folder] = []
    streams: list[str] = []
    pages: list[Page] = []
    for source in dict.fromkeys(sources):
        if source != STDIN and remote.is_remote(source):
            if offline:
                raise remote.refuse(source)
            elsewhere = remote.repository(source)
            if elsewhere is not None:
                from adamas_cli.documents.clones import clone

                folders.append(Folder(elsewhere.shown, clone(elsewhere, progress)))
                continue
            page = fetch(source, progress)
            if not selection.text and _is_archive(page.path):
                folders += finder.unpacked(page.path, page.address)
            else:
                pages.append(page)
            continue
        status = None if source == STDIN else _status(source, collection)
        if source == STDIN or (status is not None and _is_stream(status)):
            streams.append(source)
        elif status is not None and stat.S_ISDIR(status.st_mode):
            folders.append(Folder(source, source))
        elif status is not None and not selection.text and _is_archive(source):
            folders += finder.unpacked(source, source)
        elif status is not None:
            candidates[os.path.normpath(source)] = Candidate(source, status)
    with progress.task("finding files", None, "files") as advance:
        for folder in folders:
            for name, candidate in finder.candidates(folder):
                candidates.setdefault(name, candidate)
                advance(1)
    if not selection.text:
        _leave_to_latex(candidates, collection)
    with Conversion(progress, keep=keep_converted) as conversion:
        examiner = Examiner(selection, collection, conversion)
        with progress.task("looking into files", len(candidates), "files") as advance:
            taken = _examine(candidates, examiner, collection, advance)

        def take_archive(path: str, name: str) -> None:
            for folder in finder.unpacked(path, name):
                folders.append(folder)
                inside = dict(finder.candidates(folder))
                candidates.update(inside)
                taken.update(_examine(inside, examiner, collection, lambda _: None))

        for page in pages:
            if page.is_page and not reads_main_text() and not selection.whole_pages:
                collection.notes.append(f"{page.address}: {WITH_MENUS}")
            examiner.fetched(page)
        for source in streams:
            if source == STDIN:
                take_stream("stdin", stdin, examiner, progress, take_archive)
            else:
                take_pipe(source, examiner, progress, take_archive)
    if selection.tree:
        collection.documents[:0] = _trees(folders, candidates, taken)
    if not collection.documents:
        raise _nothing_readable(sources, collection)
    return collection


def read_file_list(stream: BinaryIO, nul: bool) -> list[str]:
    """The paths in `stream`, one per line or, with `nul`, each ended by a NUL byte; empty ones are dropped.

    A path `-` is a file of that name, not stdin.
    """
    paths = stream.read().split(b"\0") if nul else stream.read().splitlines()
    return [os.path.join(os.curdir, STDIN) if path == b"-" else os.fsdecode(path) for path in paths if path]


def _status(source: str, collection: Collection) -> os.stat_result | None:
    """The status of `source`, following links; None, and counted, if permission is missing."""
    try:
        return os.stat(source)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        if isinstance(error, OSError) and error.errno not in _NO_SUCH_PATH:
            collection.add(source, Reason.UNREADABLE)
            return None
        shown = shown_path(source) if source else source
        raise UsageError(f"There is no file or folder '{shown}'.", path=shown) from error


def _is_stream(status: os.stat_result) -> bool:
    """Whether it has no size before it is read: a pipe, or a file of /proc, which claims to be empty."""
    return stat.S_ISFIFO(status.st_mode) or (stat.S_ISREG(status.st_mode) and not status.st_size)


def _leave_to_latex(candidates: dict[str, Candidate], collection: Collection) -> None:
    """Drop the files that a named LaTeX document includes: they are read with it."""
    named = [found for found in candidates.values() if found.folder is None and latex.takes_in(found.path)]
    if not named:
        return
    taken = {path for candidate in named for path in latex.Expanded.of(candidate.path).taken}
    for name, candidate in list(candidates.items()):
        if os.path.realpath(candidate.path) in taken and not stat.S_ISLNK(candidate.status.st_mode):
            del candidates[name]
            collection.add(name, Reason.SAME)


def _is_archive(source: str) -> bool:
    try:
        return is_archive(source, source)
    except (OSError, UnreadableError):  # reported when it is read
        return False


def _examine(
    candidates: dict[str, Candidate],
    examiner: Examiner,
    collection: Collection,
    advance: Callable[[int], None],
) -> dict[str, Document]:
    """Add those of `candidates` that hold text, in path order, and count the others.

    Returns the documents by their paths.
    """
    taken: dict[str, Document] = {}
    read: set[tuple[int, int]] = set()
    for path in sorted(candidates, key=os.fsencode):
        candidate = candidates[path]
        identity = (candidate.status.st_dev, candidate.status.st_ino)
        if identity in read:
            collection.add(path, Reason.SAME)
        elif (document := examiner.take(path, candidate)) is not None:
            read.add(identity)
            taken[path] = document
        advance(1)
    return taken


def _trees(
    folders: Sequence[Folder], candidates: dict[str, Candidate], taken: Iterable[str]
) -> Iterator[Document]:
    """The file tree of each folder with more than one document, ordered by name."""
    below: dict[str, list[str]] = {folder.name: [] for folder in folders}
    for candidate in map(candidates.__getitem__, taken):
        if candidate.folder is not None:
            below.setdefault(candidate.folder.name, []).append(candidate.below)
    for folder in sorted(below, key=os.fsencode):
        if len(below[folder]) > 1:
            yield tree(folder, below[folder])


def _nothing_readable(sources: Sequence[str], collection: Collection) -> NothingReadableError:
    if not sources:
        return NothingReadableError("No document was named: give files, folders, or - for stdin.")
    named = ", ".join("stdin" if source == STDIN else shown_path(source) for source in sources[:3])
    if len(sources) > 3:
        named += f" and {len(sources) - 3:,} more"
    if not collection.skipped:
        advice = "no files are left; `hidden`, `no_gitignore` and `include` choose others"
        return NothingReadableError(f"Nothing to read in {named}: {advice}.")
    why = "; ".join([*collection.note_lines(), collection.skipped_line() or ""])
    return NothingReadableError(f"Nothing readable in {named}: {why}.", skipped=dict(collection.skipped))
