"""Vocabularies of bytes with ranks, in tiktoken's and Mistral's tekken form, converted to merges."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adamas_cli.models.vocabulary.byte_level import byte_level
from adamas_cli.models.vocabulary.splitting import Splitting
from adamas_cli.models.vocabulary.tokens import CONTROL, NORMAL, Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Rule:
    """How the publisher of a tiktoken file splits text, by a name in SPLITTINGS, and the control tokens that
    its code adds after the file's, if the model's settings do not list them.
    """

    splitting: str
    added: tuple[str, ...] = ()


def _numbered(form: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(form.format(number) for number in range(first, last))


_RESERVED = "<|reserved_special_token_{}|>"
LLAMA3 = Rule(
    "llama-bpe",
    (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *_numbered(_RESERVED, 0, 4),
        "<|start_header_id|>",
        "<|end_header_id|>",
        _RESERVED.format(4),
        "<|eot_id|>",
        *_numbered(_RESERVED, 5, 251),
    ),
)
RULES = {
    "tokenizer.model": LLAMA3,  # if it is not a SentencePiece model
    "tiktoken.model": Rule("kimi-k2"),
    "qwen.tiktoken": Rule(
        "qwen2", ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_numbered("<|extra_{}|>", 0, 205))
    ),
    "hy.tiktoken": Rule("hunyuan"),
    "cl100k_base.tiktoken": Rule("dbrx"),
    "o200k_base.tiktoken": Rule("gpt-4o"),
}
"""By the file's name, as no setting tells it."""

# For versions that do not list them.
_TEKKEN_CONTROL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "<pad>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
)
_TEKKEN_ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}


def read_tiktoken(data: bytes) -> list[bytes]:
    """The tokens of a tiktoken file by id. Raises ValueError for a damaged one."""
    try:
        entries = [line.split() for line in data.splitlines() if line.strip()]
        ranks = {int(rank): base64.b64decode(token, validate=True) for token, rank in entries}
    except (ValueError, binascii.Error) as error:
        raise ValueError("it is not a tiktoken file, or damaged") from error
    if sorted(ranks) != list(range(len(ranks))) or not ranks:
        raise ValueError("its ranks are not consecutive")
    return [ranks[rank] for rank in range(len(ranks))]


def tiktoken_tokens(tokens: list[bytes]) -> Tokens:
    """The vocabulary of these tokens."""
    texts = [_written(token) for token in tokens]
    return Tokens(texts, [NORMAL] * len(texts), [], _merges(texts), {})


def read_tekken(data: bytes) -> tuple[Tokens, Splitting]:
    """The tokens of a tekken.json, and how it splits text. Raises ValueError, KeyError or TypeError for a
    damaged one.
    """
    stored: dict[str, Any] = json.loads(data)
    config = stored["config"]
    control = int(config["default_num_special_tokens"])
    listed = {entry["rank"]: entry["token_str"] for entry in stored.get("special_tokens") or []}
    named = listed or dict(enumerate(_TEKKEN_CONTROL))
    size = int(config["default_vocab_size"]) - control
    words = sorted(stored["vocab"], key=lambda entry: int(entry["rank"]))[:size]
    texts = [named.get(id_, f"<SPECIAL_{id_}>") for id_ in range(control)]
    plain = [_written(base64.b64decode(entry["token_bytes"])) for entry in words]
    roles = {role: texts.index(text) for role, text in _TEKKEN_ROLES.items() if text in texts}
    kinds = [CONTROL] * control + [NORMAL] * len(plain)
    tokens = Tokens(texts + plain, kinds, [], _merges(plain), roles)
    return tokens, Splitting((str(config["pattern"]),), bos=True)


_INSTRUCTION = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- '[INST]' + message['content'] + '[/INST]' }}"
    "{%- elif message['role'] == 'assistant' %}{{- message['content'] + eos_token }}"
    "{%- elif message['role'] == 'system' %}SYSTEM{%- endif %}{%- endfor %}"
)
_SYSTEM_PROMPT = "{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
_NO_SYSTEM = "{{- raise_exception('it takes no system role') }}"


def tekken_template(tokens: Tokens) -> str:
    """The chat template that Mistral's own library has in code rather than in a file."""
    system = _SYSTEM_PROMPT if "[SYSTEM_PROMPT]" in tokens.vocabulary else _NO_SYSTEM
    return _INSTRUCTION.replace("SYSTEM", system, 1)


def by_ranks(tokens: Tokens, splitting: Splitting) -> Tokenizer:
    """The tokenizer without its added tokens. Raises ValueError for a token without bytes."""
    return byte_level(tokens, replace(splitting, whole_words=True))


def _written(token: bytes) -> str:
    """A token in GPT-2's alphabet, with one character per byte."""
    return token.decode("latin-1").translate(_ALPHABET)


def _alphabet() -> dict[int, str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    return {byte: chr(0x100 + number) for number, byte in enumerate(others)}


_ALPHABET = _alphabet()


def _merges(tokens: list[str]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a third, ordered by the third's rank, then by theirs."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found: list[tuple[str, str]] = []
    for token in tokens:
        splits = [(token[:n], token[n:]) for n in range(1, len(token))]
        pairs = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
        found += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return found
