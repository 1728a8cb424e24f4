"""Sources that are read apart from each other, each one when its turn comes, maybe by another process.

`collect` looks into all files at once, for one prompt. Here they are only listed first, with size and time.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from adamas_cli.documents import remote
from adamas_cli.documents.archives import Archives, Folder
from adamas_cli.documents.candidate import Candidate
from adamas_cli.documents.collection import Collection
from adamas_cli.documents.conversion import Conversion
from adamas_cli.documents.document import Document, shown_path
from adamas_cli.documents.examining import Examiner
from adamas_cli.documents.filtering import Selection
from adamas_cli.documents.finding import Finder
from adamas_cli.documents.generated import Origins
from adamas_cli.documents.sources import STDIN, collect
from adamas_cli.errors import AdamasError, NothingReadableError, UsageError
from adamas_cli.progress import Progress

_TIMES = ("mtime", "LastModified", "updated", "last_modified", "ETag")  # what file systems of fsspec tell


@dataclass(frozen=True)
class Source:
    """One file, page or repository. name: safe to print, and unique. address: its absolute path, or where it
    is fetched from. version: changes with its content, as far as a listing tells. folder: the listed folder
    that it was found in, with its shown name; None if it was named itself.
    """

    name: str
    address: str
    bytes: int = 0
    version: str = ""
    folder: tuple[str, str] | None = None


def listed(
    sources: Sequence[str], selection: Selection, *, progress: Progress, offline: bool = False
) -> tuple[list[Source], Collection]:
    """The sources that paths, folders, glob patterns, addresses and fsspec URLs name, sorted by name, and
    what was left out of folders.

    Raises UsageError for a path, pattern or URL that names nothing, for stdin, and for a remote one if
    `offline`.
    """
    collection = Collection()
    found: dict[str, Source] = {}
    finder = Finder(selection, collection, Archives(selection.max_file_size, collection, progress))
    with progress.task("finding files", None, "files") as advance:
        for named in dict.fromkeys(sources):
            for source in _expanded(named, finder, offline=offline):
                found.setdefault(source.name, source)
                advance(1)
    return sorted(found.values(), key=lambda source: os.fsencode(source.name)), collection


@contextmanager
def opened(
    source: Source, selection: Selection, *, progress: Progress, keep_converted: bool, offline: bool = False
) -> Iterator[list[Document]]:
    """The documents of one source, in a scope in which they can be read: one, or those of an archive or a
    repository.

    Raises NothingReadableError if there is no text, with the reason, and AdamasError if it cannot be fetched.
    """

    def collected(address: str) -> list[Document]:
        chosen = replace(selection, tree=False)
        with open(os.devnull, "rb") as nothing:
            options: dict[str, Any] = {"keep_converted": keep_converted, "offline": offline}
            return collect([address], chosen, stdin=nothing, progress=progress, **options).documents

    def named(documents: list[Document], address: str) -> list[Document]:
        shown = shown_path(address)
        return [replace(one, path=source.name + one.path.removeprefix(shown)) for one in documents]

    if source.folder is not None:
        with Conversion(progress, keep=keep_converted) as conversion:
            yield [_found_in_folder(source, source.folder, selection, conversion)]
    elif _is_elsewhere(source.address):
        with tempfile.TemporaryDirectory(prefix="adamas-") as folder:
            copy = os.path.join(folder, os.path.basename(source.address) or "document")
            _fetch(source.address, copy)
            yield named(collected(copy), copy)
    elif remote.is_remote(source.address):
        yield collected(source.address)
    else:
        yield named(collected(source.address), source.address)


def _expanded(named: str, finder: Finder, *, offline: bool) -> Iterator[Source]:
    """The sources behind one name on the command line."""
    if named == STDIN:
        raise UsageError("stdin cannot be read apart: write it to a file first")
    if _is_elsewhere(named):
        if offline and not named.startswith(("file:", "memory:")):
            raise remote.refuse(named)
        yield from _on_file_system(named)
    elif remote.is_remote(named):
        if offline:
            raise remote.refuse(named)
        yield Source(remote.shown_address(named), named)
    else:
        for path in _matches(named):
            if os.path.isdir(path):
                folder = Folder(path, path)
                for name, candidate in finder.candidates(folder):
                    yield _file(name, candidate.path, candidate.status, (path, os.path.abspath(path)))
            else:
                yield _file(path, path, os.stat(path), None)


def _matches(named: str) -> list[str]:
    """The path itself, or the paths that a pattern matches. Raises UsageError if there is none."""
    if os.path.exists(named):
        return [named]
    if glob.has_magic(named):
        found = [path for path in glob.glob(named, recursive=True) if not os.path.isdir(path)]
        if found:
            return found
        raise UsageError(f"No file matches '{shown_path(named)}'.", path=shown_path(named))
    raise UsageError(f"There is no file or folder '{shown_path(named)}'.", path=shown_path(named))


def _file(name: str, path: str, status: os.stat_result, folder: tuple[str, str] | None) -> Source:
    version = f"{status.st_size}:{status.st_mtime_ns}"
    return Source(shown_path(name), os.path.abspath(path), status.st_size, version, folder)


def _found_in_folder(
    source: Source, folder: tuple[str, str], selection: Selection, conversion: Conversion
) -> Document:
    """A file of a listed folder as a document, by the rules for files that were not named themselves."""
    collection = Collection()
    try:
        status = os.lstat(source.address)
    except OSError as error:
        raise NothingReadableError(f"{source.name}: {error.strerror}.") from error
    shown, path = folder
    origins = None if selection.generated else _origins(path)
    inside = Folder(shown, path)
    candidate = Candidate(source.address, status, inside, origins)
    found = Examiner(selection, collection, conversion).take(source.name, candidate)
    if found is None:
        why = ", ".join(collection.skipped)
        raise NothingReadableError(
            f"Nothing readable in {source.name}: {why}.", skipped=dict(collection.skipped)
        )
    return found


@lru_cache(maxsize=16)
def _origins(folder: str) -> Origins:
    """See `Origins.of`: it asks git, so it is asked once for all files of a folder."""
    return Origins.of(folder)


def _is_elsewhere(address: str) -> bool:
    """Whether a file system of fsspec has it: any scheme that is neither the web's nor git's."""
    return remote.scheme_of(address) is not None and not remote.is_remote(address)


def _file_system(address: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there. Raises UsageError."""
    if find_spec("fsspec") is None:
        raise UsageError(f"{remote.shown_address(address)} needs fsspec: pip install 'adamas[cluster]'")
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{remote.shown_address(address)}: {error}") from error
    return system, path


