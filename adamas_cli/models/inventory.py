"""What is on disk for each model, and how to remove it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adamas_cli.files import files_below, size_of
from adamas_cli.models.aliases import Alias, aliases
from adamas_cli.models.fetch import is_fetched, local_file, partial_file
from adamas_cli.models.folder import CONFIG, read_object, text_part
from adamas_cli.models.gguf.settings import ORIGIN
from adamas_cli.models.places import exclusive, settings_directory
from adamas_cli.models.stores import HUB_CACHE, stored
from adamas_cli.progress import Progress


@dataclass(frozen=True)
class OnDisk:
    """The files and folders of one model on this machine."""

    name: str  # an alias, the name of a local .gguf file, or a name on the hub
    alias: Alias | None
    file: Path | None  # the fetched GGUF file
    partial: Path | None  # the first bytes of an interrupted download
    settings: tuple[Path, ...]  # folders of a GGUF file's settings, or the hub library's folder
    bytes: int  # all of these together
    program: str | None = None  # another program that owns them

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything deleted with the model."""
        return tuple(path for path in (self.file, self.partial) if path is not None) + self.settings


def on_disk() -> list[OnDisk]:
    """All aliases, fetched or not, then settings of local files, then models of the hub and other
    programs.
    """
    kept = list(_settings())
    found = [_of_alias(alias, kept) for alias in aliases().values()]
    known = {alias.sha256 for alias in aliases().values()}
    others: dict[str, list[tuple[Path, str]]] = {}
    for folder, sha256, file in kept:
        if sha256 not in known:
            others.setdefault(sha256, []).append((folder, file))
    for folders in others.values():
        settings = tuple(folder for folder, _ in folders)
        found.append(_entry(folders[0][1], settings=settings))
    return [*found, *_of_hub(), *_of_programs()]


def find(name: str) -> OnDisk | None:
    """The entry of `on_disk` with this name."""
    return next((entry for entry in on_disk() if entry.name == name), None)


def remove(entry: OnDisk, progress: Progress) -> None:
    """Delete an entry's files, waiting for any process that is writing them.

    Raises ModelUnavailableError if the cache cannot be written, OSError if a file cannot be deleted.
    """
    for path in entry.paths:
        with exclusive(path, progress):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def shape(entry: OnDisk) -> dict[str, Any]:
    """The layers, heads and context of a model whose settings are on disk; empty if they are not."""
    if not entry.settings:
        return {}
    config = text_part(read_object(entry.settings[0] / CONFIG))
    names = {
        "architecture": "model_type",
        "context": "max_position_embeddings",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "vocabulary": "vocab_size",
    }
    return {name: config[key] for name, key in names.items() if config.get(key) is not None}


def _of_alias(alias: Alias, kept: list[tuple[Path, str, str]]) -> OnDisk:
    settings = tuple(folder for folder, sha256, _ in kept if sha256 == alias.sha256)
    file = local_file(alias) if is_fetched(alias) else None
    partial = partial_file(alias) if partial_file(alias).is_file() else None
    return _entry(alias.name, alias, file, partial, settings)


def _settings() -> Iterator[tuple[Path, str, str]]:
    """Each folder of settings, with the sha256 and the name of its GGUF file."""
    for path in sorted(settings_directory().glob(f"*/{ORIGIN}")):
        if path.parent.suffix != ".unfinished":
            origin = json.loads(path.read_text(encoding="utf-8"))
            yield path.parent, origin["sha256"], origin["file"]


def _of_hub() -> Iterator[OnDisk]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        folders = [revision.snapshot_path for revision in repository.revisions]
        usable = tuple(folder for folder in folders if (folder / CONFIG).is_file())
        if repository.repo_type == "model" and usable:
            size = repository.size_on_disk
            yield OnDisk(repository.repo_id, None, None, None, usable, size, HUB_CACHE)


def _of_programs() -> Iterator[OnDisk]:
    for model in stored():
        yield OnDisk(model.name, None, model.path, None, (), model.bytes, model.program)


def _entry(
    name: str,
    alias: Alias | None = None,
    file: Path | None = None,
    partial: Path | None = None,
    settings: tuple[Path, ...] = (),
) -> OnDisk:
    entry = OnDisk(name, alias, file, partial, settings, 0)
    return replace(entry, bytes=sum(_size(path) for path in entry.paths))


def _size(path: Path) -> int:
    return sum(map(size_of, files_below(path) if path.is_dir() else [path]))
