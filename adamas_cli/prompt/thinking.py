"""Whether a model thinks before it answers, and for how long, as its template and marks allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from adamas_cli.prompt.messages import ChatTemplate
from adamas_cli.reasoning import PLAIN, Marks, State, marks_of

CANNOT_BE_TOLD = "the model has neither a setting nor a mark for thinking, so thinking cannot be changed"
# Variables that chat templates understand, with the values for thinking and for not thinking. None: the
# template's default. A variable that a template ignores does not change its output.
SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", True, False),
    ("thinking", True, False),
    ("reasoning", True, False),
    ("thinking_mode", "enabled", "disabled"),
    ("thinking_budget", None, 0),
)
_EFFORT, _MOST, _NONE, _LEAST = "reasoning_effort", "high", "none", "low"


@dataclass(frozen=True)
class Thinking:
    """What a user wants of thoughts, in the terms of one model.

    wanted: None for the chat template's default. tokens: maximum for one answer's thoughts, None for half of
    the answer's. options: variables for the chat template. told: whether these express everything.
    """

    marks: Marks = PLAIN
    wanted: bool | None = None
    tokens: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    told: bool = False

    @classmethod
    def of(
        cls,
        chat: ChatTemplate,
        control: Mapping[str, int],
        *,
        wanted: bool | None = None,
        tokens: int | None = None,
    ) -> Self:
        """control: the model's control tokens, text to id. Zero tokens mean no thinking."""
        wanted = False if tokens == 0 else wanted
        # In broken settings it is something else, which is reported when the template is filled in.
        template = chat.chat_template if isinstance(chat.chat_template, str) else ""
        marks = marks_of(control, template)
        options: dict[str, object] = {}
        told = False
        if wanted is not None and template:
            options, told = _switched(chat, template, wanted)
        return cls(marks, wanted, tokens, options, told)

    def completed(self, prompt: str, note: Callable[[str], None] = lambda _: None) -> str:
        """A prompt from the chat template, completed by the mark for what the template cannot express.
        note: called if the model cannot be told.
        """
        if self.wanted is None or self.told:
            return prompt
        form, thinks = self.marks.form, self.marks.state_behind(prompt) is State.THOUGHT
        if form is None:
            note(CANNOT_BE_TOLD)
            return prompt
        if self.wanted:
            return prompt if thinks else prompt + form.opens + "\n"
        return prompt.rstrip() + form.ending if thinks else prompt + form.nothing

    def most(self, max_tokens: int) -> int:
        """The maximum number of thought tokens in an answer of this many tokens."""
        half = max(1, max_tokens // 2)
        return half if self.tokens is None else min(self.tokens, max(1, max_tokens - 1))


def _switched(chat: ChatTemplate, template: str, wanted: bool) -> tuple[dict[str, object], bool]:
    """The chat template's variable for this, and whether it expresses everything; empty if it has none."""
    for name, on, off in SWITCHES:
        given = {key: {} if key is None else {name: key} for key in (on, off)}
        if _written(chat, given[on]) != _written(chat, given[off]):
            return dict(given[on if wanted else off]), True
    if _written(chat, {_EFFORT: _MOST}) == _written(chat, {_EFFORT: _LEAST}):
        return {}, False
    if wanted:
        return {_EFFORT: _MOST}, True
    knows_none = f"'{_NONE}'" in template or f'"{_NONE}"' in template
    return {_EFFORT: _NONE if knows_none else _LEAST}, knows_none


def _written(chat: ChatTemplate, options: dict[str, object]) -> str | None:
    """The template's text of a question with these variables; None if it refuses them."""
    question: list[dict[str, object]] = [{"role": "user", "content": "?"}]
    try:
        return chat.apply_chat_template(question, tokenize=False, add_generation_prompt=True, **options)
    except Exception:  # a template is a program and may raise anything
        return None
