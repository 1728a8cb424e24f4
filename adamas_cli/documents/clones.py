"""Remote git repositories: shallow clones, kept in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from adamas_cli.documents.remote import Repository, shown_address
from adamas_cli.errors import AdamasError
from adamas_cli.files import make_folder
from adamas_cli.folders import cache_directory
from adamas_cli.progress import Progress

MAX_BYTES = 2 * 2**30  # of one repository
LIMIT_BYTES = 8 * 2**30  # of all kept repositories
SECONDS = 900.0
_USED = "adamas-used"  # a file in `.git` with the time of the last use
_FETCHED = "adamas-fetched"
_POLL_SECONDS = 0.2
# A foreign repository must not run anything: no hooks, no monitors, no external transports.
_CAREFUL = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.ext.allow=never"),
    *("-c", "submodule.recurse=false", "-c", "gc.auto=0", "-c", "advice.detachedHead=false"),
    *("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30"),
)


def repositories_directory() -> Path:
    """The folder of clones, part of adamas's cache."""
    return cache_directory() / "repositories"


def clone(repository: Repository, progress: Progress) -> str:
    """The folder of the up-to-date repository; if it cannot be reached, the kept copy, with a notice.

    Raises AdamasError if there is neither.
    """
    from filelock import FileLock

    key = hashlib.sha256(f"{repository.address}\0{repository.ref or ''}".encode()).hexdigest()[:16]
    root = repositories_directory()
    try:
        make_folder(root)
        with FileLock(root / f"{key}.lock"):
            folder = root / key / repository.name.rpartition("/")[2]
            _refresh(repository, folder, progress)
            (folder / ".git" / _USED).touch()
    except OSError as error:
        raise AdamasError(
            f"{repository.name} cannot be kept in {root}: {error.strerror or error}."
        ) from error
    prune(root, LIMIT_BYTES, keep=folder)
    below = folder / repository.below
    if not below.is_dir():
        raise AdamasError(f"{repository.name} has no folder {repository.below}.")
    if (folder / ".gitmodules").is_file():
        progress.note(f"{repository.name}: its submodules are not fetched")
    return str(below)


def prune(root: Path, limit: int, keep: Path | None = None) -> int:
    """Remove the least recently used clones until at most `limit` bytes remain; return the bytes freed."""
    clones = []
    for used in root.glob(f"*/*/.git/{_USED}"):
        with suppress(OSError):
            clones.append((used.stat().st_mtime, used.parent.parent))
    sizes = {folder: _size(folder) for _, folder in clones}
    total, freed = sum(sizes.values()), 0
    for _, folder in sorted(clones):
        if total - freed <= limit:
            break
        if folder != keep:
            shutil.rmtree(folder.parent, ignore_errors=True)
            freed += sizes[folder]
    return freed


def _refresh(repository: Repository, folder: Path, progress: Progress) -> None:
    fetched = folder / ".git" / _FETCHED
    kept = fetched.exists()
    if not kept:
        shutil.rmtree(folder.parent, ignore_errors=True)
        make_folder(folder)
        _git(folder, "init", "--quiet")
    with progress.task(f"fetching {repository.name}", None, "bytes") as advance:
        arguments = ("--quiet", "--depth", "1", "--no-tags", "--no-recurse-submodules", "--force")
        what = repository.ref or "HEAD"
        trouble = _git(folder, "fetch", *arguments, "--", repository.address, what, advance=advance)
    if trouble is None:
        trouble = _git(folder, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
        if trouble is None:
            _git(folder, "clean", "--quiet", "--force", "-dx")
            fetched.touch()
            return
    if not kept:
        shutil.rmtree(folder.parent, ignore_errors=True)
        at = f" at {repository.ref}" if repository.ref else ""
        raise AdamasError(f"{shown_address(repository.address)}{at} could not be fetched: {trouble}")
    day = datetime.fromtimestamp(fetched.stat().st_mtime).date().isoformat()
    progress.note(f"{repository.name} could not be fetched ({trouble}); the copy of {day} is read")


def _git(folder: Path, *arguments: str, advance: Callable[[int], None] | None = None) -> str | None:
    """Run git in a folder; None, or the last line of its error output. Raises AdamasError."""
    environment = {name: value for name, value in os.environ.items() if name not in _REDIRECTIONS}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}
    environment.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    command = ["git", "-C", str(folder), *_CAREFUL, *arguments]
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                env=environment,
            )
        except OSError as error:
            raise AdamasError("git is not installed; it is needed to fetch repositories.") from error
        try:
            why = _watch(process, folder, advance)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        complaints.seek(0)
        lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
    if why is not None:
        return why
    if process.returncode == 0:
        return None
    told = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines or ["git fails."]
    return told[-1].partition(": ")[2] or told[-1]


def _watch(
    process: subprocess.Popen[bytes], folder: Path, advance: Callable[[int], None] | None
) -> str | None:
    """Wait for the process to end; return the reason if it was not waited for."""
    deadline = time.monotonic() + SECONDS
    seen = 0
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
            return None
        if advance is None:
            continue
        size = _size(folder / ".git")
        advance(max(0, size - seen))
        seen = max(seen, size)
        if size > MAX_BYTES:
            return f"it is larger than {MAX_BYTES // 2**30} GiB"
        if time.monotonic() > deadline:
            return f"it takes longer than {SECONDS:.0f} seconds"


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


_REDIRECTIONS = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_NAMESPACE", "GIT_PREFIX"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
)
