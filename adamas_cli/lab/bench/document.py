"""The tokens that a model reads during a measurement: the beginning of a text, or random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adamas_cli.errors import UsageError
from adamas_cli.lab.texts import read_text
from adamas_cli.prompt.tokens import Tokenizer

SEED = 0
LONGEST_TOKEN = 40  # characters, on average over a text


@dataclass(frozen=True)
class Document:
    """ids: int [n]. text: the name of their text, None for random tokens."""

    ids: np.ndarray
    text: str | None = None


def random_document(vocabulary: int, tokens: int) -> Document:
    """The same random tokens in every call."""
    return Document(np.random.default_rng(SEED).integers(0, vocabulary, tokens, dtype=np.int32))


def text_document(path: Path, directory: Path, tokens: int, remedy: str = "Give less `len`.") -> Document:
    """The first tokens of a UTF-8 text, by the tokenizer in a model's directory. Raises UsageError if the
    text cannot be read or is shorter; remedy: the advice for that case.
    """
    text, _ = read_text(path)
    ids = Tokenizer.from_directory(directory).encode(text[: LONGEST_TOKEN * tokens])[:tokens]
    if len(ids) < tokens:
        raise UsageError(f"`text` {path}: it has {len(ids):,} tokens, and {tokens:,} are needed. {remedy}")
    return Document(ids, path.name)


def text_documents(paths: Sequence[Path], directory: Path, tokens: int, count: int) -> list[Document]:
    """Documents of this many tokens: the beginnings of the texts in rotation, then their continuations.

    Raises UsageError as `text_document` does.
    """
    found: list[list[Document]] = []
    for index, path in enumerate(paths):
        parts = len(range(index, count, len(paths)))
        whole = text_document(path, directory, parts * tokens, "Give less `len` or more `text`.")
        found.append([Document(ids, whole.text) for ids in np.split(whole.ids, parts)] if parts else [])
    return [found[number % len(paths)][number // len(paths)] for number in range(count)]
