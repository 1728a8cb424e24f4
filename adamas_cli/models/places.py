"""Where models are stored on disk, and how processes take turns at one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.folders import cache_directory
from adamas_cli.progress import Progress


def models_directory() -> Path:
    """The folder of this tool's models: under `ADAMAS_CACHE_DIR`, or in the user's cache directory."""
    return cache_directory() / "models"


def files_directory() -> Path:
    """The folder of fetched GGUF files."""
    return models_directory() / "files"


def settings_directory() -> Path:
    """The folder of GGUF files' settings, one folder for each file."""
    return models_directory() / "settings"


def vocabularies_directory() -> Path:
    """The folder of tokenizers for model folders that lack one in the usual form."""
    return models_directory() / "vocabularies"


def weights_directory() -> Path:
    """Where earlier versions kept unpacked weights of GGUF files."""
    return models_directory() / "weights"


def packed_directory() -> Path:
    """Where earlier versions kept weights packed for CPUs."""
    return models_directory() / "packed"


@contextmanager
def exclusive(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the exclusive right to create `path`, waiting for any process that has it; makes its folder.

    Raises ModelUnavailableError if the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.note(f"waiting for another process that prepares {path.name}")
            lock.acquire()
    except OSError as error:
        raise unwritable(path.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(directory: Path, error: OSError) -> ModelUnavailableError:
    """The error for a `directory` that cannot be written."""
    reason = error.strerror or str(error)
    return ModelUnavailableError(
        f"cannot write to {directory}: {reason}.\nMake room there, or set ADAMAS_CACHE_DIR to another folder."
    )