def _on_file_system(named: str) -> Iterator[Source]:
    """The files that a URL names: itself, all below it, or those that its pattern matches."""
    system, path = _file_system(named)
    try:
        if glob.has_magic(path):
            entries = system.glob(path, detail=True)
        elif system.isdir(path):
            entries = system.find(path, detail=True)
        else:
            entries = {path: system.info(path)} if system.exists(path) else {}
    except Exception as error:  # each file system has exceptions of its own
        raise AdamasError(f"{remote.shown_address(named)} cannot be listed: {error}") from error
    files = {path: entry for path, entry in entries.items() if entry.get("type") == "file"}
    if not files:
        raise UsageError(f"No file matches '{remote.shown_address(named)}'.")
    for path, entry in files.items():
        address = system.unstrip_protocol(path)
        size = int(entry.get("size") or 0)
        times = [str(entry[name]) for name in _TIMES if entry.get(name)]
        yield Source(remote.shown_address(address), address, size, ":".join([str(size), *times]))


def _fetch(address: str, copy: str) -> None:
    """Copy a file to a local path. Raises AdamasError."""
    system, path = _file_system(address)
    try:
        system.get_file(path, copy)
    except Exception as error:  # each file system has exceptions of its own
        raise AdamasError(f"{remote.shown_address(address)} cannot be fetched: {error}") from error
