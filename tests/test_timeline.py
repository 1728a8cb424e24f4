"""Conversations in an engine's cache, against the same tokens at once, on three tiny architectures."""

from __future__ import annotations

from contextlib import closing
from itertools import zip_longest

import numpy as np
import pytest
from adamas_kernels.contract import SparseSettings
from conftest import ARCHITECTURES, tiny_architecture
from loaded import Loaded

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Done, Prefill, Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline, common_prefix

GREEDY = Sampling()
FULL = AttentionSettings("full")
WHOLE = AttentionSettings("adamas", SparseSettings(budget=1000))  # sparse steps that attend to everything
SMALL = AttentionSettings("adamas", SparseSettings(budget=32))
TURN = 12  # tokens per answer


def text(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


def opened(name: str, settings: AttentionSettings, context: int = 400) -> Timeline:
    return Timeline(Loaded(tiny_architecture(name)), settings, context=context, prefill_chunk=64)


def read(cached: Timeline, ids: np.ndarray) -> list[Prefill]:
    return list(cached.sync(ids))


def answer(cached: Timeline, ids: np.ndarray, tokens: int = TURN, stop_ids: tuple[int, ...] = ()) -> list:
    return list(cached.go_on(ids, GREEDY, tokens, stop_ids))


def said(events: list) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def at_once(name: str, ids: np.ndarray) -> list[int]:
    """The answer of an engine that reads the whole conversation with full attention."""
    return said(answer(opened(name, FULL), ids))


def grown(ids: np.ndarray, reply: list[int], seed: int) -> np.ndarray:
    """The conversation with a reply and another question."""
    return np.concatenate([ids, np.array(reply, np.int32), text(9, seed)])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [FULL, WHOLE], ids=["full", "sparse"])
def test_a_turn_gets_the_answer_of_the_whole_conversation_at_once(name, settings):
    cached = opened(name, settings)
    document = text(200, 0)
    read(cached, document)
    ids = np.concatenate([document, text(9, 1)])
    for seed in (2, 3, 4):
        events = answer(cached, ids)
        assert said(events) == at_once(name, ids)
        before = len(ids)
        assert cached.length == before + TURN - 1  # the last token is not fed
        ids = grown(ids, said(events), seed)
        assert cached.reusable(ids) == cached.length
    (done,) = [event for event in answer(cached, ids) if isinstance(event, Done)]
    assert (done.prompt_tokens, done.reused_tokens) == (len(ids), len(ids) - 10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_small_budgets_go_on_from_what_they_said(name):
    """Two conversations with the same turns are equal, whatever was tried in between."""
    straight, crooked = opened(name, SMALL), opened(name, SMALL)
    ids = text(250, 0)
    for cached in (straight, crooked):
        read(cached, ids[:240])
    for seed in (1, 2, 3):
        reply = said(answer(straight, ids))
        tried = np.concatenate([ids[:-1], text(5, 9)])
        answer(crooked, tried)
        assert crooked.reusable(ids) < crooked.length
        assert said(answer(crooked, ids)) == reply
        ids = grown(ids, reply, seed)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [FULL, WHOLE], ids=["full", "sparse"])
@pytest.mark.parametrize("within_a_step", [False, True])
def test_a_stopped_answer_is_part_of_the_conversation(name, settings, within_a_step, monkeypatch):
    cached = opened(name, settings)
    ids = text(210, 0)
    read(cached, ids[:200])
    kept = []
    with monkeypatch.context() as patch, closing(cached.go_on(ids, GREEDY, 50, ())) as events:
        for event in events:
            if isinstance(event, Token):
                kept.append(event.id)
            if len(kept) == 5:
                if not within_a_step:
                    break
                patch.setattr(cached.cache, "advance", interrupted)  # once the layers have the token
                with pytest.raises(KeyboardInterrupt):
                    next(events)
                break
    assert cached.length == len(ids) + (0 if within_a_step else 4)
    ids = grown(ids, kept, 1)
    assert said(answer(cached, ids)) == at_once(name, ids)


