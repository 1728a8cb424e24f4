"""Whether a model thinks before it answers, and for how long, as its template and marks allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from adamas_cli.prompt.messages import ChatTemplate
from adamas_cli.reasoning import PLAIN, Marks, State, marks_of

CANNOT_BE_TOLD = "the model has neither a setting nor a mark for thinking, so thinking cannot be changed"
# Variables by which chat templates are told, with what to say for thinking and for not thinking. None: what
# the template does by itself. What a template does not look at changes nothing in what it writes.
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
    """What a user wants of thoughts, as one model can be told.

    wanted: None for what the chat template does by itself. tokens: most that one answer's thoughts may take,
    None for half of the answer's. options: variables for the chat template. told: whether these say it all.
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
        """control: the model's control tokens, text to id. No tokens at all are as good as no thinking."""
        wanted = False if tokens == 0 else wanted
        # Broken settings hold something else, which is told where the template is filled in.
        template = chat.chat_template if isinstance(chat.chat_template, str) else ""
        marks = marks_of(control, template)
        options: dict[str, object] = {}
        told = False
        if wanted is not None and template:
            options, told = _switched(chat, template, wanted)
        return cls(marks, wanted, tokens, options, told)

    def completed(self, prompt: str, note: Callable[[str], None] = lambda _: None) -> str:
        """A prompt, as the chat template ends it, with the mark that says what the template cannot be told.
        note: told where there is no way to tell the model.
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
        """Tokens that the thoughts of an answer of this many tokens may take."""
        half = max(1, max_tokens // 2)
        return half if self.tokens is None else min(self.tokens, max(1, max_tokens - 1))


def _switched(chat: ChatTemplate, template: str, wanted: bool) -> tuple[dict[str, object], bool]:
    """The variable that says so to a chat template, and whether it says it all; nothing where it has none."""
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
