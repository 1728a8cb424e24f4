"""The tokenizers that GGUF files describe."""

from adamas_cli.models.vocabulary.building import tokenizer_of
from adamas_cli.models.vocabulary.tokens import ARRAYS, end_ids

__all__ = ["ARRAYS", "end_ids", "tokenizer_of"]
