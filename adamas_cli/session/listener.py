"""The model's tokens as text: thoughts separated from answers and limited in length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adamas_cli.prompt.thinking import Thinking
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.reasoning import ReasoningSplitter, State
from adamas_cli.sanitize import Sanitizer

CALLED = "the model called a tool, but none is offered here; the call is not shown"


class Listener:
    """One reply. state: where it begins, see `Marks.state_behind`. max_tokens: of the reply, None to only
    listen. note: called once when something is omitted or a thought is ended.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        thinking: Thinking,
        state: State = State.START,
        max_tokens: int | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._decoder = tokenizer.decoder(thinking.marks.tokens)
        self._sanitizer = Sanitizer()
        self._splitter = ReasoningSplitter(thinking.marks, state=state)
        self._note = note
        self._thoughts = 0  # tokens
        self._most: int | None = None
        self._ending: list[int] = []
        if max_tokens is not None and (form := thinking.marks.form) is not None:
            self._most = thinking.most(max_tokens)
            self._ending = tokenizer.encode_template(form.ending).tolist()

    @property
    def thinking(self) -> bool:
        """Whether the next text is part of a thought."""
        return self._splitter.thinking

    @property
    def called(self) -> bool:
        """Whether the model called a tool."""
        return self._splitter.called

    @property
    def several(self) -> bool:
        """Whether the reply holds more than one thought followed by an answer."""
        return self._splitter.several

    def feed(self, *tokens: int) -> list[tuple[bool, str]]:
        """Pairs of (is it reasoning, text) that are final with these tokens; safe for a terminal."""
        called = self.called
        parts = self._splitter.feed(self._sanitizer.feed("".join(map(self._decoder.feed, tokens))))
        if self.called and not called:
            self._note(CALLED)
        return parts

    def flush(self) -> list[tuple[bool, str]]:
        """The held-back text, at the end of the reply."""
        rest = self._sanitizer.feed(self._decoder.flush()) + self._sanitizer.flush()
        return [*self._splitter.feed(rest), *self._splitter.flush()]

    def steer(self, token: int) -> Sequence[int]:
        """The tokens that end a thought, if the token just fed is the last one allowed."""
        if self._most is None or not self._splitter.thinking:
            return ()
        self._thoughts += 1
        if self._thoughts != self._most:
            return ()
        self._note(f"thinking was stopped after {self._most:,} tokens: `think_tokens`")
        return self._ending
