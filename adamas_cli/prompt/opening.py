"""The tokens that a model was trained to see before every text, which only a chat template would write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Processor = dict[str, Any]  # `post_processor` of tokenizer.json


def text_start(chat: object) -> str:
    """Of a `ChatTemplateFile` or a transformers tokenizer, as text; empty for models that need none."""
    directory = getattr(chat, "directory", None)
    if isinstance(directory, Path):
        return _first_tokens(_stored(directory / "tokenizer.json"))
    processor = getattr(getattr(chat, "backend_tokenizer", None), "post_processor", None)
    return _first_tokens(json.loads(processor.__getstate__()) if processor is not None else None)


def _stored(tokenizer_json: Path) -> Processor | None:
    try:
        found: Processor | None = json.loads(tokenizer_json.read_text(encoding="utf-8"))["post_processor"]
    except (OSError, ValueError, KeyError):  # told where the tokenizer is read
        return None
    return found


def _first_tokens(processor: Processor | None) -> str:
    match processor:
        case {"type": "Sequence", "processors": list(processors)}:
            return "".join(map(_first_tokens, processors))
        case {"type": "TemplateProcessing", "single": list(pieces)}:
            first: list[str] = []
            for piece in pieces:
                if "SpecialToken" not in piece:
                    break
                first.append(piece["SpecialToken"]["id"])
            return "".join(first)
    return ""
