"""Answers that decode together: each equals the answer alone, bit for bit on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from adamas_kernels.contract import LARGEST_STEP, SparseSettings
from conftest import tiny_architecture
from loaded import Loaded
from test_drafts import numbers, packed_models
from torch import nn

from adamas_cli.cache.forkable import MAPS_FILES, empty_like, forked
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.batch import Batch
from adamas_cli.engine.events import Done, Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.eval.reading import Question, Reading

ANSWER = 12
FULL = AttentionSettings("full")
SPARSE = AttentionSettings("adamas", SparseSettings(budget=48), dense_layers=1)
MANHATTAN = AttentionSettings("adamas", SparseSettings(budget=40, scorer="manhattan"), dense_layers=1)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """One model with full attention, and one with windows."""
    return packed_models()


def opened(model: nn.Module, length: int, attention: AttentionSettings = FULL, **options) -> Timeline:
    """A timeline that has read a text of this length, different for each length."""
    timeline = Timeline(Loaded(model), attention, context=length + 60, **options)
    list(timeline.sync(numbers(length, seed=length)))
    return timeline


def begun(timeline: Timeline, tokens: int = ANSWER, sampling: Sampling | None = None, **options):
    """The events of an answer to a question."""
    return timeline.answer(numbers(7, seed=tokens), sampling or Sampling(), tokens, (), **options)


def in_turns(*answers: Iterator) -> list[list[int]]:
    """The tokens of answers that take turns step by step."""
    said: list[list[int]] = [[] for _ in answers]
    under_way = list(enumerate(answers))
    while under_way:
        for index, events in list(under_way):
            event = next(events, None)
            if event is None:
                under_way.remove((index, events))
            elif isinstance(event, Token):
                said[index].append(event.id)
    return said


def batch_of(model: nn.Module) -> Batch:
    return Batch(Model.of(Loaded(model)))


@pytest.mark.parametrize(
    ("name", "attention"),
    [("qwen2", FULL), ("qwen2", SPARSE), ("qwen2", MANHATTAN), ("gemma3", SPARSE)],
)
def test_answers_are_those_of_one_at_a_time(models, name, attention):
    model, lengths = models[name], (300, 35, 2100)
    alone, expected = [opened(model, length, attention, counts=True) for length in lengths], []
    for timeline in alone:
        expected += in_turns(begun(timeline))
    batch = batch_of(model)
    together = [opened(model, length, attention, counts=True, batch=batch) for length in lengths]
    assert in_turns(*map(begun, together)) == expected
    assert batch.rows == 3 * (ANSWER - 1)
    assert batch.steps == ANSWER - 1
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert one.length == other.length
        if attention is not FULL:
            assert np.array_equal(one.attended(), other.attended())
    assert batch.seated == 0


def test_answers_come_and_go(models):
    """An answer that ends makes room for another, whose cache takes its place in the steps."""
    model, batch = models["qwen2"], batch_of(models["qwen2"])
    lengths = {30: 4, 200: ANSWER, 90: 7, 60: 5}
    expected = {n: in_turns(begun(opened(model, n, SPARSE), most))[0] for n, most in lengths.items()}
    waiting, said = list(lengths), {n: [] for n in lengths}
    under_way: dict[int, Iterator] = {}
    while waiting or under_way:
        while waiting and len(under_way) < 2:
            n = waiting.pop(0)
            under_way[n] = begun(opened(model, n, SPARSE, batch=batch), lengths[n])
        for n, events in list(under_way.items()):
            event = next(events)
            if isinstance(event, Token):
                said[n].append(event.id)
            if isinstance(event, Done):
                del under_way[n]
    assert said == expected
    assert batch.steps < batch.rows


def test_an_answer_that_is_left_takes_nothing_with_it(models):
    """Neither of its own cache, which is restored, nor of others."""
    model, batch = models["qwen2"], batch_of(models["qwen2"])
    (expected,) = in_turns(begun(opened(model, 80, SPARSE)))
    staying = opened(model, 80, SPARSE, batch=batch)
    leaving = opened(model, 50, SPARSE, batch=batch)
    kept = opened(model, 70, SPARSE, batch=batch)
    (in_order,) = in_turns(begun(opened(model, 70, SPARSE)))
    answers = [begun(staying), begun(leaving), begun(kept, keep=True)]
    said: list[list[int]] = [[], [], []]
    for _ in range(6):
        for index, events in enumerate(answers):
            event = next(events)
            if isinstance(event, Token):
                said[index].append(event.id)
    answers[1].close()
    answers[2].close()
    said[0] += in_turns(answers[0])[0]
    assert said[0] == expected
    assert leaving.length == 50
    assert kept.ids[70 + 7 :].tolist() == in_order[: kept.length - 77]
    assert in_turns(begun(leaving)) == in_turns(begun(opened(model, 50, SPARSE)))


def test_more_answers_than_a_step_takes(models):
    model, batch, count = models["qwen2"], batch_of(models["qwen2"]), LARGEST_STEP + 2
    lengths = range(20, 20 + count)
    expected = [in_turns(begun(opened(model, length), 4))[0] for length in lengths]
    assert in_turns(*(begun(opened(model, n, batch=batch), 4) for n in lengths)) == expected


def test_drafts_are_checked_while_an_answer_is_alone(models):
    """And answers that join later stay the same."""
    model, batch = models["qwen2"], batch_of(models["qwen2"])
    (expected,) = in_turns(begun(opened(model, 120), 40))
    first = begun(opened(model, 120, batch=batch, drafts="text"), 40)
    said = [event.id for event in (next(first) for _ in range(24)) if isinstance(event, Token)]
    assert batch.rows > batch.steps
    rest, second = in_turns(first, begun(opened(model, 33, batch=batch)))
    assert said + rest == expected
    assert second == in_turns(begun(opened(model, 33)))[0]


def test_an_interrupted_step_is_forgotten_by_all(models, monkeypatch):
    model, batch = models["qwen2"], batch_of(models["qwen2"])
    one, other = (opened(model, length, SPARSE, batch=batch) for length in (40, 60))
    answers = [begun(one, keep=True), begun(other, keep=True)]
    for events in answers * 4:
        next(events)

    def interrupted(*unused) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one.cache, "count", interrupted)
        with pytest.raises(KeyboardInterrupt):
            [next(answers[0]) for _ in range(2)]
    answers[1].close()
    assert (one.length, other.length) == (47, 67)  # one question each, and nothing of an answer
    assert batch.seated == 0


def test_drawn_answers_are_those_of_one_at_a_time(models):
    model, batch, sampling = models["qwen2"], batch_of(models["qwen2"]), Sampling(0.9, seed=3)
    expected = [in_turns(begun(opened(model, n), sampling=sampling))[0] for n in (20, 30)]
    answers = [begun(opened(model, n, batch=batch), sampling=sampling) for n in (20, 30)]
    assert in_turns(*answers) == expected


def test_why_answers_do_not_decode_together_is_said(models):
    assert opened(models["qwen2"], 20).batch_reason is None
    unpacked = opened(tiny_architecture("qwen2"), 20)
    assert "one after the other" in (unpacked.batch_reason or "")


@pytest.mark.parametrize("attention", [FULL, SPARSE], ids=["full", "sparse"])
@pytest.mark.parametrize("forks", [True, False], ids=["shared", "copied"])
def test_questions_about_one_document(models, attention, forks):
    """Keys, values and codes are in memory only once, where the system supports it."""
    model, batch = models["qwen2"], batch_of(models["qwen2"])
    document = opened(model, 300, attention, batch=batch, forks=forks)
    questions = [numbers(7, seed=1), numbers(40, seed=2), numbers(300, seed=3)]
    expected = [
        in_turns(opened(model, 300, attention).answer(ids, Sampling(), ANSWER, ()))[0] for ids in questions
    ]
    for _ in range(2):  # answers leave the document unchanged
        branches = [document.fork() for _ in questions]
        answers = [
            one.answer(ids, Sampling(), ANSWER, (), keep=True)
            for one, ids in zip(branches, questions, strict=True)
        ]
        assert in_turns(*answers) == expected
    again = document.fork()
    assert in_turns(again.answer(questions[0], Sampling(), ANSWER, ())) == expected[:1]


def test_questions_of_an_evaluation(models):
    loaded = Loaded(models["qwen2"])
    reading = Reading(loaded, context=340, dense_layers=1)
    list(reading.read(numbers(300, seed=4)))
    asked = [Question(numbers(7, seed=seed), 5, None) for seed in range(3)]
    expected = [in_turns(reading.answer(one.ids, one.max_tokens, "never"))[0] for one in asked]
    assert [in_turns(events)[0] for events in reading.answers(asked, "never")] == expected
    batch = reading._timeline.batch
    assert (batch.steps, batch.rows) == (4, 12)
    study = reading.answers(asked, "answer")  # whose backend is no compiled one
    assert [len(in_turns(events)[0]) for events in study] == [5] * 3
    assert (batch.steps, batch.rows) == (4, 12)


@pytest.mark.skipif(not MAPS_FILES, reason="forks are copies on this system")
def test_a_fork_takes_memory_for_what_it_writes():
    size = 1 << 22
    whole = empty_like(torch.empty(0), (size,), torch.float32)
    whole.copy_(torch.arange(size))
    before = resident()
    forks = [forked(whole) for _ in range(8)]
    for index, one in enumerate(forks):
        one[size // 2 : size // 2 + 1000] = index
        assert one.sum().isfinite()
    assert torch.equal(whole, torch.arange(size, dtype=torch.float32))
    assert [int(one[size // 2 + 999]) for one in forks] == list(range(8))
    assert resident() - before < whole.nbytes
    assert forked(forks[0]) is None
    del whole  # the file's memory stays while a fork maps it
    assert int(forks[3][size // 2 - 1]) == size // 2 - 1


def resident() -> int:
    """Memory in bytes that is private to this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
