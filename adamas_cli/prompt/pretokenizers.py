"""Pre-tokenizers: a tiktoken pattern for each, and the places where text can be cut safely."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from adamas_cli.models.vocabulary.patterns import GPT2, LLAMA3, QWEN2

# SmolLM2 and StarCoder isolate each digit first and run GPT-2's pattern on the text between, so that a run of
# spaces before a digit ends its text and is not cut before its last space.
DIGITS_THEN_GPT2 = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

# Letters in every Unicode version that a regex engine here may know: Latin, kana, ideographs, Hangul.
_LETTER = r"[A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3]"
# Characters that are not letters and join no letter before them, neither in a pattern (contractions take the
# apostrophe) nor in NFC composition: the rest of ASCII, and CJK punctuation.
_AFTER_LETTERS = r"[\x00-&(-@\[-`{-\x7f\u3001\u3002\u300c-\u3011\uff01\uff0c\uff1a\uff1b\uff1f]"

# In all four patterns, a run of letters ends exactly where the letters end, no match continues from a
# character that is not white space to a space or tab, and no match looks behind itself or past the next
# character that is not white space. If cut there, the text gives the same matches on both sides as in one
# piece.
PATTERN_SEAM = re.compile(rf"(?<={_LETTER})(?={_AFTER_LETTERS})|(?<=\S)(?=[ \t])")

Config = dict[str, Any]  # one component of tokenizer.json


def tiktoken_pattern(pre_tokenizer: Config | None) -> str | None:
    """The regex that splits text as `pre_tokenizer` (its JSON) does; None for an unknown kind."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        }:
            return DIGITS_THEN_GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": str(regex)},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if regex in (LLAMA3, QWEN2):
            return regex
    return None


def seam(
    normalizer: Config | None, pre_tokenizer: Config | None, vocabulary: Callable[[], Iterable[str]]
) -> re.Pattern[str] | None:
    """Empty matches where text can be cut without changing a token; None if no such place is known.

    `vocabulary` returns the tokens as in tokenizer.json; called only if merges run over whole lines.
    """
    if tiktoken_pattern(pre_tokenizer):
        return PATTERN_SEAM if normalizer in (None, {"type": "NFC"}) else None
    if normalizer == _SPACES_TO_BLOCKS and (pre_tokenizer is None or _splits_spaces(pre_tokenizer)):
        return _line_seam(vocabulary())
    if normalizer is None and (pre_tokenizer or {}).get("type") == "Metaspace":
        return _line_seam(vocabulary())
    return None


_SPACES_TO_BLOCKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _splits_spaces(pre_tokenizer: Config) -> bool:
    """Whether it only splits at spaces, of which `_SPACES_TO_BLOCKS` leaves none; Gemma's does nothing."""
    return pre_tokenizer["type"] == "Split" and pre_tokenizer["pattern"] == {"String": " "}


def _line_seam(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Places that no token of the vocabulary crosses: after line ends, and before most spaces.

    Without a pre-tokenizer, only merges join characters, and a merge makes a token.
    """
    before_blocks = {"▁", " ", "\n"}
    for token in tokens:
        if "\n" in token.rstrip("\n"):
            return None
        before_blocks.update(re.findall(r"([^▁])▁", token))
    joined = re.escape("".join(sorted(before_blocks)))
    return re.compile(rf"(?<=\n)(?=[^\n])|(?<=[^{joined}])(?= )")
