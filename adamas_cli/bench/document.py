"""The tokens that a model reads while it is measured: the beginning of a text, or random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adamas_cli.errors import UsageError
from adamas_cli.prompt.tokens import Tokenizer

SEED = 0
LONGEST_TOKEN = 40  # characters, on average over a text


@dataclass(frozen=True)
class Document:
    """ids: int [n]. text: the name of the text that they are of, None for random tokens."""

    ids: np.ndarray
    text: str | None = None


def random_document(vocabulary: int, tokens: int) -> Document:
    """The same random tokens at every call."""
    return Document(np.random.default_rng(SEED).integers(0, vocabulary, tokens, dtype=np.int32))


def text_document(path: Path, directory: Path, tokens: int) -> Document:
    """The first tokens of a text in UTF-8, by the tokenizer in a model's directory. Raises UsageError where
    the text cannot be read or is shorter.
    """
    from adamas_cli.eval.subject import read_text

    text, _ = read_text(path)
    ids = Tokenizer.from_directory(directory).encode(text[: LONGEST_TOKEN * tokens])[:tokens]
    if len(ids) < tokens:
        raise UsageError(
            f"--text {path}: it has {len(ids):,} tokens, and {tokens:,} are needed. Give less --len."
        )
    return Document(ids, path.name)
