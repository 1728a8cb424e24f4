"""Builds the tokenizer that a GGUF file describes, identical to the model's own.

A GGUF file has the vocabulary, merges or scores, but only the *name* of the rule that splits text first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.vocabulary.byte_level import byte_level
from adamas_cli.models.vocabulary.sentencepiece import sentencepiece
from adamas_cli.models.vocabulary.splitting import SPLITTINGS, UNKNOWN, Splitting
from adamas_cli.models.vocabulary.templates import chat_template
from adamas_cli.models.vocabulary.tokens import CONTROL, KEY, USER_DEFINED, Tokens, flag, read_tokens
from adamas_cli.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# `tokenizer.ggml.model`
_BYTE_LEVEL, _SENTENCEPIECE, _GEMMA4 = "gpt2", "llama", "gemma4"
_LIKE_GEMMA4 = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")  # rules with merges over whole lines
_REFUSED = {
    "bert": "WordPiece",
    "t5": "SentencePiece unigrams",
    "rwkv": "RWKV's words",
    "plamo2": "PLaMo's tables",
    "hybriddna": "bases of DNA",
    "whitespace": "words between white space",
    "none": "nothing",
    "no_vocab": "nothing",
}
_DEFAULT_ROLES = {"bos": 1, "eos": 2, "unk": 0}  # SentencePiece's defaults


def tokenizer_of(keys: Mapping[str, Any], progress: Progress) -> PreTrainedTokenizerFast:
    """The tokenizer from the keys of a GGUF file, with ARRAYS as lists, and its chat templates.

    A byte-level vocabulary with an unknown rule is split by a common one, with a note. Raises
    ModelUnavailableError for other kinds of vocabulary, ValueError for a damaged one.
    """
    from transformers import PreTrainedTokenizerFast

    kind, rule = keys.get(f"{KEY}.model"), keys.get(f"{KEY}.pre") or None
    tokens = read_tokens(keys)
    adds_bos = False
    if kind == _GEMMA4 or (kind == _BYTE_LEVEL and rule in _LIKE_GEMMA4):
        tokenizer = sentencepiece(tokens, space_prefix=False)
        adds_bos = rule != "sarvam-moe"
    elif kind == _BYTE_LEVEL:
        if not tokens.merges:
            raise ValueError("it lists no merges")
        splitting = _splitting(rule, progress)
        tokenizer, adds_bos = byte_level(tokens, splitting), splitting.bos
    elif kind == _SENTENCEPIECE:
        tokens.roles.update({**_DEFAULT_ROLES, **tokens.roles})
        tokenizer = sentencepiece(tokens, space_prefix=flag(keys, "add_space_prefix", True))
        adds_bos = True
    else:
        named = _REFUSED.get(str(kind), f"a kind {kind!r}")
        raise ModelUnavailableError(
            f"its vocabulary is of {named}, which adamas does not read.\nUse a model with another tokenizer."
        )
    add_tokens(tokenizer, tokens)
    add_ends(tokenizer, tokens, bos=_adds(keys, "bos", adds_bos), eos=_adds(keys, "eos", False))
    options: dict[str, Any] = {"tokenizer_object": tokenizer, **tokens.named()}
    built = PreTrainedTokenizerFast(clean_up_tokenization_spaces=False, **options)
    built.chat_template = chat_template(keys)
    return built


def _splitting(rule: str | None, progress: Progress) -> Splitting:
    if rule is None:
        progress.note("the file does not say how to split text; token counts may be slightly wrong")
        return SPLITTINGS["default"]
    if rule not in SPLITTINGS:
        progress.note(
            f"splitting text as most models do, since {rule!r} is unknown; token counts may be slightly wrong"
        )
    return SPLITTINGS.get(rule, UNKNOWN)


def _adds(keys: Mapping[str, Any], role: str, otherwise: bool) -> bool:
    return flag(keys, f"add_{role}_token", otherwise)


def add_tokens(tokenizer: Tokenizer, tokens: Tokens) -> None:
    """Register the tokens that are found in text before it is split."""
    from tokenizers import AddedToken

    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in tokens.of_kind(CONTROL)]
    )
    known = tokenizer.get_vocab(with_added_tokens=True)
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text in tokens.of_kind(USER_DEFINED) if text in known]
    )


def add_ends(tokenizer: Tokenizer, tokens: Tokens, *, bos: bool, eos: bool) -> None:
    """Begin and end every text with the tokens that the model was trained with."""
    from tokenizers import processors

    named = tokens.named()
    first = [named["bos_token"]] if bos and "bos_token" in named else []
    last = [named["eos_token"]] if eos and "eos_token" in named else []
    if first or last:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", "$B", *last],
            special_tokens=[(text, tokens.vocabulary[text]) for text in dict.fromkeys([*first, *last])],
        )
    elif _is_byte_level(tokenizer):
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    from tokenizers import decoders

    return isinstance(tokenizer.decoder, decoders.ByteLevel)
