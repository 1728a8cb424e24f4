"""Ask questions about long documents with a language model on your own machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamas_cli.api import Documents, Model, load
    from adamas_cli.engine.events import Done, Prefill, Token
    from adamas_cli.engine.generating import cache_for
    from adamas_cli.engine.sampling import Sampling
    from adamas_cli.session.answer import Answer, Text

__version__ = "1.0.0"
__all__ = [
    "Answer",
    "Documents",
    "Done",
    "Model",
    "Prefill",
    "Sampling",
    "Text",
    "Token",
    "cache_for",
    "load",
]

# The public names, imported when used: most of them import torch, which takes a second.
_MODULES = {
    "Answer": "session.answer",
    "Documents": "api",
    "Done": "engine.events",
    "Model": "api",
    "Prefill": "engine.events",
    "Sampling": "engine.sampling",
    "Text": "session.answer",
    "Token": "engine.events",
    "cache_for": "engine.generating",
    "load": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'adamas_cli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"adamas_cli.{_MODULES[name]}"), name)
