"""From what the user calls a model to its files on this machine."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.aliases import Alias, aliases
from adamas_cli.models.default import default_name
from adamas_cli.models.earlier import remove_earlier
from adamas_cli.models.fetch import fetch, is_fetched, sha256_of
from adamas_cli.models.folder import fingerprint, require_complete
from adamas_cli.models.gguf.file import is_gguf, parts_of
from adamas_cli.models.gguf.settings import write_settings
from adamas_cli.models.hub import cached_snapshot, download_snapshot
from adamas_cli.models.places import models_directory
from adamas_cli.progress import Progress

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelFiles:
    """A model whose files are on this machine. directory: its settings in Hugging Face's layout, and its
    weights where `gguf` is None, else they are in that file.
    """

    name: str  # what the user asked for
    directory: Path
    fingerprint: str  # changes with the content: a GGUF file's sha256, a hub revision, or a folder's state
    gguf: Path | None = None  # of a split one, any part


def resolve(name: str | None, *, device: str = "auto", offline: bool, progress: Progress) -> ModelFiles:
    """The files of the model called `name`, fetched if they are not there.

    `name` is an alias, a folder, a .gguf file or a name on the Hugging Face hub; None is the user's default.
    Raises ModelUnavailableError if it cannot be had, UsageError for a wrong device.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when Hugging Face's libraries are first imported
    remove_earlier(progress)
    name = name or default_name(device)
    alias = aliases().get(name)
    if alias is not None:
        return _from_alias(alias, offline, progress)
    path = Path(name).expanduser()
    if is_gguf(path):
        return _from_gguf(name, path, progress)
    if path.is_dir():
        require_complete(path)
        return ModelFiles(name, path, fingerprint(path))
    if _HUB_NAME.fullmatch(name):
        return _from_hub(name, offline, progress)
    raise _unknown(name)


def require_here(name: str | None, *, device: str = "auto") -> None:
    """Raise ModelUnavailableError where `resolve` would have to fetch the model."""
    name = name or default_name(device)
    alias = aliases().get(name)
    if alias is not None:
        here = is_fetched(alias)
    else:
        path = Path(name).expanduser()
        is_local = is_gguf(path) or path.is_dir() or not _HUB_NAME.fullmatch(name)
        here = is_local or cached_snapshot(name) is not None
    if not here:
        raise ModelUnavailableError(
            f"{name} is not on this machine, and nothing is fetched for this.\n"
            f"Run `adamas models pull {name}` once."
        )


def _from_alias(alias: Alias, offline: bool, progress: Progress) -> ModelFiles:
    file = fetch(alias, offline=offline, progress=progress)
    return ModelFiles(alias.name, write_settings(file, alias.sha256, progress), alias.sha256, file)


def _from_gguf(name: str, path: Path, progress: Progress) -> ModelFiles:
    for part in parts_of(path.resolve()):
        if not part.is_file():
            beside = "" if part == path.resolve() else f"{path.name} is a part of a split model, and "
            raise ModelUnavailableError(f"{beside}there is no file {part}.")
    sha256 = _sha256_of_parts(path.resolve(), progress)
    return ModelFiles(name, write_settings(path.resolve(), sha256, progress), sha256, path.resolve())


def _sha256_of_parts(path: Path, progress: Progress) -> str:
    """The hash of a GGUF file, or of the hashes of all its parts."""
    hashes = [_remembered_sha256(part, progress) for part in parts_of(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _from_hub(name: str, offline: bool, progress: Progress) -> ModelFiles:
    directory = cached_snapshot(name)
    if directory is None:
        if offline:
            raise ModelUnavailableError(
                f"{name} is not on this machine, and `offline` forbids fetching it.\n"
                f"Run `adamas models pull {name}` once while online."
            )
        directory = download_snapshot(name, progress)
        require_complete(directory)
    return ModelFiles(name, directory, directory.name)


def _remembered_sha256(path: Path, progress: Progress) -> str:
    """The hash of a local file, computed again only when its size or modification time changed."""
    status = path.stat()
    state = [str(path), status.st_size, status.st_mtime_ns]
    memory = models_directory() / "hashes.json"
    try:
        known: dict[str, list[object]] = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    for sha256, seen in known.items():
        if seen == state:
            return sha256
    sha256 = sha256_of(path, progress)
    memory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = memory.with_name(f"hashes.{os.getpid()}.json")
    unfinished.write_text(json.dumps({**known, sha256: state}), encoding="utf-8")
    os.replace(unfinished, memory)
    return sha256


def _unknown(name: str) -> ModelUnavailableError:
    close = difflib.get_close_matches(name, aliases(), n=1)
    advice = f"Did you mean {close[0]}?" if close else f"Short names are {', '.join(aliases())}."
    return ModelUnavailableError(
        f"there is no model {name}: it is no short name, folder, .gguf file or hub name (owner/model).\n"
        f"{advice}"
    )
