"""Which tokens end an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.models.folder import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATION = "generation_config.json"

# How the chat templates and pretraining of the supported families end a turn or a text. Some models'
# generation settings name only one of theirs, and every settings file that was made from a GGUF does.
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
# Where a model has these, `<|end|>` ends only one of the messages that make up its answer.
_ENDS_OF_ANSWERS = ({"<|return|>", "<|call|>"}, {"<|flush|>", "<|calls|>"})
_END_OF_MESSAGE = "<|end|>"


def stop_ids(model: PreTrainedModel, directory: Path, texts: Path | None = None) -> tuple[int, ...]:
    """The ids of all tokens that end an answer: those the model's settings name, and END_TOKENS it has.
    texts: the folder of its tokenizer, by default its `directory`.
    """
    named = [
        *_ids(getattr(model.generation_config, "eos_token_id", None)),
        *_ids(model.config.get_text_config().eos_token_id),
        # A model that is made of a GGUF file has no such settings of its own.
        *_ids(read_object(directory / GENERATION).get("eos_token_id")),
    ]
    return tuple(sorted({*named, *_end_tokens(texts or directory)}))


def _ids(value: object) -> list[int]:
    """The ids in a setting, which is one of them, a list, or damaged."""
    values = value if isinstance(value, list | tuple) else [value]
    return [id_ for id_ in values if isinstance(id_, int)]


def _end_tokens(directory: Path) -> list[int]:
    path = directory / "tokenizer.json"
    if not path.is_file():
        return []
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
    ends = {token["content"]: token["id"] for token in added if token["special"]}
    if any(both <= ends.keys() for both in _ENDS_OF_ANSWERS):
        ends.pop(_END_OF_MESSAGE, None)
    return [id_ for text, id_ in ends.items() if text in END_TOKENS]
