"""Model folders in Hugging Face's layout: whether one is complete, and what its content is called."""

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
# What vocabularies are in. The first needs nothing else, see vocabulary/files.py of the others.
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
# Weights that lie beside a model's own: an adapter's, and those in Mistral's own layout.
_ASIDE = ("adapter_", "consolidated")
# Ends of the names of classes that generate no text, and what they are.
_OTHER_TASKS = {
    "ForSequenceClassification": "a classifier or reward model",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "an extractive reader",
    "ForMaskedLM": "a model that fills gaps",
    "RewardModel": "a reward model",
}

_POOLING = "sentence_transformers.models.Pooling"  # in the list of steps of a model that makes embeddings


def missing(directory: Path) -> str | None:
    """What keeps `directory` from being a usable model, as half a sentence; None if nothing does."""
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
    """Whether a folder holds a vocabulary in any form."""
    return any(any(directory.glob(name)) for name in TOKENIZERS)


def weight_files(directory: Path) -> list[Path]:
    """The files that a model's weights are in, by its index where it has one, else by their own names.

    Raises KeyError, TypeError, AttributeError or ValueError for an index that is none.
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
    """Whether transformers finds a folder's weights by itself."""
    return (directory / INDEX).is_file() or (directory / WEIGHTS).is_file()


def classes(directory: Path) -> list[str]:
    """The classes that a model's files were written by, as its config says; none where it does not."""
    found = read_object(directory / CONFIG).get("architectures") or []
    return [str(name) for name in found] if isinstance(found, list) else []


def vocabulary_size(directory: Path) -> int | None:
    """How many rows a model's embeddings have by its config; None where it does not say."""
    config = read_object(directory / CONFIG)
    rows = text_part(config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """What a model's config says of the part that answers with text."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def require_complete(directory: Path) -> None:
    """Raise ModelUnavailableError, with what to do, unless `directory` is a usable model."""
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
    """A hash that changes when a file of `directory` does, from names, sizes and modification times."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _other_task(directory: Path) -> str | None:
    """What a model is for that generates no text, as half a sentence."""
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
    """What a file says; nothing where it is not there."""
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # of one that is nested without end
        return {}
    return found if isinstance(found, dict) else {}
