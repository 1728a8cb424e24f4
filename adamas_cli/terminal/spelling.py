"""Settings as a command line spells them. Texts from lower layers name settings as in Python: `ctx_size`."""

from __future__ import annotations

import re

_SHORT = {"model": "-m", "max_tokens": "-n", "output": "-o"}
_LONG = (
    "adapter",
    "apart",
    "attn",
    "backend",
    "cache_dtype",
    "cite",
    "ctx_size",
    "dense_layers",
    "device",
    "doc_cache_size",
    "dtype",
    "encoding",
    "error",
    "exclude",
    "generated",
    "gpus",
    "heads",
    "hidden",
    "include",
    "kv",
    "len",
    "max_file_size",
    "no_gitignore",
    "ocr",
    "offline",
    "on_overflow",
    "plot",
    "prefill_chunk",
    "quantization",
    "read",
    "rope_scaling",
    "scorer",
    "secrets",
    "shape",
    "sources",
    "tasks",
    "text",
    "think_tokens",
    "token_budget",
    "trust_remote_code",
    "vs",
    "whole_pages",
)
FLAGS = {name: f"--{name.replace('_', '-')}" for name in _LONG} | _SHORT
_NAME = re.compile(r"`([a-z_]+)`")


def spelled(text: str) -> str:
    """`text` with each setting between backticks replaced by its flag."""
    return _NAME.sub(lambda found: FLAGS.get(found[1], found[0]), text)
