"""Answers that are JSON by a schema: tokens that would break it are never drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from adamas_cli.engine.sampling import GuidedSampling, Sampling
from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from adamas_cli.prompt.tokens import Tokenizer
    from adamas_cli.session.listener import Listener

REQUEST = "Answer with JSON alone, which satisfies this schema:"
# As models write it: a space after each comma and colon, no line breaks.
_FORM: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Schema:
    """A JSON schema for the answers of one model. Raises UsageError for one that cannot be held to."""

    def __init__(self, schema: Mapping[str, Any], grammars: Grammars) -> None:
        from llguidance import LLMatcher

        self._grammars = grammars
        self.request = f"{REQUEST}\n{json.dumps(schema, ensure_ascii=False)}"
        self._grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_FORM)
        if problem := LLMatcher.validate_grammar(self._grammar):
            raise UsageError(f"answers cannot be held to this schema: {problem}")

    def constrained(self, sampling: Sampling, listener: Listener) -> GuidedSampling:
        """Sampling of answers that satisfy it. Raises UsageError where the listener expects a thought."""
        if listener.thinking:
            raise UsageError("this model begins each answer with a thought, which no schema allows")
        return GuidedSampling.of(sampling, begin=self._begin)

    def asked(self, question: str) -> str:
        """A question that tells the model of it."""
        return f"{question}\n\n{self.request}"

    def _begin(self) -> _Constraint:
        from llguidance import LLMatcher

        return _Constraint(LLMatcher(self._grammars.tokens, self._grammar), self._grammars.stop_ids())


class Grammars:
    """What schemas of one model have in common. stop_ids: tells the tokens that end an answer. Raises
    UsageError where the library for it is missing.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Callable[[], Sequence[int]]) -> None:
        if find_spec("llguidance") is None:
            raise UsageError(
                "a schema needs llguidance, which is not installed: pip install 'adamas[schema]'"
            )
        self.stop_ids, self._tokenizer = stop_ids, tokenizer

    @cached_property
    def tokens(self) -> LLTokenizer:
        """The tokenizer as the library has it; made once, in about a second."""
        from llguidance import LLTokenizer, TokenizerWrapper

        ends = list(self.stop_ids())
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer, ends[0])), eos_token=ends)


class _Vocabulary:
    """A tokenizer as `TokenizerWrapper` wants it: each token's bytes."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self._tokenizer, self.eos_token_id = tokenizer, end
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
        # What stands for no text is never a part of JSON.
        self.special_token_ids = [token for token, text in enumerate(self.tokens) if not text]

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text."""
        plain = text if isinstance(text, str) else text.decode("utf-8", "replace")
        ids: list[int] = self._tokenizer.encode(plain).tolist()
        return ids


class _Constraint:
    """See `engine.sampling.Constraint`."""

    def __init__(self, matcher: LLMatcher, stop_ids: Sequence[int]) -> None:
        self._matcher, self._stop_ids = matcher, stop_ids

    def allowed(self, vocabulary: int) -> np.ndarray:
        """See `Constraint.allowed`. Once the JSON is whole, only an end may come."""
        mask = np.zeros(vocabulary, bool)
        if self._matcher.is_stopped():
            mask[list(self._stop_ids)] = True
            return mask
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        known = np.unpackbits(bits, bitorder="little")[:vocabulary]
        mask[: len(known)] = known
        return mask

    def take(self, token: int) -> None:
        """See `Constraint.take`."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
