"""From the user's name of a model to its files on this machine."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.adapters import read_adapter_config
from adamas_cli.models.aliases import Alias, aliases
from adamas_cli.models.default import default_name
from adamas_cli.models.earlier import remove_earlier
from adamas_cli.models.fetch import fetch, is_fetched, sha256_of
from adamas_cli.models.folder import fingerprint, has_tokenizer, missing, require_complete, vocabulary_size
from adamas_cli.models.gguf.file import is_gguf, parts_of
from adamas_cli.models.gguf.settings import write_settings
from adamas_cli.models.hub import OF_ADAPTERS, cached_adapter, cached_snapshot, download
from adamas_cli.models.places import models_directory
from adamas_cli.models.scaled import scaled
from adamas_cli.models.stores import file_in_folder, file_in_hub_cache, find_stored
from adamas_cli.models.vocabulary.files import tokenizer_folder
from adamas_cli.progress import Progress

_HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(:(?P<tag>[\w.-]+))?")


@dataclass(frozen=True)
class ModelFiles:
    """A model whose files are on this machine. directory: its settings in Hugging Face's layout; also its
    weights, unless `gguf` has them.
    """

    name: str  # the name the user gave
    directory: Path
    fingerprint: str  # changes with the content: a GGUF file's sha256, a hub revision, or a folder's state
    gguf: Path | None = None  # for a split one, any part
    adapter: Path | None = None  # the folder of an adapter that is merged into its weights
    made: Path | None = None  # the folder of its tokenizer, if `directory` has none in the usual form

    @property
    def texts(self) -> Path:
        """The folder of its tokenizer and chat template."""
        return self.made or self.directory

    @property
    def rows(self) -> int | None:
        """The number of tokens in its config; None if it does not say."""
        return vocabulary_size(self.directory)


def resolve(
    name: str | None,
    *,
    device: str = "auto",
    offline: bool,
    adapter: str | None = None,
    rope_scaling: str | None = None,
    progress: Progress,
) -> ModelFiles:
    """The files of the model called `name`, fetched if missing. rope_scaling: see `scaled`.

    `name` is an alias, a folder, a .gguf file, a model of another program such as `ollama:qwen3:8b`, or a
    name on the Hugging Face hub, with `:Q4_K_M` if it has several; None is the user's default. adapter: a
    folder written by PEFT, or its name on the hub; without a `name`, its base model is used. Raises
    ModelUnavailableError if it is unavailable, UsageError for a wrong device or an ambiguous name.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when Hugging Face's libraries are first imported
    remove_earlier(progress)
    if rope_scaling is not None:
        plain = resolve(name, device=device, offline=offline, adapter=adapter, progress=progress)
        folder, version = scaled(plain.directory, plain.fingerprint, plain.name, rope_scaling)
        return replace(plain, directory=folder, fingerprint=version)
    if adapter is not None:
        return _adapted(adapter, name, device=device, offline=offline, progress=progress)
    name = name or default_name(device)
    alias = aliases().get(name)
    if alias is not None:
        return _from_alias(alias, offline, progress)
    path = Path(name).expanduser()
    if is_gguf(path):
        return _from_gguf(name, path, progress)
    if path.is_dir():
        if missing(path) is not None and (file := file_in_folder(path, name)) is not None:
            return _from_gguf(name, file, progress)
        require_complete(path)
        return _from_folder(name, path, fingerprint(path), progress)
    if (model := find_stored(name)) is not None:
        return _from_gguf(name, model.path, progress)
    if named := _HUB_NAME.fullmatch(name):
        return _from_hub(name, named["repository"], named["tag"] or "", offline, progress)
    raise _unknown(name)


def require_here(name: str | None, *, device: str = "auto", adapter: str | None = None) -> None:
    """Raise ModelUnavailableError if `resolve` would have to fetch the model."""
    if adapter is not None:
        folder = _adapter_here(adapter)
        if folder is None:
            raise ModelUnavailableError(
                f"the adapter {adapter} is not on this machine, and nothing is fetched for this.\n"
                f"Run `adamas models pull {adapter}` once."
            )
        name = name or _base(folder)
    name = name or default_name(device)
    alias = aliases().get(name)
    if alias is not None:
        here = is_fetched(alias)
    else:
        path = Path(name).expanduser()
        named = _HUB_NAME.fullmatch(name)
        is_local = is_gguf(path) or path.is_dir() or named is None or find_stored(name) is not None
        here = is_local or (
            named is not None and _in_cache(named["repository"], named["tag"] or "") is not None
        )
    if not here:
        raise ModelUnavailableError(
            f"{name} is not on this machine, and nothing is fetched for this.\n"
            f"Run `adamas models pull {name}` once."
        )


