"""Exact tokenization of texts of any size, and tokens back to text."""

from __future__ import annotations

import codecs
import json
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.prompt.blocks import blocks
from adamas_cli.prompt.bpe import FastPath, NotEquivalentError, alphabet_bytes
from adamas_cli.prompt.prefix import prefix_places, without_prefix
from adamas_cli.prompt.pretokenizers import seam, tiktoken_pattern
from adamas_cli.prompt.template import without_surrogates

if TYPE_CHECKING:
    import tokenizers

    from adamas_cli.models import ModelFiles

# Building the fast path takes as long as the model's tokenizer takes for about this many characters.
# Switching at that point never takes more than twice the time of the better choice, however long the text
# turns out.
FAST_FROM = 1_000_000


_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """The tokenizer of one model, as its tokenizer.json defines it.

    A document's text never becomes a control token. Control tokens are the added tokens that are marked
    special, and those that the model's merges do not spell, such as Qwen's `<tool_call>`: text that looks
    like one is tokenized as plain characters. Lone surrogates count as U+FFFD.

    begins: whether a piece of a prompt gets the space that the tokenizer puts before a text, see `begins`.
    """

    def __init__(self, tokenizer_json: Path, rows: int | None = None) -> None:
        """Read `tokenizer_json`. rows: the number of rows in the model's embeddings, if known: text with a
        token beyond them is refused.

        Raises ModelUnavailableError for that, and if the file is missing or damaged.
        """
        import tokenizers

        if not tokenizer_json.is_file():
            raise ModelUnavailableError(
                f"{tokenizer_json.parent} has no tokenizer.json. Use a directory in the Hugging Face layout."
            )
        try:
            self._template = tokenizers.Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # the library raises plain Exception for files that it cannot read
            raise ModelUnavailableError(
                f"{tokenizer_json} cannot be read ({error}). Fetch the model again."
            ) from error
        self._template.no_truncation()
        self._template.no_padding()
        self._path, self._rows = tokenizer_json, rows
        self._beginning, self.control_tokens = _without_control_tokens(self._template)
        self._control_ids = frozenset(self.control_tokens.values())
        self._added_ids = frozenset(self._template.get_added_tokens_decoder())
        self._prefix = prefix_places(
            _config(self._template.normalizer), _config(self._template.pre_tokenizer)
        )
        self._plain = _without_prefix(self._beginning) if self._prefix else self._beginning
        self._byte_level = "ByteLevel" in str(_config(self._template.decoder))
        self._characters = 0  # encoded so far
        self._fast_lock = threading.Lock()

    @classmethod
    def of(cls, files: ModelFiles) -> Tokenizer:
        """The tokenizer of a model on this machine."""
        return cls(files.texts / "tokenizer.json", files.rows)

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """The tokenizer of a model directory; ModelUnavailableError if it is missing or damaged."""
        return cls(directory / "tokenizer.json")

    @property
    def fast(self) -> bool:
        """Whether tiktoken gives this model's tokens; asking builds the fast path (about a second, once)."""
        return isinstance(self._fast_path, FastPath)

    @property
    def reason(self) -> str:
        """Why there is no fast path; empty if there is one."""
        return "" if isinstance(self._fast_path, FastPath) else self._fast_path

    def expect(self, characters: int) -> None:
        """Announce the approximate length: long text takes the fast path from the start."""
        if characters >= FAST_FROM:
            self._characters = max(self._characters, FAST_FROM)

    @property
    def piecewise(self) -> bool:
        """Whether long text is tokenized in blocks; otherwise it must fit in memory several times over."""
        return self._seam is not None

    def begins(self, before: str) -> bool:
        """Whether the tokenizer puts a space before the text that follows this template text."""
        if not before or self._prefix != "sections":
            return not before and self._prefix is not None
        last = self._template.encode(without_surrogates(before), add_special_tokens=False).ids[-1:]
        return bool(last) and last[0] in self._added_ids

    def encode(self, text: str, *, begins: bool = False) -> np.ndarray:
        """The ids (int32 [n]) of a document or a question, without control tokens and without BOS."""
        return np.concatenate([_NO_IDS, *self.stream([text], begins=begins)])

    def stream(self, pieces: Iterable[str], *, begins: bool = False) -> Iterator[np.ndarray]:
        """The ids of the concatenated pieces, equal to those of `encode`, in blocks (int32 [n]).

        Pieces may be cut anywhere. Memory does not grow with the text if the tokenizer is `piecewise`. The
        ids equal those of the model's own tokenizer, except for stretches of more than LONGEST_WORD
        characters without a seam.
        """
        for block in blocks(map(without_surrogates, pieces), self._seam):
            self._characters += len(block)
            yield self._with_rows(self._encode_block(block, begins))
            begins = False

    def encode_template(self, text: str, *, begins: bool = False) -> np.ndarray:
        """The ids (int32 [n]) of chat template text: control tokens are recognised, nothing is added."""
        text = without_surrogates(text)
        encoding = self._template.encode(text, add_special_tokens=False)
        if begins or self._prefix is None:
            return self._with_rows(np.array(encoding.ids, dtype=np.int32))
        added = (
            start
            for id_, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
            if id_ in self._added_ids
        )
        start = next(added, len(text))
        rest = self._template.encode(text[start:], add_special_tokens=False)
        first = self._plain.encode(text[:start], add_special_tokens=False)
        return self._with_rows(np.array([*first.ids, *rest.ids], dtype=np.int32))

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self._template.get_vocab(with_added_tokens=True).values()) + 1

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token: none for a control token or an id outside the vocabulary."""
        token = self._template.id_to_token(token_id)
        if token is None or token_id in self._control_ids:
            return b""
        if self._byte_level:
            return alphabet_bytes(token)
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        return token.replace("▁", " ").encode()

    def decoder(self, marks: Mapping[int, str] | None = None) -> Decoder:
        """A new decoder for one stream of tokens. marks: text to show for tokens without text, by id."""
        return Decoder(self, marks or {})

    @cached_property
    def _seam(self) -> re.Pattern[str] | None:
        config = _config(self._plain.normalizer), _config(self._plain.pre_tokenizer)
        return seam(*config, self._template.get_vocab)

    @property
    def _fast_path(self) -> FastPath | str:
        with self._fast_lock:  # a thread that tokenizes ahead and its consumer may both ask first
            return self._built_fast_path

    @cached_property
    def _built_fast_path(self) -> FastPath | str:
        """The fast path, or why there is none."""
        pattern = tiktoken_pattern(_config(self._plain.pre_tokenizer))
        if pattern is None:
            return "its pre-tokenizer is not one that adamas has a tiktoken pattern for"
        if _config(self._plain.normalizer) not in (None, {"type": "NFC"}):
            return "its normalizer does more than Unicode composition"
        try:
            return FastPath(self._path, self._plain, pattern)
        except NotEquivalentError as error:
            return str(error)

    def _with_rows(self, ids: np.ndarray) -> np.ndarray:
        """The ids, after checking that the model has a row for each."""
        if self._rows is not None and ids.size and (largest := int(ids.max())) >= self._rows:
            token = self._template.id_to_token(largest)
            raise ModelUnavailableError(
                f"the tokenizer in {self._path.parent} does not belong to its model: {token!r} is token "
                f"{largest:,}, and the model knows {self._rows:,}.\nFetch the model again."
            )
        return ids

    def _encode_block(self, text: str, begins: bool) -> np.ndarray:
        plain = self._beginning if begins else self._plain
        if (
            plain is self._plain
            and self._characters >= FAST_FROM
            and isinstance(fast := self._fast_path, FastPath)
        ):
            normalized = text
            if self._plain.normalizer and not unicodedata.is_normalized("NFC", text):
                normalized = self._plain.normalizer.normalize_str(text)
            if fast.serves(normalized):
                return fast.encode(normalized)
        (encoding,) = plain.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32)


class Decoder:
    """Tokens to text as they arrive, in whole characters only."""

    def __init__(self, tokenizer: Tokenizer, marks: Mapping[int, str]) -> None:
        self._tokenizer, self._marks = tokenizer, marks
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The characters that `token_id` completes; bytes of an unfinished character are held back."""
        if mark := self._marks.get(token_id):
            return self.flush() + mark
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """The held-back bytes as U+FFFD, at the end of the stream."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


_NO_IDS = np.empty(0, dtype=np.int32)


def _config(component: Any) -> dict[str, Any] | None:
    """The JSON of a normalizer, pre-tokenizer or decoder: its pickled state."""
    if component is None:
        return None
    config: dict[str, Any] = json.loads(component.__getstate__())
    return config


def _without_prefix(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, but without a space before a text."""
    import tokenizers

    changed = tokenizers.Tokenizer(tokenizer.model)
    if normalizer := without_prefix(_config(tokenizer.normalizer)):
        changed.normalizer = _component(tokenizers.normalizers.NFC(), normalizer)
    if pre_tokenizer := without_prefix(_config(tokenizer.pre_tokenizer)):
        changed.pre_tokenizer = _component(tokenizers.pre_tokenizers.ByteLevel(), pre_tokenizer)
    changed.add_tokens(list(tokenizer.get_added_tokens_decoder().values()))
    return changed


def _component(blank: Any, config: dict[str, Any]) -> Any:
    """A normalizer or pre-tokenizer from its JSON; blank: any object of its kind."""
    blank.__setstate__(json.dumps(config).encode())
    return blank


def _without_control_tokens(full: tokenizers.Tokenizer) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    """The same tokenizer for plain text, and the control tokens it lacks (text to id)."""
    import tokenizers

    plain = tokenizers.Tokenizer(full.model)
    plain.normalizer = full.normalizer
    plain.pre_tokenizer = full.pre_tokenizer
    control = {}
    for token_id, token in full.get_added_tokens_decoder().items():
        if not token.special and [piece.id for piece in full.model.tokenize(token.content)] == [token_id]:
            plain.add_tokens([token])
        else:
            control[token.content] = token_id
    return plain, control
