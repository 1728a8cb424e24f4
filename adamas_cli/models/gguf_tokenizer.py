"""The tokenizer of a GGUF file, the same as the model's own.

A GGUF file holds the vocabulary and merges, and only the *name* of the rule that splits text before them.
What transformers makes of these differs between its versions and misses some (SmolLM2's single digits,
Qwen2's NFC, the end of a turn), so byte-level BPE vocabularies of the families below are built here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.models.gguf.header import read_header
from adamas_cli.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_BYTE_LEVEL = "gpt2"  # `tokenizer.ggml.model` of every byte-level BPE vocabulary
_ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # values of `tokenizer.ggml.token_type`
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}


@dataclass(frozen=True)
class Splitting:
    """How a byte-level BPE vocabulary wants its text prepared."""

    pattern: str | None = None  # what a piece is; None is GPT-2's own pattern
    single_digits: bool = False  # digits are cut apart before the pattern applies
    nfc: bool = False  # Unicode is composed first
    whole_words: bool = False  # a piece that is in the vocabulary is taken as it is, without merges


def _words(digits: str) -> str:
    return (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_DIGITS = Splitting(single_digits=True)
_LLAMA3 = Splitting(pattern=_words(digits="{1,3}"), whole_words=True)

SPLITTINGS = {
    "gpt-2": Splitting(),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "qwen2": Splitting(pattern=_words(digits=""), nfc=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}
"""By `tokenizer.ggml.pre`, the name that llama.cpp gave each rule."""


def tokenizer_from_gguf(path: Path, progress: Progress) -> PreTrainedTokenizerFast:
    """The tokenizer that the file at `path` describes.

    A vocabulary whose rule is not in SPLITTINGS is left to transformers, with a note. Raises DamagedGgufError
    for a damaged file, and what transformers raises for a kind of tokenizer that it does not know.
    """
    from transformers import PreTrainedTokenizerFast

    keys = read_header(path, _ARRAYS).keys
    rule = keys.get("tokenizer.ggml.pre", "default")
    byte_level = keys.get("tokenizer.ggml.model") == _BYTE_LEVEL
    if byte_level and rule in SPLITTINGS:
        options: dict[str, Any] = {"tokenizer_object": _byte_level(keys, SPLITTINGS[rule])}
        tokenizer = PreTrainedTokenizerFast(clean_up_tokenization_spaces=False, **options, **_named(keys))
    else:
        if byte_level:
            progress.note(
                f"splitting text as transformers does for {rule!r}; token counts may be a little off"
            )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, **_named(keys)
        )
    tokenizer.chat_template = keys.get("tokenizer.chat_template")
    return tokenizer


def _named(keys: dict[str, Any]) -> dict[str, str]:
    """The tokens with a role, such as `eos_token`."""
    tokens = keys["tokenizer.ggml.tokens"]
    ids = {name: keys.get(f"tokenizer.ggml.{key}") for name, key in _NAMED.items()}
    return {name: tokens[id_] for name, id_ in ids.items() if id_ is not None}


def _byte_level(keys: dict[str, Any], splitting: Splitting) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens, types, merges = (keys[name] for name in _ARRAYS)
    kinds = dict(zip(tokens, types, strict=True))
    vocabulary = {token: id_ for id_, token in enumerate(tokens) if kinds[token] != _UNUSED}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=splitting.whole_words))
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in tokens if kinds[token] == _CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False) for token in tokens if kinds[token] == _USER_DEFINED]
    )
    steps: list[pre_tokenizers.PreTokenizer] = []
    if splitting.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return _with_bos(tokenizer, keys)


def _with_bos(tokenizer: Tokenizer, keys: dict[str, Any]) -> Tokenizer:
    """Begin every text with the token that the model was trained to see first, if it was."""
    from tokenizers import processors

    bos = _named(keys).get("bos_token")
    if keys.get("tokenizer.ggml.add_bos_token", False) and bos is not None:
        id_ = keys["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, id_)]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer
