"""Vocabularies of bytes in GPT-2's spelling, and their merges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamas_cli.models.vocabulary import patterns
from adamas_cli.models.vocabulary.splitting import Splitting
from adamas_cli.models.vocabulary.tokens import Tokens, possible

if TYPE_CHECKING:
    from tokenizers import Tokenizer, pre_tokenizers


def byte_level(tokens: Tokens, splitting: Splitting) -> Tokenizer:
    """The tokenizer without its added tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE(
            tokens.vocabulary, possible(tokens.merges, tokens.vocabulary), ignore_merges=splitting.whole_words
        )
    )
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    *first, last = _steps(splitting.patterns)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, last]) if first else last
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _steps(regexes: tuple[str, ...]) -> list[pre_tokenizers.PreTokenizer]:
    """Steps that split text by each pattern in turn, in the publishers' own form."""
    from tokenizers import Regex, pre_tokenizers

    by_gpt2 = regexes[-1] == patterns.GPT2
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Digits(individual_digits=True)
        if regex == patterns.DIGIT
        else pre_tokenizers.Split(Regex(regex), behavior="isolated")
        for regex in (regexes[:-1] if by_gpt2 else regexes)
    ]
    return [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_gpt2)]
