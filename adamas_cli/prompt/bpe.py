"""The fast path of tokenization: a byte-level BPE in tiktoken, used only if it gives equal tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adamas_cli.prompt.hard_sample import HARD_SAMPLE

if TYPE_CHECKING:
    import tokenizers


class NotEquivalentError(Exception):
    """tiktoken would not give this model's tokens; the message says why."""


def _byte_alphabet() -> dict[str, int]:
    """Each byte's printable character in GPT-2's alphabet, which byte-level vocabularies are written in."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_TO_BYTE = {ord(character): byte for character, byte in _byte_alphabet().items()}


def alphabet_bytes(token: str) -> bytes:
    """The bytes of a token in a byte-level vocabulary; ValueError if it is not in that alphabet."""
    return token.translate(_TO_BYTE).encode("latin-1")


# Two regex engines with different Unicode versions disagree about letters and digits. Scripts that are still
# growing (Unicode 15 and later), mostly beyond the basic plane, are therefore left to the model's own
# tokenizer; mathematical letters, emoji and settled ideographs are not.
_GROWING_SCRIPTS = (
    "\u0870-\u089f\u0c5c\u0cdc\u1c80-\u1c8f\ua7cb-\ua7f1\U00010000-\U0001d3ff\U0001d800-\U0001efff"
    "\U0002b73a-\U0002b73f\U0002ebe1-\U0002f7ff\U0003134b-\U000dffff"
)


class FastPath:
    """A tiktoken encoding that gives exactly the ids of one byte-level BPE tokenizer.

    They are equal by construction. tiktoken merges the adjacent pair whose joined bytes have the lowest id,
    whatever the pair; the model's tokenizer merges the listed pair that comes first in the list. Both agree
    on all text if (1) the merges' results are in the order of their ids and (2) each result, taken alone, is
    rebuilt by the merges: until a pair is joined, nothing has crossed its ends, so its bytes went through
    the same steps as if alone, and there the pair is a listed one. That patterns and classes agree is tested
    on a sample.
    """

    def __init__(self, tokenizer_json: Path, plain: tokenizers.Tokenizer, pattern: str) -> None:
        """Build from the file, the same tokenizer without added tokens, and its pre-tokenizer's pattern.

        Raises NotEquivalentError with the reason if tiktoken would not give the same ids.
        """
        import tiktoken

        ranks = _mergeable_ranks(tokenizer_json, plain)
        self._left_to_model = re.compile(f"[{_GROWING_SCRIPTS}{_unwritable(ranks)}]")
        self._encoding = tiktoken.Encoding(
            tokenizer_json.parent.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        sample = plain.normalizer.normalize_str(HARD_SAMPLE) if plain.normalizer else HARD_SAMPLE
        sample = self._left_to_model.sub("", sample)
        if self.encode(sample).tolist() != plain.encode(sample).ids:
            raise NotEquivalentError("tiktoken gave different tokens for the sample text")

    def serves(self, text: str) -> bool:
        """Whether both libraries are known to treat every character of `text` alike."""
        return self._left_to_model.search(text) is None

    def encode(self, text: str) -> np.ndarray:
        """The ids (int32) of normalized text that this path `serves`."""
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int32)


def _mergeable_ranks(tokenizer_json: Path, plain: tokenizers.Tokenizer) -> dict[bytes, int]:
    """Bytes to id for all tokens that text can give; NotEquivalentError if ids are not in merge order."""
    model = json.loads(tokenizer_json.read_text(encoding="utf-8"))["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("unk_token") or model.get("dropout"):
        raise NotEquivalentError("the model is not a plain byte-level BPE")
    vocabulary: dict[str, int] = model["vocab"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    results = [left + right for left, right in pairs]
    order = np.array([vocabulary[result] for result in results], dtype=np.int64)
    if (np.diff(order) < 0).any():
        raise NotEquivalentError("the merges are not in the order of their token ids")
    if model.get("ignore_merges"):
        _require_every_split(vocabulary, results)
    else:
        alone = plain.model.tokenize
        if any(len(alone(result)) != 1 for result in results):
            raise NotEquivalentError("the merges do not rebuild every token that they make")
    reached = {*results, *(character for character in vocabulary if len(character) == 1)}
    try:
        return {
            alphabet_bytes(token): token_id
            for token, token_id in vocabulary.items()
            if token in reached or model.get("ignore_merges")
        }
    except ValueError:
        raise NotEquivalentError("the vocabulary is not written in the byte-level alphabet") from None


def _require_every_split(vocabulary: dict[str, int], results: list[str]) -> None:
    """Check that each token's merges list all its splits into two tokens, as conversions from tiktoken do.

    With `ignore_merges`, a token need not be rebuilt by merges; it is enough that none of its splits is
    missing.
    """
    listed: dict[str, int] = {}
    for result in results:
        listed[result] = listed.get(result, 0) + 1
    for token in vocabulary:
        splits = sum(token[:n] in vocabulary and token[n:] in vocabulary for n in range(1, len(token)))
        if splits != listed.get(token, 0):
            raise NotEquivalentError("the merges do not list every split of every token")


def _unwritable(ranks: dict[bytes, int]) -> str:
    """A regex class, without its brackets, of characters with a byte that the vocabulary lacks."""
    ranges = []
    for byte in range(0x100):
        if bytes([byte]) in ranks:
            continue
        if byte < 0x80:
            ranges.append((byte, byte))
        elif byte < 0xC0:
            raise NotEquivalentError(f"the vocabulary lacks the byte {byte:#04x}")
        elif 0xC2 <= byte < 0xE0:
            ranges.append(((byte & 0x1F) << 6, ((byte & 0x1F) << 6) + 0x3F))
        elif 0xE0 <= byte < 0xF0:
            ranges.append(((byte & 0x0F) << 12, ((byte & 0x0F) << 12) + 0xFFF))
        elif 0xF0 <= byte < 0xF5:
            ranges.append(((byte & 0x07) << 18, min(((byte & 0x07) << 18) + 0x3FFFF, 0x10FFFF)))
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
