"""Several questions about documents, or several parts of one, answered together."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

import adamas_cli
from adamas_cli.documents import DEFAULT_MAX_FILE_SIZE, Selection, collect
from adamas_cli.engine.batch import Batch
from adamas_cli.engine.events import Prefill
from adamas_cli.engine.sampling import Sampling
from adamas_cli.longdoc.job import asking
from adamas_cli.longdoc.work import Work
from adamas_cli.planning.together import SPARE, answers_at_once
from adamas_cli.session.answer import listen
from adamas_cli.session.documents import OpenDocuments
from adamas_cli.session.turns import Turns
from adamas_cli.store.settings import StoreSettings

QUESTIONS = ["What does the fox want?", "Why?", "How high did the grapes hang, and who had planted them?"]
TEXT = "A fox saw grapes that hung too high. It jumped and jumped. At last it said that they were sour. "


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> adamas_cli.Model:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "error")
    chosen = {"quantization": "packed", "max_tokens": 12, "draft": "off"}
    return adamas_cli.load(str(tiny_model), device="cpu", store=StoreSettings(off=True), **chosen)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each step served, without drafts."""
    taken: list[int] = []
    step = Batch.step

    def counted(batch: Batch, first: object) -> None:
        before = batch.rows
        step(batch, first)
        taken.append(batch.rows - before)

    monkeypatch.setattr(Batch, "step", counted)
    return taken


def opened(model: adamas_cli.Model, questions: list[str]) -> OpenDocuments:
    """The repeated text, open in a model, for these questions."""
    with model.open(text=TEXT * 6) as book:
        layout = book._opened.layout
        runtime, around = book._opened.runtime, book._opened._frame
    return OpenDocuments(runtime, around, layout, questions)


def answers(streams) -> list:
    return [listen("", events, lambda event: None) for events in streams]


def test_questions_are_answered_together(model, steps):
    alone = [opened(model, [text]).ask(text, Sampling()) for text in QUESTIONS]
    expected = [answer.text for answer in answers(alone)]
    assert not steps
    with opened(model, QUESTIONS) as book:
        first, *others = book.ask_all(QUESTIONS, Sampling())
        events = list(first)
        found = answers([iter(events), *others])
        assert [answer.text for answer in found] == expected
        assert max(steps) == len(QUESTIONS)
        assert any(isinstance(event, Prefill) for event in events)
        reused = [answer.done.reused_tokens for answer in found]
        assert reused[0] == 0
        assert min(reused[1:]) > len(TEXT) * 6 / 2
        assert answers(book.ask_all(QUESTIONS, Sampling()))[2].text == expected[2]  # and once more


def test_where_memory_is_short_fewer_are_answered_at_once(model, steps, monkeypatch):
    monkeypatch.setattr("adamas_cli.session.documents.answers_at_once", lambda each, free: 2)
    with opened(model, QUESTIONS) as book:
        assert len(answers(book.ask_all(QUESTIONS, Sampling()))) == len(QUESTIONS)
    assert max(steps) == 2
    assert answers_at_once(1000, int(4000 / SPARE)) == 4
    assert answers_at_once(1 << 40, 1) == 1


def test_a_model_without_compiled_steps_answers_one_after_the_other(model, monkeypatch):
    reason = property(lambda timeline: "it is so")
    monkeypatch.setattr("adamas_cli.engine.timeline.Timeline.batch_reason", reason)
    with opened(model, QUESTIONS) as book:
        streams = book.ask_all(QUESTIONS, Sampling())
        assert len(answers(streams)) == len(QUESTIONS)
        assert book._session.timeline.batch is None


def test_parts_are_answered_together(model, steps, monkeypatch, tmp_path):
    """And the answers equal those of one part at a time."""
    path = tmp_path / "fable.txt"
    path.write_text(TEXT * 40)
    runtime = model._runtime
    documents = collect(
        [str(path)],
        Selection(max_file_size=DEFAULT_MAX_FILE_SIZE),
        stdin=io.BytesIO(),
        progress=runtime.progress,
        offline=True,
    ).documents
    runtime.prompt = replace(runtime.prompt, ctx_size=1500)
    found = {}
    for at_once in (3, 1):
        monkeypatch.setattr(Work, "_at_once", property(lambda work, n=at_once: n))
        steps.clear()
        work = Work(runtime, documents, asking(["Why?"]), Sampling(), 12)
        list(work.read())
        found[at_once] = [finding.answer for finding in work._findings[0]], max(steps)
    assert found[3][0] == found[1][0]
    assert len(found[1][0]) > 2
    assert (found[3][1], found[1][1]) == (3, 1)


def test_turns_are_taken_in_order_and_as_many_at_once_as_there_may_be():
    begun, moments = [], count()

    def stream(name: int, length: int):
        begun.append((name, next(moments)))
        for index in range(length):
            next(moments)
            yield name, index

    lengths = [3, 1, 2, 4]
    begin = [lambda name=name, length=length: stream(name, length) for name, length in enumerate(lengths)]
    streams = Turns(begin, 2).streams()
    assert [list(events) for events in streams] == [
        [(name, index) for index in range(length)] for name, length in enumerate(lengths)
    ]
    assert [name for name, _ in begun] == [0, 1, 2, 3]
    assert begun[1][1] == 2 > begun[0][1]  # after the first one's first step


def test_where_one_fails_the_others_end():
    closed = []

    def going():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    def failing():
        yield 2
        raise ValueError("broken")

    streams = Turns([going, failing], 4).streams()
    with pytest.raises(ValueError, match="broken"):
        for _ in streams[0]:
            pass
    assert closed == [True]
