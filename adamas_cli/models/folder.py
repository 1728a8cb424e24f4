"""Model folders in Hugging Face's layout: whether one is complete, and what its content is called."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from adamas_cli.errors import ModelUnavailableError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def missing(directory: Path) -> str | None:
    """What keeps `directory` from being a usable model, as half a sentence; None if nothing does."""
    if not (directory / CONFIG).is_file():
        return f"has no {CONFIG}"
    if not any((directory / name).is_file() for name in TOKENIZERS):
        return "has no tokenizer"
    if (directory / INDEX).is_file():
        absent = [file.name for file in weight_files(directory) if not file.is_file()]
        return f"lacks {absent[0]}" if absent else None
    return None if (directory / WEIGHTS).is_file() else "has no safetensors weights"


def weight_files(directory: Path) -> list[Path]:
    """The files that a model's weights are in, by its index where it has one."""
    if (directory / INDEX).is_file():
        places = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return [directory / name for name in sorted(set(places.values()))]
    return [directory / WEIGHTS]


def require_complete(directory: Path) -> None:
    """Raise ModelUnavailableError, with what to do, unless `directory` is a usable model."""
    lack = missing(directory)
    if lack is None:
        return
    ggufs = sorted(path.name for path in directory.glob("*.gguf"))
    advice = "Point `model` at a folder that holds a model."
    if ggufs:
        advice = f"Name its file: `model` {directory / ggufs[0]}"
    raise ModelUnavailableError(f"{directory} {lack}.\n{advice}")


def fingerprint(directory: Path) -> str:
    """A hash that changes when a file of `directory` does, from names, sizes and modification times."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
