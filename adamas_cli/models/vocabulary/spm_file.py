"""SentencePiece's own files (`tokenizer.model`), read without its library: a protobuf message."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adamas_cli.models.vocabulary.sentencepiece import SPACE, sentencepiece
from adamas_cli.models.vocabulary.tokens import BYTE, NORMAL, USER_DEFINED, Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UNIGRAM, _BPE = 1, 2  # values of `model_type`
# Field numbers: of the file, a piece, the trainer's and the normalizer's settings.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE = 3
_ROLES = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}  # with defaults
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES = 2, 3, 4
_NEVER = -1e6  # a score

Value = int | bytes


@dataclass(frozen=True)
class SpmFile:
    """tokens: with roles by id. unigram: whether pieces are chosen jointly by score, not merged. charsmap:
    how characters are normalized, in the library's own form. space_prefix: whether texts begin with a space.
    squeezes: whether runs of spaces become one, and are dropped at both ends.
    """

    tokens: Tokens
    unigram: bool
    charsmap: bytes
    space_prefix: bool
    squeezes: bool

    def tokenizer(self, *, after_control: bool = True) -> Tokenizer:
        """The tokenizer without its added tokens. after_control: whether text after an added token begins
        with a space, as at the start. Raises ValueError for a damaged vocabulary.
        """
        from tokenizers import Regex, normalizers, pre_tokenizers

        built = self._of_scores() if self.unigram else sentencepiece(self.tokens, space_prefix=False)
        steps: list[normalizers.Normalizer] = []
        if self.charsmap:
            steps.append(normalizers.Precompiled(self.charsmap))
        if self.squeezes:
            steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        if self.space_prefix and not after_control:
            built.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
        else:
            steps += [normalizers.Prepend(SPACE)] if self.space_prefix else []
            steps.append(normalizers.Replace(" ", SPACE))
        built.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else next(iter(steps), None)
        return built

    def _of_scores(self) -> Tokenizer:
        from tokenizers import Tokenizer, decoders, models

        tokens = self.tokens
        # Text that looks like a control token or a byte must never become one.
        pieces = [
            (text, score if kind in (NORMAL, USER_DEFINED) else _NEVER)
            for text, kind, score in zip(tokens.texts, tokens.kinds, tokens.scores, strict=True)
        ]
        fallback = bool(tokens.of_kind(BYTE))
        built = Tokenizer(models.Unigram(pieces, tokens.roles.get("unk"), byte_fallback=fallback))
        built.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        return built


def read_spm_file(data: bytes) -> SpmFile:
    """The vocabulary in a file. Raises ValueError if it is damaged, not a SentencePiece model, or of a kind
    that language models do not use.
    """
    texts: list[str] = []
    kinds: list[int] = []
    scores: list[float] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    for field, value in _fields(data):
        if field == _PIECE:
            piece = dict(_fields(_bytes(value)))
            texts.append(_bytes(piece.get(_TEXT, b"")).decode("utf-8"))
            scores.append(_float(piece.get(_SCORE)))
            kinds.append(_int(piece.get(_KIND, NORMAL)))
        elif field == _TRAINER:
            trainer = dict(_fields(_bytes(value)))
        elif field == _NORMALIZER:
            normalizer = dict(_fields(_bytes(value)))
    model_type = trainer.get(_MODEL_TYPE, _UNIGRAM)
    if not texts or model_type not in (_UNIGRAM, _BPE):
        raise ValueError("it has no vocabulary of pieces")
    ids = {role: _signed(_int(trainer.get(field, default))) for role, (field, default) in _ROLES.items()}
    return SpmFile(
        Tokens(texts, kinds, scores, [], {role: id_ for role, id_ in ids.items() if 0 <= id_ < len(texts)}),
        unigram=model_type == _UNIGRAM,
        charsmap=_bytes(normalizer.get(_CHARSMAP, b"")),
        space_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        squeezes=bool(normalizer.get(_EXTRA_SPACES, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a protobuf message: varints as numbers, fixed-length and other fields as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError("it is not a SentencePiece model, or damaged")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and its end position."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("it is not a SentencePiece model, or damaged")


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("it is not a SentencePiece model, or damaged")
    return value


def _int(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("it is not a SentencePiece model, or damaged")
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _float(value: Value | None) -> float:
    if value is None:
        return 0.0
    (found,) = struct.unpack("<f", _bytes(value))
    return float(found)
