"""Answers that are JSON by a schema: tokens that would violate it are never drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
# The form in which models write: a space after each comma and colon, no line breaks.
_FORM: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_DEFINING = ("$defs", "definitions")  # keywords of definitions that other places refer to
# Keywords whose value is a schema, or schemas by name, or a list of schemas.
_HOLDING = {
    **dict.fromkeys(("additionalProperties", "contains", "items", "not", "propertyNames"), "one"),
    **dict.fromkeys((*_DEFINING, "dependentSchemas", "patternProperties", "properties"), "named"),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), "listed"),
}


class Schema:
    """A JSON schema for the answers of one model. Raises UsageError if it cannot be enforced."""

    def __init__(self, schema: Mapping[str, Any], grammars: Grammars) -> None:
        from llguidance import LLMatcher

        self._grammars = grammars
        self.request = f"{REQUEST}\n{json.dumps(schema, ensure_ascii=False)}"
        self._schema = schema
        self._grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_FORM)
        if fault := _fault(schema, schema):
            place, problem = fault
            at = f" at {place.removesuffix('/')}" if place else ""
            raise UsageError(f"this schema cannot be enforced{at}: {problem}")

    def has_property(self, name: str) -> bool:
        """Whether the schema allows some object in the answers to have a property of this name."""
        return any(name in (part.get("properties") or ()) for part in _all_parts(self._schema))

    def constrained(self, sampling: Sampling, listener: Listener) -> GuidedSampling:
        """Sampling of answers that satisfy the schema. Raises UsageError if replies begin with a thought."""
        if listener.thinking:
            raise UsageError("this model begins each answer with a thought, which a schema does not allow")
        return GuidedSampling.of(sampling, begin=self._begin)

    def asked(self, question: str) -> str:
        """The question with the schema in its text."""
        return f"{question}\n\n{self.request}"

    def _begin(self) -> _Constraint:
        from llguidance import LLMatcher

        return _Constraint(LLMatcher(self._grammars.tokens, self._grammar), self._grammars.stop_ids())


def _all_parts(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas in it."""
    yield schema
    for _, part in _parts(schema):
        yield from _all_parts(part)


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schemas in a schema, with their paths."""
    for keyword, value in schema.items():
        match _HOLDING.get(keyword), value:
            case "one", dict():
                yield keyword, value
            case "named", dict():
                yield from ((f"{keyword}/{name}", x) for name, x in value.items() if isinstance(x, dict))
            case "listed", list():
                yield from ((f"{keyword}/{n}", x) for n, x in enumerate(value) if isinstance(x, dict))


def _fault(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, str] | None:
    """The innermost path in a schema that cannot be enforced, and its problem; None if there is none."""
    from llguidance import LLMatcher

    definitions = {name: whole[name] for name in _DEFINING if name in whole}
    grammar = LLMatcher.grammar_from_json_schema(json.dumps({**definitions, **schema}), overrides=_FORM)
    problem = LLMatcher.validate_grammar(grammar)
    if not problem:
        return None
    for place, part in _parts(schema):
        if fault := _fault(part, whole):
            return f"{place}/{fault[0]}", fault[1]
    return "", problem


class Grammars:
    """What all schemas of one model share. stop_ids: returns the tokens that end an answer. Raises UsageError
    if the required library is missing.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Callable[[], Sequence[int]]) -> None:
        if find_spec("llguidance") is None:
            raise UsageError(
                "a schema needs llguidance, which is not installed: pip install 'adamas[schema]'"
            )
        self.stop_ids, self._tokenizer = stop_ids, tokenizer

    @cached_property
    def tokens(self) -> LLTokenizer:
        """The tokenizer in the library's form; made once, in about a second."""
        from llguidance import LLTokenizer, TokenizerWrapper

        ends = list(self.stop_ids())
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer, ends[0])), eos_token=ends)


class _Vocabulary:
    """A tokenizer in the form that `TokenizerWrapper` expects: each token's bytes."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self._tokenizer, self.eos_token_id = tokenizer, end
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
        # Tokens without text are never part of JSON.
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
        """See `Constraint.allowed`. Once the JSON is complete, only an end token is allowed."""
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
