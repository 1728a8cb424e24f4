"""The tokens that an answer's text is made of, with their log-probabilities."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from adamas_cli.engine.events import Likelihood, Token
from adamas_cli.prompt.tokens import Tokenizer


@dataclass(frozen=True)
class Spelled:
    """A token of an answer, as the bytes it stands for."""

    text: bytes
    likelihood: Likelihood


class Spelling:
    """Finds the tokens of each piece of an answer's text, which may arrive some tokens later."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = {token: text.encode() for text, token in tokenizer.control_tokens.items()}
        self._waiting: deque[Spelled] = deque()
        self._begun = False  # whether there was any text
        self._told = 0  # bytes of upcoming text whose tokens were already given

    def feed(self, token: Token) -> None:
        """A token was said. Tokens without text or with unknown likelihood are skipped."""
        text = self._tokenizer.token_bytes(token.id)
        if text and token.likelihood is not None:
            self._waiting.append(Spelled(text, token.likelihood))

    def forget(self) -> None:
        """Drop the tokens so far: they were not part of the answer."""
        self._waiting.clear()

    def spell(self, text: str) -> list[Spelled]:
        """The tokens that begin within the next piece of the text. Anything before the first piece is
        dropped: white space, and marks that are text.
        """
        piece = text.encode("utf-8", "surrogatepass")
        if not self._begun:
            self._begun = True
            self._drop(b"".join(token.text for token in self._waiting).rfind(piece))
        begun: list[Spelled] = []
        self._told -= len(piece)
        while self._told < 0 and self._waiting:
            begun.append(self._waiting.popleft())
            self._told += len(begun[-1].text)
        self._told = max(0, self._told)  # characters that are shown differently from their bytes
        return begun

    def rest(self) -> list[Spelled]:
        """The remaining tokens at the end of an answer, whose characters are not shown."""
        left, self._waiting = list(self._waiting), deque()
        return left

    def as_json(self, token: Spelled) -> dict[str, object]:
        """A token in OpenAI's form."""
        likeliest = [
            _named(self._tokenizer.token_bytes(other) or self._control.get(other, b""), logprob)
            for other, logprob in token.likelihood.likeliest
        ]
        return _named(token.text, token.likelihood.logprob) | {"top_logprobs": likeliest}

    def _drop(self, count: int) -> None:
        """Drop waiting tokens that end within this many bytes; the rest of these bytes belongs to one that
        stays.
        """
        while self._waiting and len(self._waiting[0].text) <= count:
            count -= len(self._waiting.popleft().text)
        self._told = -max(0, count)


def _named(text: bytes, logprob: float) -> dict[str, object]:
    return {"token": text.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(text)}
