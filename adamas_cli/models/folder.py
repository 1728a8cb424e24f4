"""Model folders in Hugging Face's layout: whether one is complete, and the names of its files."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from adamas_cli.errors import ModelUnavailableError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = ADAPTER_FILES = "adapter_config.json", "adapter_model.safetensors"
# Files with vocabularies. The first needs nothing else; for the others see vocabulary/files.py.
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "tiktoken.model",
    "*.tiktoken",
    "vocab.json",
)
_PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt", "pytorch_model.bin.index.json")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
# Weights next to a model's own: an adapter's, and those in Mistral's own layout.
_ASIDE = ("adapter_", "consolidated")
# Suffixes of class names that generate no text, and what they are.
_OTHER_TASKS = {
    "ForSequenceClassification": "a classifier or reward model",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "an extractive reader",
    "ForMaskedLM": "a model that fills gaps",
    "RewardModel": "a reward model",
}

_POOLING = "sentence_transformers.models.Pooling"  # in the list of steps of an embedding model


def missing(directory: Path) -> str | None:
    """What makes `directory` unusable as a model, as a clause; None if it is usable."""
    if not (directory / CONFIG).is_file():
        return f"has no {CONFIG}"
    if not read_object(directory / CONFIG):
        return f"has a damaged {CONFIG}"
    if (task := _other_task(directory)) is not None:
        return task
    if not has_tokenizer(directory):
        return "has no tokenizer"
    try:
        absent = [file.name for file in weight_files(directory) if not file.is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"has a damaged {INDEX}"
    if not absent:
        return None
    if absent != [WEIGHTS]:
        return f"lacks {absent[0]}"
    pickle = next((file.name for name in _PICKLES for file in sorted(directory.glob(name))), None)
    if pickle is not None:
        return f"has no safetensors weights, and {pickle} is a pickle, which may run code when it is read"
    return "has no safetensors weights"


def has_tokenizer(directory: Path) -> bool:
    """Whether a folder has a vocabulary in any form."""
    return any(any(directory.glob(name)) for name in TOKENIZERS)


def weight_files(directory: Path) -> list[Path]:
    """The files with a model's weights, from its index if it has one, else by file name.

    Raises KeyError, TypeError, AttributeError or ValueError for an invalid index.
    """
    if (directory / INDEX).is_file():
        places = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return [directory / name for name in sorted(set(places.values()))]
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    named = [file for file in sorted(directory.glob("*.safetensors")) if not file.name.startswith(_ASIDE)]
    shards = [shard for file in named if (shard := _SHARD.fullmatch(file.name))]
    if shards:
        name, _, count = shards[0].groups()
        return [
            directory / f"{name}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)
        ]
    return named if len(named) == 1 else [directory / WEIGHTS]


def is_usual(directory: Path) -> bool:
    """Whether transformers finds a folder's weights without help."""
    return (directory / INDEX).is_file() or (directory / WEIGHTS).is_file()


def classes(directory: Path) -> list[str]:
    """The classes that a model's files were written by, from its config; none if it does not say."""
    found = read_object(directory / CONFIG).get("architectures") or []
    return [str(name) for name in found] if isinstance(found, list) else []


def vocabulary_size(directory: Path) -> int | None:
    """The number of embedding rows in a model's config; None if it does not say."""
    config = read_object(directory / CONFIG)
    rows = text_part(config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a model's config about answering with text."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def require_complete(directory: Path) -> None:
    """Raise ModelUnavailableError, with advice, unless `directory` is a usable model."""
    lack = missing(directory)
    if lack is None:
        return
    if (directory / ADAPTER_CONFIG).is_file():
        base = read_object(directory / ADAPTER_CONFIG).get("base_model_name_or_path") or "its base model"
        raise ModelUnavailableError(
            f"{directory} is an adapter of {base} and no model of its own.\n"
            f"Use both: `model` {base} `adapter` {directory}"
        )
    ggufs = sorted(path.name for path in directory.glob("*.gguf"))
    advice = "Point `model` at a folder that holds a model that generates text, in safetensors."
    if ggufs:
        advice = f"Name its file: `model` {directory / ggufs[0]}"
    raise ModelUnavailableError(f"{directory} {lack}.\n{advice}")


def fingerprint(directory: Path) -> str:
    """A hash that changes with any file of `directory`, from names, sizes and modification times."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _other_task(directory: Path) -> str | None:
    """What a model that generates no text is for, as a clause."""
    for name in classes(directory):
        for end, kind in _OTHER_TASKS.items():
            if name.endswith(end):
                return f"is {kind} ({name})"
    if _POOLING in _text(directory / "modules.json"):
        return "is a model of embeddings"
    if read_object(directory / CONFIG).get("is_encoder_decoder"):
        return "is an encoder with a decoder, which adamas does not serve"
    return None


def _text(file: Path) -> str:
    """A file's text; empty if there is no file."""
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # RecursionError: nested too deeply
        return {}
    return found if isinstance(found, dict) else {}
