"""Separates a thinking model's thoughts from its answer by the marks that its family writes.

A mark is a single token in one model and plain text in another. Text streams hold a mark that is a token in
the form of `TOKEN`, which no text contains. So both are found in the same way, and text that only looks like
such a token remains text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

_AROUND = "\ue001"  # a private-use character
TOKEN = f"{_AROUND}{{}}{_AROUND}"


class State(Enum):
    """The position in a reply. START: nothing has been said yet. LED: a thought has just ended. ENCLOSED: in
    an answer with its own marks around it. CALL: in a tool call; BETWEEN: between two messages of one reply;
    neither is shown.
    """

    START = "start"
    THOUGHT = "thought"
    LED = "led"
    ANSWER = "answer"
    ENCLOSED = "enclosed"
    CALL = "call"
    BETWEEN = "between"


_HIDDEN = (State.CALL, State.BETWEEN)
_BEGINNINGS = (State.START, State.LED)  # where plain text marks may occur
_ANSWERS = (*_BEGINNINGS, State.ANSWER)


@dataclass(frozen=True)
class Form:
    """How a family of models marks thoughts. turn: ends a thought and begins the answer. empty: represents an
    empty thought. behind: the state after a thought. messages: further marks, at any position, and the states
    after them.
    """

    opens: str
    closes: str
    turn: str = ""
    empty: str = ""
    behind: State = State.LED
    messages: tuple[tuple[str, State], ...] = ()

    @property
    def ending(self) -> str:
        """The text that ends a thought and begins the answer."""
        return self.turn or f"\n{self.closes}\n\n"

    @property
    def nothing(self) -> str:
        """The text of an empty thought."""
        return self.empty or f"{self.opens}\n\n{self.closes}\n\n"


FORMS = (
    Form("<think>", "</think>"),
    Form("[THINK]", "[/THINK]", turn="[/THINK]", empty="[THINK][/THINK]"),
    Form("◁think▷", "◁/think▷"),
    Form("<seed:think>", "</seed:think>"),
    Form("<|START_THINKING|>", "<|END_THINKING|>", turn="<|END_THINKING|>"),
    Form("<thought>", "</thought>"),
    Form("<longcat_think>", "</longcat_think>"),
    Form("<|begin_of_thought|>", "<|end_of_thought|>"),
    Form("<|inner_prefix|>", "<|inner_suffix|>"),
    Form("<|channel>thought", "<channel|>", turn="\n<channel|>", empty="<|channel>thought\n<channel|>"),
    Form("Here is my thought process:", "Here is my response:"),
    Form(
        "Here are my reasoning steps:",
        "[BEGIN FINAL RESPONSE]",
        messages=(("[END FINAL RESPONSE]", State.BETWEEN),),
    ),
    Form(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        turn="<|end|><|start|>assistant<|channel|>final<|message|>",
        empty="<|channel|>final<|message|>",
        behind=State.BETWEEN,
        messages=(
            ("<|channel|>analysis", State.THOUGHT),
            ("<|channel|>final<|message|>", State.ANSWER),
            ("<|channel|>final", State.ANSWER),
            ("<|channel|>commentary<|message|>", State.THOUGHT),
            ("<|channel|>commentary", State.CALL),
            ("<|start|>assistant", State.BETWEEN),
            ("<|end|>", State.BETWEEN),
        ),
    ),
    Form(
        "<|think|>",
        "<|end|>",
        turn="<|end|><|begin|>assistant<|content|>",
        empty="<|content|>",
        behind=State.BETWEEN,
        messages=(
            ("<|content|>", State.ANSWER),
            ("<|tool_calls|>", State.CALL),
            ("<|begin|>assistant", State.BETWEEN),
            ("<|end|>", State.BETWEEN),
        ),
    ),
)
# Marks of some families around an answer after a thought.
ENCLOSING = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|START_TEXT|>", "<|END_TEXT|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
)
# Marks around a tool call; an empty end if the call is the rest of the reply.
CALLS = (
    ("<tool_call>", "</tool_call>"),
    ("<|tool_call|>", "<|/tool_call|>"),
    ("<|tool_call>", "<tool_call|>"),
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    ("<seed:tool_call>", "</seed:tool_call>"),
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ("<longcat_tool_call>", "</longcat_tool_call>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
    ("<start_function_call>", "<end_function_call>"),
    ("<|tools_prefix|>", "<|tools_suffix|>"),
    ("[TOOL_CALLS]", ""),
    ("<|python_tag|>", ""),
)


@dataclass(frozen=True)
class Marks:
    """The marks of one model. form: how it marks thoughts, None if unknown. rules: for each state, marks as
    in a stream and the states they lead to. tokens: the marks that are tokens, as in a stream, by id.
    """

    form: Form | None = None
    rules: Mapping[State, Mapping[str, State]] = field(default_factory=dict)
    tokens: Mapping[int, str] = field(default_factory=dict)
    ends: Mapping[str, State] = field(default_factory=dict)  # of prompts, as the chat template has them

    def state_behind(self, prompt: str) -> State:
        """The state in which the reply to a prompt begins: inside a thought, if the template opens one."""
        end = prompt.rstrip()
        found = [mark for mark in self.ends if end.endswith(mark)]
        return self.ends[max(found, key=len)] if found else State.START


def marks_of(control: Mapping[str, int], template: str) -> Marks:
    """The marks among a model's control tokens (text to id) or in its chat template. If there are none,
    `<think>` as text at the beginning of a reply counts as one.
    """
    spelling = _Spelling(control, template)
    present = [form for form in FORMS if spelling.has_form(form)]
    present.sort(key=lambda form: form.opens not in template)
    rules: dict[State, dict[str, State]] = {state: {} for state in State}
    ends: dict[str, State] = {}
    for form in present or FORMS[:1]:
        _allow(rules, spelling, form.opens, State.THOUGHT)
        rules[State.THOUGHT][spelling.spelled(form.closes)] = form.behind
        ends |= {form.opens: State.THOUGHT, form.closes: State.LED}
        for mark, state in form.messages:
            ends[mark] = State.START if state is State.BETWEEN else state
            for known in State:
                rules[known].setdefault(spelling.spelled(mark), state)
    for opens, closes in ENCLOSING:
        if present or spelling.has_token(opens):
            rules[State.LED][spelling.spelled(opens)] = State.ENCLOSED
            rules[State.ENCLOSED][spelling.spelled(closes)] = State.ANSWER
            if spelling.has_token(opens):
                _allow(rules, spelling, opens, State.ENCLOSED)
                ends[opens] = State.ENCLOSED
    for opens, closes in CALLS:
        if spelling.is_known(opens):
            _allow(rules, spelling, opens, State.CALL)
            if closes:
                rules[State.CALL][spelling.spelled(closes)] = State.ANSWER
    written = {text for marks in rules.values() for mark in marks for text in spelling.tokens_in(mark)}
    tokens = {control[text]: TOKEN.format(text) for text in written}
    return Marks(present[0] if present else None, rules, tokens, ends)


def _allow(rules: dict[State, dict[str, State]], spelling: _Spelling, mark: str, to: State) -> None:
    """Allow an opening mark at the beginning; if it is a token, anywhere."""
    anywhere = spelling.has_token(mark)
    for state in (*_ANSWERS, State.ENCLOSED) if anywhere else _BEGINNINGS:
        rules[state].setdefault(spelling.spelled(mark), to)


class _Spelling:
    """Marks as streams have them. control: the model's control tokens. template: its chat template."""

    def __init__(self, control: Iterable[str], template: str) -> None:
        self._template = template
        longest_first = sorted(filter(None, control), key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def has_token(self, mark: str) -> bool:
        return self._token.search(mark) is not None

    def is_known(self, mark: str) -> bool:
        return self.has_token(mark) or mark in self._template

    def has_form(self, form: Form) -> bool:
        """Whether a model uses this form; if an opening mark is a token, the closing one must be too."""
        return self.is_known(form.opens) and self.has_token(form.opens) <= self.has_token(form.closes)

    def spelled(self, mark: str) -> str:
        return self._token.sub(lambda found: TOKEN.format(found[0]), mark)

    @staticmethod
    def tokens_in(spelled: str) -> Iterator[str]:
        yield from re.findall(f"{_AROUND}(.*?){_AROUND}", spelled)


PLAIN = marks_of({}, "")


class ReasoningSplitter:
    """Splits streamed text at the marks, which are in neither part.

    Text marks open something only at the very beginning of a reply: later ones belong to the answer. state:
    where the reply begins. called: a tool was called. several: the reply was more than an optional thought
    and an answer.
    """

    def __init__(self, marks: Marks = PLAIN, *, state: State = State.START) -> None:
        self.state = state
        self.called = self.several = False
        self._rules = marks.rules
        self._at_start = True  # leading white space of a part is dropped
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether the reply is inside a thought."""
        return self.state is State.THOUGHT

    def feed(self, text: str) -> list[tuple[bool, str]]:
        """Pairs of (is it reasoning, text) that are final by now; no text is empty."""
        self._held += text
        parts: list[tuple[bool, str]] = []
        while self._step(parts):
            pass
        return parts

    def flush(self) -> list[tuple[bool, str]]:
        """The held-back text, at the end of the answer."""
        parts: list[tuple[bool, str]] = []
        self._say(parts, len(self._held))
        return parts

    def _step(self, parts: list[tuple[bool, str]]) -> bool:
        """Go past the next mark, or as far as is certain; return whether there may be more to do."""
        marks = self._rules[self.state]
        if self.state in _BEGINNINGS:
            self._held = self._held.lstrip()
            found = max(filter(self._held.startswith, marks), key=len, default=None)
            if any(len(mark) > len(self._held) and mark.startswith(self._held) for mark in marks):
                return False
            if found is None:
                self.state = State.ANSWER
                return True
            self._pass(found)
            return True
        if not any(mark[0] in self._held for mark in marks):
            self._say(parts, len(self._held))
            return False
        at = [(self._held.find(mark), -len(mark), mark) for mark in marks if mark in self._held]
        start, _, mark = min(at, default=(len(self._held), 0, ""))
        first = max(0, len(self._held) - max(map(len, marks), default=0))
        pending = (n for n in range(first, start) if any(_begins(self._held[n:], other) for other in marks))
        certain = next(pending, start)
        if certain < start or not mark or _begins_longer(self._held[start:], mark, marks):
            self._say(parts, certain)
            return False
        self._say(parts, start)
        self._pass(mark)
        return True

    def _pass(self, mark: str) -> None:
        """Go past a mark at the start of the held text."""
        before, self.state = self.state, self._rules[self.state][mark]
        self.called |= self.state is State.CALL
        self.several |= (before, self.state) not in _USUAL
        self._held, self._at_start = self._held[len(mark) :], True

    def _say(self, parts: list[tuple[bool, str]], end: int) -> None:
        text, self._held = self._held[:end], self._held[end:]
        if self._at_start:
            text = text.lstrip()
        if text and self.state not in _HIDDEN:
            self._at_start = False
            parts.append((self.thinking, text))


_USUAL = {(State.START, State.THOUGHT), (State.THOUGHT, State.LED)}


def _begins(text: str, mark: str) -> bool:
    """Whether a text is an incomplete beginning of this mark."""
    return 0 < len(text) < len(mark) and mark.startswith(text)


def _begins_longer(text: str, mark: str, marks: Iterable[str]) -> bool:
    """Whether a text that begins with a mark may become a longer one."""
    return any(_begins(text, other) for other in marks if len(other) > len(mark))
