"""The tokens that a GGUF file lists, and their roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from adamas_cli.models.stops import END_TOKENS

KEY = "tokenizer.ggml"
ARRAYS = tuple(f"{KEY}.{name}" for name in ("tokens", "token_type", "scores", "merges"))
"""The keys whose arrays a header must hold for a vocabulary to be built of it."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # values of `token_type`
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "sep": "seperator", "mask": "mask"}
_ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message


@dataclass(frozen=True)
class Tokens:
    """texts: by id. kinds: by id, NORMAL to BYTE. scores: for SentencePiece's merges, or empty. roles: ids by
    `bos`, `eos` and so on.
    """

    texts: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[tuple[str, str]]
    roles: dict[str, int]

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids by text of all tokens in use; the first of duplicates."""
        found: dict[str, int] = {}
        for id_, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)):
            if kind != UNUSED:
                found.setdefault(text, id_)
        return found

    def of_kind(self, *kinds: int) -> list[str]:
        """The texts of these kinds of tokens, by id."""
        return [text for text, id_ in self.vocabulary.items() if self.kinds[id_] in kinds]

    def named(self) -> dict[str, str]:
        """The tokens with a role, by transformers' names such as `eos_token`."""
        return {f"{role}_token": self.texts[id_] for role, id_ in self.roles.items()}


def read_tokens(keys: Mapping[str, Any]) -> Tokens:
    """The tokens of a file, from its keys. Raises ValueError if lists are missing or differ in length."""
    texts = _list(keys, "tokens")
    if not texts:
        raise ValueError("it lists no tokens")
    kinds = _list(keys, "token_type") or [NORMAL] * len(texts)
    scores = _list(keys, "scores")
    if len(kinds) != len(texts) or len(scores) not in (0, len(texts)):
        raise ValueError("its lists of tokens are of different lengths")
    # Some converters mark the end of a turn as an ordinary word; text must never become it.
    kinds = [
        CONTROL if kind == USER_DEFINED and text in END_TOKENS else kind
        for text, kind in zip(texts, kinds, strict=True)
    ]
    return Tokens(texts, kinds, scores, [pair(merge) for merge in _list(keys, "merges")], _roles(keys, texts))


def possible(merges: list[tuple[str, str]], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges whose tokens all exist, each once; the library rejects others."""
    return [
        (left, right)
        for left, right in dict.fromkeys(merges)
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]


def with_added(tokens: Tokens, added: Mapping[int, tuple[str, bool]]) -> Tokens:
    """A vocabulary with other tokens added or replaced: texts, and whether they are control tokens, by id.
    Ids without a token are reserved.
    """
    texts, kinds = list(tokens.texts), list(tokens.kinds)
    for id_ in range(len(texts), max(added, default=-1) + 1):
        texts.append(f"<|reserved_token_{id_}|>")
        kinds.append(CONTROL)
    for id_, (text, is_control) in added.items():
        texts[id_], kinds[id_] = text, CONTROL if is_control else USER_DEFINED
    scores = tokens.scores and [*tokens.scores, *[0.0] * (len(texts) - len(tokens.scores))]
    return replace(tokens, texts=texts, kinds=kinds, scores=scores)


def end_ids(keys: Mapping[str, Any]) -> list[int]:
    """The tokens that end an answer, from the file's own keys."""
    ids = (keys.get(f"{KEY}.{end}_token_id") for end in _ENDS)
    return sorted({id_ for id_ in ids if id_ is not None})


def flag(keys: Mapping[str, Any], name: str, otherwise: bool) -> bool:
    """A setting such as `add_bos_token`."""
    return bool(keys.get(f"{KEY}.{name}", otherwise))


def _list(keys: Mapping[str, Any], name: str) -> list[Any]:
    found = keys.get(f"{KEY}.{name}", [])
    if not isinstance(found, list):
        raise ValueError(f"its {KEY}.{name} is not a list")
    return found


def pair(merge: str) -> tuple[str, str]:
    """The parts of a merge. Raises ValueError for an invalid line."""
    middle = merge.find(" ", 1)  # the left part may begin with a space
    if middle < 0:
        raise ValueError(f"its merge {merge!r} is not a pair")
    return merge[:middle], merge[middle + 1 :]


def _roles(keys: Mapping[str, Any], texts: list[str]) -> dict[str, int]:
    ids = {role: keys.get(f"{KEY}.{name}_token_id") for role, name in _ROLES.items()}
    return {role: id_ for role, id_ in ids.items() if isinstance(id_, int) and 0 <= id_ < len(texts)}
