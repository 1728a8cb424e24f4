"""The parameters that requests may have, in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adamas_cli.serve.errors import ApiError, unsupported

_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "seed", "top_logprobs"}
_BOTH = {"model", "stream", "stream_options", "files", "sources", *_SAMPLING}
CHAT = _BOTH | {"messages", "max_tokens", "max_completion_tokens", "stop", "response_format", "logprobs"}
RESPONSE = _BOTH | {"input", "instructions", "max_output_tokens", "text", "include"}

# Parameters that change no answer: a client's notes about itself, and hints.
_IGNORED = {
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# Parameters that would change an answer and are not served, with the values that have no effect.
_UNSERVED: dict[str, tuple[object, ...]] = {
    "audio": (),
    "background": (False,),
    "conversation": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({},),
    "reasoning_effort": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
    "verbosity": ("medium",),
    "web_search_options": (),
}


def check(body: Mapping[str, Any], served: set[str]) -> None:
    """Raises ApiError for an unknown parameter, and for an unserved one that would have an effect."""
    for name, value in body.items():
        if value is None or name in served or name in _IGNORED:
            continue
        if name not in _UNSERVED:
            raise ApiError(400, f"there is no parameter {name!r} here", "unknown_parameter", param=name)
        if value not in _UNSERVED[name]:
            raise unsupported(_refusal(name), name)


def _refusal(name: str) -> str:
    harmless = _UNSERVED[name]
    return f"{name} is not served here" + (f", other than {harmless[0]!r}" if harmless else "")
