"""From what the user calls a model to its files on this machine."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.aliases import Alias, aliases
from adamas_cli.models.default import default_name
from adamas_cli.models.device import choose_device, choose_dtype, device_kind, dtype_name
from adamas_cli.models.fetch import fetch, is_fetched, sha256_of
from adamas_cli.models.folder import fingerprint, require_complete
from adamas_cli.models.gguf import unpack, weights_folder
from adamas_cli.models.hub import cached_snapshot, download_snapshot
from adamas_cli.models.places import models_directory
from adamas_cli.progress import Progress

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelFiles:
    """A model whose files are on this machine, in Hugging Face's layout."""

    name: str  # what the user asked for
    directory: Path
    fingerprint: str  # changes with the content: a GGUF file's sha256, a hub revision, or a folder's state


def resolve(
    name: str | None, *, dtype: str = "auto", device: str = "auto", offline: bool, progress: Progress
) -> ModelFiles:
    """The files of the model called `name`, fetched and unpacked if they are not there.

    `name` is an alias, a folder, a .gguf file or a name on the Hugging Face hub; None is the user's default.
    Raises ModelUnavailableError if it cannot be had, UsageError for a wrong device or dtype.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when Hugging Face's libraries are first imported
    name = name or default_name(device)
    alias = aliases().get(name)
    if alias is not None:
        return _from_alias(alias, dtype, device, offline, progress)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _from_gguf(name, path, dtype, device, progress)
    if path.is_dir():
        require_complete(path)
        return ModelFiles(name, path, fingerprint(path))
    if _HUB_NAME.fullmatch(name):
        return _from_hub(name, offline, progress)
    raise _unknown(name)


def require_here(name: str | None, *, dtype: str = "auto", device: str = "auto") -> None:
    """Raise ModelUnavailableError where `resolve` would have to fetch the model."""
    name = name or default_name(device)
    alias = aliases().get(name)
    if alias is not None:
        here = is_fetched(alias) or _unpacked(alias.sha256, dtype, device).is_dir()
    else:
        path = Path(name).expanduser()
        is_local = path.suffix == ".gguf" or path.is_dir() or not _HUB_NAME.fullmatch(name)
        here = is_local or cached_snapshot(name) is not None
    if not here:
        raise ModelUnavailableError(
            f"{name} is not on this machine, and nothing is fetched for this.\n"
            f"Run `adamas models pull {name}` once."
        )


def _from_alias(alias: Alias, dtype: str, device: str, offline: bool, progress: Progress) -> ModelFiles:
    unpacked = _unpacked(alias.sha256, dtype, device)
    if unpacked.is_dir():
        return ModelFiles(alias.name, unpacked, alias.sha256)
    file = fetch(alias, offline=offline, progress=progress)
    directory = unpack(file, alias.sha256, choose_dtype(dtype, choose_device(device)), progress)
    return ModelFiles(alias.name, directory, alias.sha256)


def _from_gguf(name: str, path: Path, dtype: str, device: str, progress: Progress) -> ModelFiles:
    if not path.is_file():
        raise ModelUnavailableError(f"there is no file {path}.")
    sha256 = _remembered_sha256(path.resolve(), progress)
    directory = _unpacked(sha256, dtype, device)
    if not directory.is_dir():
        directory = unpack(path.resolve(), sha256, choose_dtype(dtype, choose_device(device)), progress)
    return ModelFiles(name, directory, sha256)


def _unpacked(sha256: str, dtype: str, device: str) -> Path:
    """Where the weights of a file are, if they were unpacked before; finds out without torch."""
    return weights_folder(sha256, dtype_name(dtype, device_kind(device)))


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
