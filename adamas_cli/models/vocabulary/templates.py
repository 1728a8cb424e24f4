"""The chat templates of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEMPLATE = "tokenizer.chat_template"


def chat_template(keys: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The only template, or all by name, including `default`: the unnamed one, or else the first."""
    named = {
        name.removeprefix(f"{_TEMPLATE}."): text
        for name, text in keys.items()
        if name.startswith(f"{_TEMPLATE}.") and isinstance(text, str)
    }
    unnamed = keys.get(_TEMPLATE)
    if not named:
        return unnamed
    return {"default": unnamed or next(iter(named.values())), **named}
