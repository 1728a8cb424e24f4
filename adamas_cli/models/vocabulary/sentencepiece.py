"""SentencePiece's vocabularies of characters, with `▁` for a space and bytes for missing characters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from adamas_cli.models.vocabulary.tokens import BYTE, NORMAL, USER_DEFINED, Tokens, possible

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
_RUN = re.compile(r"(.)\1+", re.DOTALL)  # a character repeated several times
_ANY_BYTE = 256


def sentencepiece(tokens: Tokens, *, space_prefix: bool) -> Tokenizer:
    """The tokenizer without its added tokens; its merges are listed, or derived from the pieces' scores.
    space_prefix: whether a text, and text after an added token, begins with a space.

    Raises ValueError if there are neither scores nor merges.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    if not tokens.scores and not tokens.merges:
        raise ValueError("it lists neither scores nor merges")
    vocabulary = {_written(text): id_ for text, id_ in reversed(tokens.vocabulary.items())}
    looked_for = set(map(_written, tokens.of_kind(USER_DEFINED)))
    merges = [*_runs(looked_for, vocabulary), *(tokens.merges or _by_score(tokens, vocabulary))]
    unknown = tokens.named().get("unk_token")
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            possible(merges, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=len(tokens.of_kind(BYTE)) == _ANY_BYTE,
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if space_prefix else spaces
    )
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if space_prefix else [])])
    return tokenizer


def _written(text: str) -> str:
    """A token as merges see it: converters write runs of spaces as spaces, where text has `▁`."""
    return SPACE * len(text) if text.strip(" ") == "" else text


def _runs(looked_for: set[str], vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Merges that rebuild tokens such as three line ends, before any others: SentencePiece looks for these
    before it merges, and no pair has a score for them.
    """
    runs = sorted((text for text in looked_for if _RUN.fullmatch(text)), key=len)
    for text in (text for text in runs if text[0] in (SPACE, "\n", "\t")):
        for length in range(1, len(text)):
            if text[:length] in vocabulary and text[length:] in vocabulary:
                yield text[:length], text[length:]


def _by_score(tokens: Tokens, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a third, ordered by the third's score."""
    pieces = set(tokens.of_kind(NORMAL))
    parts = pieces | {_written(text) for text in tokens.of_kind(USER_DEFINED)}
    found = [
        (-tokens.scores[vocabulary[piece]], len(piece) - length, piece[:length], piece[length:])
        for piece in pieces
        for length in range(1, len(piece))
        if piece[:length] in parts and piece[length:] in parts
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
