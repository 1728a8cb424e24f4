"""Models that other programs store on this machine, used in place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adamas_cli.models.quantizations import (
    Choice,
    SeveralFilesError,
    models_among,
    one_of,
    size,
    stem,
    tags,
)

OLLAMA, LM_STUDIO, LLAMA_CPP = "ollama", "lmstudio", "llama.cpp"  # prefixes of model names, before the colon
HUB_CACHE = "Hugging Face's cache"
_REGISTRY, _LIBRARY, _LATEST = "registry.ollama.ai", "library", "latest"  # omitted by ollama in names
_MODEL_LAYER = "application/vnd.ollama.image.model"


@dataclass(frozen=True)
class Stored:
    """One model. name: for `model`. path: its file, or the first of a split one. program: its owner."""

    name: str
    path: Path
    program: str

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return size(self.path)


def stored() -> list[Stored]:
    """All of them, program by program."""
    return [*_of_ollama(), *_of_lm_studio(), *_of_llama_cpp(), *_of_hub_cache()]


def find_stored(name: str) -> Stored | None:
    """The model called `name` in a store with a prefix, with or without ollama's `:latest`."""
    program = name.partition(":")[0]
    stores = {OLLAMA: _of_ollama, LM_STUDIO: _of_lm_studio, LLAMA_CPP: _of_llama_cpp}
    models = stores[program]() if program in stores else iter(())
    return next((model for model in models if model.name in (name, f"{name}:{_LATEST}")), None)


def file_in_hub_cache(repository: str, tag: str = "") -> Path | None:
    """The GGUF file of a repository in Hugging Face's cache, the one that `tag` means if there are several.
    None if there is none. Raises SeveralFilesError.
    """
    files = _in_hub_cache(repository)
    return one_of(repository, tag, {file: size(file) for file in files})


def file_in_folder(folder: Path, name: str) -> Path | None:
    """The only GGUF model in a folder, None if there is none. Raises SeveralFilesError."""
    files = models_among(folder.iterdir())
    if len(files) > 1:
        raise SeveralFilesError(name, [Choice(str(file), size(file)) for file in files])
    return files[0] if files else None


def _of_ollama() -> Iterator[Stored]:
    named = os.environ.get("OLLAMA_MODELS")
    # The second is used by ollama's system-wide service.
    roots = (
        [Path(named)] if named else [Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]
    )
    for root in roots:
        for manifest in _files(root / "manifests", "*/*/*/*"):
            blob = _model_blob(manifest)
            if blob is not None and (path := root / "blobs" / blob).is_file():
                yield Stored(f"{OLLAMA}:{_ollama_name(manifest)}", path, OLLAMA)


def _ollama_name(manifest: Path) -> str:
    """The name as ollama's own commands spell it."""
    registry, namespace, model, tag = manifest.parts[-4:]
    parts = [registry, namespace, model]
    if registry == _REGISTRY:
        parts = [model] if namespace == _LIBRARY else [namespace, model]
    return f"{'/'.join(parts)}:{tag}"


def _model_blob(manifest: Path) -> str | None:
    """The name of the file of the manifest's only model layer."""
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        blobs = [layer["digest"].replace(":", "-") for layer in layers if layer["mediaType"] == _MODEL_LAYER]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not a manifest
        return None
    return blobs[0] if len(blobs) == 1 else None


def _of_lm_studio() -> Iterator[Stored]:
    home = Path.home()
    roots = [home / ".lmstudio/models", home / ".cache/lm-studio/models"]
    try:
        chosen = json.loads((home / ".lmstudio/settings.json").read_text(encoding="utf-8"))["downloadsFolder"]
        roots.insert(0, Path(chosen))
    except (OSError, ValueError, KeyError, TypeError):  # not set: the default folders are used
        pass
    for root in dict.fromkeys(roots):
        for file in models_among(_files(root, "**/*")):
            yield Stored(
                f"{LM_STUDIO}:{(file.relative_to(root).parent / stem(file)).as_posix()}", file, LM_STUDIO
            )


def _of_llama_cpp() -> Iterator[Stored]:
    from platformdirs import user_cache_path

    named = os.environ.get("LLAMA_CACHE")
    root = Path(named) if named else user_cache_path("llama.cpp", appauthor=False)
    for file in models_among(_files(root, "*")):
        yield Stored(f"{LLAMA_CPP}:{stem(file)}", file, LLAMA_CPP)


def _of_hub_cache() -> Iterator[Stored]:
    for folder in _files(_hub_cache(), "models--*--*"):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        files = _in_hub_cache(repository)
        for file, tag in tags(files).items():
            yield Stored(f"{repository}:{tag}", file, HUB_CACHE)


def _in_hub_cache(repository: str) -> list[Path]:
    """The models in the newest snapshot of a repository that has any."""
    snapshots = _hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    for snapshot in sorted(_files(snapshots, "*"), key=lambda path: path.stat().st_mtime, reverse=True):
        if files := models_among(_files(snapshot, "**/*")):
            return files
    return []


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _files(root: Path, pattern: str) -> list[Path]:
    """Matching paths below a folder, sorted; none if it cannot be read."""
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []
