"""The tokens that must begin every text, which otherwise only a chat template writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adamas_cli.prompt.chat import ChatTemplateFile

# Tokenizer classes whose texts begin with a token that no file mentions.
_BEGINNING = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
Processor = dict[str, Any]  # `post_processor` of tokenizer.json


def text_start(chat: object) -> str:
    """The start as text, for a `ChatTemplateFile` or a transformers tokenizer; empty if none is needed."""
    if isinstance(chat, ChatTemplateFile):
        stored = _post_processor(chat.directory)
        return _first_tokens(stored) or _named_start(chat, templated="TemplateProcessing" in str(stored))
    processor = getattr(getattr(chat, "backend_tokenizer", None), "post_processor", None)
    return _first_tokens(json.loads(processor.__getstate__()) if processor is not None else None)


def _named_start(chat: ChatTemplateFile, *, templated: bool) -> str:
    """The token that the settings name, if they or their class say that texts begin with it. templated:
    whether the tokenizer itself defines how texts begin, which its class does not override.
    """
    kind = str(chat.settings.get("tokenizer_class")).removesuffix("Fast")
    adds = chat.settings.get("add_bos_token", kind in _BEGINNING and not templated)
    return chat.special_tokens.get("bos_token", "") if adds else ""


def _post_processor(directory: Path) -> Processor | None:
    try:
        stored = (directory / "tokenizer.json").read_text(encoding="utf-8")
        found: Processor | None = json.loads(stored)["post_processor"]
    except (OSError, ValueError, KeyError):  # reported when the tokenizer is read
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
