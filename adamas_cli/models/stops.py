"""The tokens that end an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.models.folder import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATION = "generation_config.json"

# How the chat templates and pretraining of the supported families end a turn or a text. Some models'
# generation settings name only one of these, as do all settings made from a GGUF.
END_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<turn|>",
        "<|end|>",
        "<|return|>",
        "<|endofturn|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<end_of_utterance>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "[e~[",
        "[EOT]",
        "[EOS]",
        "<EOT>",
        "</s>",
        "<eos>",
    }
)
# In models with these tokens, `<|end|>` ends only one of an answer's messages.
_OF_MESSAGES = ({"<|channel|>", "<|message|>"}, {"<|return|>", "<|call|>"}, {"<|flush|>", "<|calls|>"})
_END_OF_MESSAGE = "<|end|>"
_ADDED = re.compile(r'"added_tokens"\s*:\s*\[')


def stop_ids(model: PreTrainedModel, directory: Path, texts: Path | None = None) -> tuple[int, ...]:
    """The ids of all tokens that end an answer: those named by the model's settings, and its END_TOKENS.
    texts: the folder of its tokenizer, by default its `directory`.
    """
    named = [
        *_ids(getattr(model.generation_config, "eos_token_id", None)),
        *_ids(model.config.get_text_config().eos_token_id),
        # A model built from a GGUF file has no such settings of its own.
        *_ids(read_object(directory / GENERATION).get("eos_token_id")),
    ]
    added = _added_tokens(texts or directory)
    known = (added[text] for text in END_TOKENS & added.keys())
    ends = {*named, *(token["id"] for token in known if token["special"])}
    if _END_OF_MESSAGE in added and any(marks <= added.keys() for marks in _OF_MESSAGES):
        ends.discard(added[_END_OF_MESSAGE]["id"])
    return tuple(sorted(ends))


def _ids(value: object) -> list[int]:
    """The ids in a setting, which is one id, a list, or damaged."""
    values = value if isinstance(value, list | tuple) else [value]
    return [id_ for id_ in values if isinstance(id_, int)]


def _added_tokens(directory: Path) -> dict[str, dict[str, Any]]:
    """The tokenizer's added tokens, by text. Only their list is parsed: the vocabulary takes most of a
    second.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    key = _ADDED.search(text)  # a vocabulary has no lists
    added = [] if key is None else json.JSONDecoder().raw_decode(text, key.end() - 1)[0]
    return {token["content"]: token for token in added}