def _from_alias(alias: Alias, offline: bool, progress: Progress) -> ModelFiles:
    file = fetch(alias, offline=offline, progress=progress)
    return ModelFiles(alias.name, write_settings(file, alias.sha256, progress), alias.sha256, file)


def _from_gguf(name: str, path: Path, progress: Progress) -> ModelFiles:
    path = path.absolute()  # links, as in Hugging Face's cache, have the parts' names
    for part in parts_of(path):
        if not part.is_file():
            beside = "" if part == path else f"{path.name} is a part of a split model, and "
            raise ModelUnavailableError(f"{beside}there is no file {part}.")
    sha256 = _sha256_of_parts(path, progress)
    return ModelFiles(name, write_settings(path, sha256, progress), sha256, path)


def _sha256_of_parts(path: Path, progress: Progress) -> str:
    """The hash of a GGUF file, or of the hashes of all its parts."""
    hashes = [_remembered_sha256(part, progress) for part in parts_of(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _from_hub(name: str, repository: str, tag: str, offline: bool, progress: Progress) -> ModelFiles:
    found = _in_cache(repository, tag)
    if found is None:
        if offline:
            raise ModelUnavailableError(
                f"{name} is not on this machine, and `offline` forbids fetching it.\n"
                f"Run `adamas models pull {name}` once while online."
            )
        found = download(repository, progress, tag)
    if is_gguf(found):
        return _from_gguf(name, found, progress)
    require_complete(found)
    return _from_folder(name, found, found.name, progress)


def _adapted(adapter: str, name: str | None, *, device: str, offline: bool, progress: Progress) -> ModelFiles:
    """A model with an adapter, which may bring its own tokenizer and chat template."""
    folder = _adapter_here(adapter)
    if folder is None and offline:
        raise ModelUnavailableError(
            f"the adapter {adapter} is not on this machine, and `offline` forbids fetching it.\n"
            f"Run `adamas models pull {adapter}` once while online."
        )
    folder = folder or download(adapter, progress, wanted=OF_ADAPTERS)
    files = resolve(name or _base(folder), device=device, offline=offline, progress=progress)
    read_adapter_config(folder)
    both = hashlib.sha256(f"{files.fingerprint} {fingerprint(folder)}".encode()).hexdigest()
    texts = tokenizer_folder(folder, progress) if has_tokenizer(folder) else files.made
    called = adapter if _HUB_NAME.fullmatch(adapter) else folder.name
    return replace(files, name=f"{files.name} + {called}", fingerprint=both, adapter=folder, made=texts)


def _adapter_here(adapter: str) -> Path | None:
    """The folder of an adapter; None for a name on the hub that is not in the cache."""
    folder = Path(adapter).expanduser()
    if folder.exists() or not _HUB_NAME.fullmatch(adapter):
        return folder
    return cached_adapter(adapter)


def _base(adapter: Path) -> str:
    """The base model of an adapter."""
    base = read_adapter_config(adapter).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelUnavailableError(f"{adapter} does not say which model it is for: name it with `model`.")
    return base


def _from_folder(name: str, folder: Path, version: str, progress: Progress) -> ModelFiles:
    texts = tokenizer_folder(folder, progress)
    return ModelFiles(name, folder, version, made=None if texts == folder else texts)


def _in_cache(repository: str, tag: str) -> Path | None:
    """The folder of a model in Hugging Face's cache, or its GGUF file. Raises SeveralFilesError."""
    folder = None if tag else cached_snapshot(repository)
    return folder or file_in_hub_cache(repository, tag)


def _remembered_sha256(path: Path, progress: Progress) -> str:
    """The hash of a local file, computed again only if its size or modification time changed."""
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
        f"unknown model {name}: not a short name, folder, .gguf file or hub name (owner/model).\n{advice}"
    )