def interrupted(tokens: int, mode: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_interrupted_reading_goes_on_behind_its_last_chunk(name, monkeypatch):
    cached = opened(name, FULL)
    ids = text(210, 0)
    calls = iter([False, False, True])
    feed = type(cached.model.module).forward

    def forward(self, *args, **kwargs):
        out = feed(self, *args, **kwargs)
        if next(calls, False):
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(type(cached.model.module), "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        read(cached, ids[:200])
    assert cached.length == 128
    first, *_ = read(cached, ids[:200])
    assert first.reused == 128
    assert said(answer(cached, ids)) == at_once(name, ids)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_changes_is_read_from_the_last_state_before_it(name):
    cached = opened(name, FULL)
    document = text(200, 0)
    read(cached, document)
    ids = np.concatenate([document, text(9, 1)])
    reply = said(answer(cached, ids))
    rewritten = np.concatenate([ids, np.array(reply[6:], np.int32), text(9, 2)])  # without a "thought"
    assert cached.reusable(rewritten) == len(ids)
    assert said(answer(cached, rewritten)) == at_once(name, rewritten)
    other = np.concatenate([document, text(9, 3)])
    assert cached.reusable(other) == len(document)
    assert said(answer(cached, other)) == at_once(name, other)
    changed = text(209, 4)
    assert cached.reusable(changed) == 0
    assert said(answer(cached, changed)) == at_once(name, changed)


def test_a_stop_token_is_neither_said_nor_in_the_way():
    cached = opened("llama", FULL)
    ids = text(210, 0)
    reply = at_once("llama", ids)
    end = next(index for index in range(1, TURN) if reply[index] not in reply[:index])
    events = answer(cached, ids, stop_ids=(reply[end],))
    assert said(events) == reply[:end]
    assert events[-1].finish_reason == "stop"
    longer = np.concatenate([ids, np.array(reply[: end + 1], np.int32), text(9, 1)])
    assert cached.reusable(longer) == cached.length
    assert said(answer(cached, longer)) == at_once("llama", longer)


def test_a_conversation_outgrows_its_reservation():
    cached = opened("llama", SMALL, context=100)
    roomy = opened("llama", SMALL, context=1000)
    ids = text(90, 0)
    for seed in range(1, 8):
        reply = said(answer(cached, ids))
        assert said(answer(roomy, ids)) == reply
        ids = grown(ids, reply, seed)
    assert cached.length > 200


def test_common_prefix():
    one = np.array([1, 2, 3], np.int32)
    assert common_prefix(one, np.array([1, 2, 4, 5], np.int32)) == 2
    assert common_prefix(one, one[:2]) == 2
    assert common_prefix(one, np.empty(0, np.int32)) == 0


def in_turn(*answers):
    """What each answer says, one token of each at a time."""
    replies = [[] for _ in answers]
    while any(len(reply) < TURN for reply in replies):
        for reply, events in zip(replies, answers, strict=True):
            reply.append(next(event.id for event in events if isinstance(event, Token)))
    for events in answers:
        events.close()
    return replies


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [FULL, SMALL], ids=["full", "sparse"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_answers_of_one_model_that_take_turns_are_those_given_one_after_the_other(name, settings, device):
    loaded = Loaded(tiny_architecture(name).to(device))
    documents, question = (text(260, 0), text(190, 1), text(230, 2)), text(9, 3)
    timelines = [Timeline(loaded, settings, context=400, prefill_chunk=64) for _ in documents]
    readings = [timeline.read(ids) for timeline, ids in zip(timelines, documents, strict=True)]
    for _ in zip_longest(*readings):  # one chunk of each at a time
        pass
    together = in_turn(*(timeline.answer(question, GREEDY, TURN, ()) for timeline in timelines))
    for ids, reply in zip(documents, together, strict=True):
        alone = Timeline(loaded, settings, context=400, prefill_chunk=64)
        list(alone.read(ids))
        assert said(list(alone.answer(question, GREEDY, TURN, ()))) == reply


@pytest.mark.parametrize("settings", [FULL, SMALL], ids=["full", "sparse"])
def test_a_suspended_answer_with_windows_and_one_with_other_settings_do_not_meet(settings):
    """One stops between two tokens while another of the same model starts and ends."""
    loaded, ids = Loaded(tiny_architecture("gemma3")), text(250, 0)
    one, other = Timeline(loaded, settings, context=400), Timeline(loaded, FULL, context=400)
    list(one.read(ids[:240]))
    expected = said(list(one.answer(ids[240:], GREEDY, TURN, ())))
    suspended = one.answer(ids[240:], GREEDY, TURN, ())
    begun = [next(event.id for event in suspended if isinstance(event, Token)) for _ in range(4)]
    list(other.sync(text(90, 5)))
    list(other.answer(text(5, 6), GREEDY, TURN, ()))
    assert begun + said(list(suspended)) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [FULL, SMALL], ids=["full", "sparse"])
def test_a_fork_goes_on_by_itself(name, settings):
    first = opened(name, settings)
    ids = text(240, 0)
    read(first, ids)
    expected = [said(list(first.answer(text(9, seed), GREEDY, TURN, ()))) for seed in (1, 2)]
    second = first.fork()
    assert np.array_equal(second.ids, ids)
    replies = in_turn(first.answer(text(9, 1), GREEDY, TURN, ()), second.answer(text(9, 2), GREEDY, TURN, ()))
    assert replies == expected
    list(second.read(text(50, 3)))
    assert (first.length, second.length) == (240, 290)
    assert second.return_to(ids) == 240  # the states that the first one had
    assert said(list(second.answer(text(9, 1), GREEDY, TURN, ()))) == expected[0]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_truncated_timeline_has_the_tokens_that_are_left(name):
    cut, straight = opened(name, WHOLE), opened(name, WHOLE)
    list(cut.read(text(240, 0)))
    cut.truncate(200)
    assert np.array_equal(cut.ids, text(240, 0)[:200])
    list(straight.read(text(240, 0)[:200]))
    for timeline in (cut, straight):
        list(timeline.read(text(30, 1)))
    answers = [list(timeline.answer(text(9, 2), GREEDY, TURN, ())) for timeline in (cut, straight)]
    assert said(answers[0]) == said(answers[1])


def test_a_window_that_moved_on_cannot_be_truncated():
    timeline = opened("gemma3", FULL)
    list(timeline.read(text(240, 0)))
    with pytest.raises(ValueError, match="cannot return to 200 of 240 tokens"):
        timeline.truncate(200)
    assert timeline.length == 240
