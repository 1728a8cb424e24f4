"""A conversation whose reading and answers are stopped at any point, on a tiny random model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATE
from told import Notes

from adamas_cli.documents import Selection, collect
from adamas_cli.engine.events import Done, Prefill, Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import UsageError
from adamas_cli.progress import Silent
from adamas_cli.session.conversation import Conversation
from adamas_cli.session.runtime import Runtime
from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

GREEDY = Sampling()


@pytest.fixture
def talk(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Conversation]:
    """Opens conversations about a book of about eight hundred tokens, read in chunks of 128."""
    book = tmp_path / "book.txt"
    book.write_text("Mr. Bingley has taken Netherfield Park.\n" * 20)
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path / "store"))

    def open_one(*, model: Path = tiny_model, stored: bool = False) -> Conversation:
        runtime = Runtime.resolve(
            ModelSettings(model=str(model)),
            DecodingSettings(attn="full", prefill_chunk=128),
            PromptSettings(max_tokens=12),
            StoreSettings(off=not stored),
            Notes(),
        )
        return Conversation(runtime, documents(book))

    return open_one


def documents(path: Path) -> list:
    with open("/dev/null", "rb") as nothing:
        return collect([str(path)], Selection(), stdin=nothing, progress=Silent()).documents


def say(conversation: Conversation, question: str, *, tokens: int = 99) -> list:
    """The events until this many tokens have come; then the answer is stopped."""
    events: list = []
    with closing(conversation.ask(question, GREEDY)) as happening:
        for event in happening:
            events.append(event)
            if sum(isinstance(event, Token) for event in events) == tokens:
                break
    return events


def ids(events: list) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def read_part(conversation: Conversation) -> None:
    """Read three chunks and stop."""
    with closing(conversation.read()) as happening:
        for event in happening:
            if event.done >= 3 * 128:
                break


@pytest.mark.parametrize("stored", [False, True])
def test_a_stopped_reading_goes_on_with_the_next_question(talk, stored):
    with talk() as whole:
        expected = [ids(say(whole, "Who?")), ids(say(whole, "Why?"))]
    with talk(stored=stored) as conversation:
        read_part(conversation)
        assert 0 < conversation.unread < conversation.total - 256
        events = say(conversation, "Who?")
        first = next(event for event in events if isinstance(event, Prefill))
        assert first.done == 3 * 128
        assert [ids(events), ids(say(conversation, "Why?"))] == expected
        assert conversation.unread == 0
    if stored:
        with talk(stored=True) as again:
            assert [ids(say(again, "Who?")), ids(say(again, "Why?"))] == expected
            (line,) = again.runtime.progress.lines
            assert re.fullmatch(r"reused (\d+) of \1 tokens", line)


def test_a_stopped_answer_stays_and_is_marked(talk):
    with talk() as conversation:
        said = ids(say(conversation, "Who?", tokens=5))
        (turn,) = conversation.turns
        assert turn.reply.ids.tolist() == said
        assert turn.reply.stopped
        events = say(conversation, "Why?")
        (done,) = [event for event in events if isinstance(event, Done)]
        assert done.prompt_tokens - done.reused_tokens < 64
        assert not conversation.turns[1].reply.stopped


def test_a_question_that_is_stopped_before_its_answer_is_forgotten(talk):
    with talk() as alone:
        expected = [ids(say(alone, "Who?")), ids(say(alone, "Why?"))]
    with talk() as conversation:
        first = ids(say(conversation, "Who?"))
        with closing(conversation.ask("What? " * 60, GREEDY)) as happening:
            next(happening)
            next(happening)
        assert len(conversation.turns) == 1
        assert [first, ids(say(conversation, "Why?"))] == expected


def test_a_template_that_changes_earlier_turns_is_said_to(talk, tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    changing = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\nNow: {% endif %}")
    (model / "chat_template.jinja").write_text(changing)
    with talk(model=model) as conversation:
        say(conversation, "Who?")
        assert conversation.runtime.progress.lines == []
        events = say(conversation, "Why?")
        (line,) = conversation.runtime.progress.lines
        assert line.startswith("the chat template changes earlier turns: ")
        assert 12 < int(line.split()[6]) < 100
        (done,) = [event for event in events if isinstance(event, Done)]
        assert done.reused_tokens > 800


def test_tokens_are_located_in_the_documents(talk, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("one\ntwo\n")
    with talk() as conversation:
        say(conversation, "Who?")
        conversation.add(documents(other))
        places = [conversation.locate(index) for index in range(conversation.total)]
        assert [(place.path, place.line) for place in places if place and place.path == str(other)] == [
            *[(str(other), 1)] * 4,
            *[(str(other), 2)] * 4,
        ]
        with pytest.raises(UsageError):
            conversation.add(documents(other))
