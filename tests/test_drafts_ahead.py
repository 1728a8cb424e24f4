"""Drafts on a GPU: answers are those of steps that are launched ahead, and passes are captured where that
pays. What needs no GPU runs with a stand-in for captured steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from adamas_kernels.contract import LARGEST_STEP, SparseSettings
from adamas_kernels.triton.backend import TritonBackend
from conftest import tiny_architecture
from layer_caches import poisoned_memory
from loaded import Loaded
from test_apart import DEVICE, small
from test_apart import SPARSE as IN_TORCH
from test_drafts import ANSWER, CONTEXT, FULL, GREEDY, SPARSE, answer, numbers
from torch import Tensor, nn

from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.mode import Mode, Sparse
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.batch import Batch
from adamas_cli.engine.drafts import GPU_COSTS, SIZES, Costs, Drafter
from adamas_cli.engine.drawn import Drawn
from adamas_cli.engine.events import Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import GuidedSampling, Sampling
from adamas_cli.engine.steps.apart import StepsApart
from adamas_cli.engine.steps.captured import CapturedSteps
from adamas_cli.engine.steps.stepper import Stepper
from adamas_cli.engine.timeline import Timeline

ROOM = 900


class Launched:
    """Replaces captured steps: the same passes through the model's own forward. sizes: tokens of each."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline, self.sizes = timeline, list[int]()

    def step(self, tokens: Tensor, mode: Mode) -> tuple[Tensor, Drawn | None]:
        self.sizes.append(len(tokens))
        logits = self.timeline.model.forward(tokens, self.timeline.cache, mode, every=True)
        weight, token = logits.max(-1)
        return logits, Drawn(token, weight) if len(tokens) == 1 else None

    def captured(self, mode: Mode, new: int) -> bool:
        return True


def opened(name: str, attention, drafts: str) -> Timeline:
    """A timeline on a CPU that takes its steps as on a GPU."""
    timeline = Timeline(Loaded(tiny_architecture(name)), attention, context=ROOM, drafts=drafts)
    list(timeline.read(numbers(CONTEXT)))
    timeline._stepper._captured = Launched(timeline)
    return timeline


@pytest.fixture
def as_on_gpu(monkeypatch) -> None:
    monkeypatch.setattr(Stepper, "on_gpu", property(lambda self: True))


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize(
    ("name", "attention", "temperature"),
    [("qwen2", FULL, 0.0), ("qwen2", SPARSE, 0.0), ("qwen2", FULL, 0.3), ("gemma3", FULL, 0.0)],
)
def test_answers_are_those_of_steps_launched_ahead(name, attention, temperature):
    sampling = Sampling(temperature=temperature, seed=3)
    one, other = opened(name, attention, "off"), opened(name, attention, "text")
    assert other.draft_reason is None
    expected, _ = answer(one, sampling, keep=True)
    found, done = answer(other, sampling, keep=True)
    assert found == expected
    assert done.drafted.proposed >= done.drafted.accepted > 0
    sizes = other._stepper._captured.sizes
    assert sum(size - 1 for size in sizes) == done.drafted.proposed
    assert done.drafted.passes == len(sizes) < ANSWER - 1
    assert other.answered == one.answered
    assert 0 <= one.length - other.length <= 1  # a step too many
    for layer, its in zip(one.cache.kept, other.cache.kept, strict=True):
        if isinstance(layer, FullLayer) and one.length == other.length:
            torch.testing.assert_close(layer.value_sum, its.value_sum, rtol=1e-4, atol=1e-4)
    assert answer(other, sampling)[0] == answer(one, sampling)[0]


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_answers_may_end_at_every_token(name):
    """Within a draft or not: the cache keeps what was said, at most, and the next answer continues it."""
    whole, _ = answer(opened(name, FULL, "off"))
    timeline = opened(name, FULL, "text")
    mark, prompt = timeline.mark(), CONTEXT + 9
    for count in range(1, ANSWER):
        said: list[int] = []
        with closing(timeline.answer(numbers(9, 1), GREEDY, ANSWER, (), keep=True)) as events:
            while len(said) < count:
                event = next(events)
                said += [event.id] if isinstance(event, Token) else []
        assert said == whole[:count]
        assert prompt + count - 1 <= timeline.length <= prompt + count
        assert timeline.ids[prompt:].tolist() == whole[: timeline.length - prompt]
        assert timeline.cache.extent.lengths.tolist() == [timeline.length]
        ids = torch.from_numpy(np.append(timeline.ids, 7).astype(np.int64))
        found = timeline.model.forward(ids[-1:], timeline.cache, Mode())
        expected = timeline.model.module(ids.unsqueeze(0), use_cache=False).logits[0, -1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        timeline.rewind(mark)


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("drafts", ["text", "auto"])
def test_answers_stop_where_they_would_without_drafts(drafts):
    whole, _ = answer(opened("qwen2", FULL, "off"))
    stop = max(set(whole), key=whole.index)  # the last token that is new
    timeline = opened("qwen2", FULL, drafts)
    timeline._costs = Costs(GPU_COSTS)
    found, done = answer(timeline, stop_ids=(stop,), keep=True)
    said = whole[: whole.index(stop)]
    assert (found, done.finish_reason) == (said, "stop")
    assert len(said) <= timeline.length - CONTEXT - 9 <= len(said) + 1


@pytest.mark.usefixtures("as_on_gpu")
def test_drafts_begin_on_their_own_where_an_answer_repeats_itself():
    whole, _ = answer(opened("qwen2", FULL, "off"))
    timeline = opened("qwen2", FULL, "auto")
    timeline._costs = Costs(GPU_COSTS)
    found, done = answer(timeline)
    assert found == whole
    assert done.drafted.accepted > 0


@pytest.mark.usefixtures("as_on_gpu")
def test_a_thought_is_ended_within_a_draft():
    def steer(token: int) -> list[int]:
        said.append(token)
        return [7, 8] if len(said) == ended else []

    for ended in range(28, 33):
        found = []
        for drafts in ("off", "text"):
            said: list[int] = []
            timeline = opened("qwen2", FULL, drafts)
            sampling = GuidedSampling(top=2)
            *events, _ = timeline.answer(numbers(9, 1), sampling, ANSWER, stop_ids=(), steer=steer)
            tokens = [event for event in events if isinstance(event, Token)]
            found.append([(event.id, event.likelihood is None) for event in tokens])
        assert found[0] == found[1]
        assert found[0][ended : ended + 2] == [(7, True), (8, True)]


@pytest.mark.usefixtures("as_on_gpu")
def test_where_nothing_repeats_every_step_is_launched_ahead(monkeypatch):
    """The next step is launched before the host asks for its token, but for the first one."""
    timeline = opened("qwen2", FULL, "auto")
    monkeypatch.setattr(Drafter, "propose", lambda self, most, left: [])
    launched = timeline._stepper._captured.sizes
    ahead = []
    for event in timeline.answer(numbers(9, 1), GREEDY, ANSWER, ()):
        if isinstance(event, Token):
            ahead.append(len(launched) - event.index)
    assert ahead == [0, *[1] * (ANSWER - 2), 0]


@pytest.mark.usefixtures("as_on_gpu")
def test_passes_that_cannot_be_captured_are_not_tried_again(monkeypatch):
    said: list[str] = []
    expected, _ = answer(opened("qwen2", FULL, "off"))
    timeline = opened("qwen2", FULL, "text")
    captured = timeline._stepper._captured
    step = captured.step

    def fails(tokens: Tensor, mode: Mode) -> tuple[Tensor, Drawn | None]:
        if len(tokens) > 1:
            captured.sizes.append(len(tokens))
            raise RuntimeError("no room\nfor it")
        return step(tokens, mode)

    monkeypatch.setattr(captured, "step", fails)
    monkeypatch.setattr(timeline._stepper, "_announce", said.append)
    found, _ = answer(timeline)
    assert found == expected
    assert sum(size > 1 for size in captured.sizes) == 1
    assert said == ["no drafts: no room"]
    assert timeline.draft_reason == "no drafts: no room"
    assert timeline.step_reason is not None  # a CPU's


@pytest.mark.usefixtures("as_on_gpu")
def test_why_a_gpu_does_not_draft_is_said(monkeypatch):
    timeline = opened("qwen2", FULL, "auto")
    monkeypatch.setattr(Stepper, "batch_obstacle", lambda self, mode: None)
    assert timeline.draft_reason is None
    timeline.batch = Batch(timeline.model)
    assert timeline.draft_reason == "no drafts: answers that decode together on a GPU take one token a step"
    timeline.batch, timeline._stepper._captured = None, None
    assert timeline.draft_reason == "no drafts: steps are not captured"
    assert answer(timeline)[1].drafted.proposed == 0


def test_tokens_given_back_in_place_are_those_truncated():
    one, other = opened("gemma3", SPARSE, "off"), opened("gemma3", SPARSE, "off")
    for timeline in (one, other):
        timeline.cache.begin_answer(Mode(answers=True))
        timeline.model.forward(torch.arange(LARGEST_STEP), timeline.cache, Mode(answers=True))
    one.cache.truncate(CONTEXT + 3)
    other.cache.retract_in_place(CONTEXT + 3)
    for layer, its in zip(one.cache.kept, other.cache.kept, strict=True):
        assert layer.length == its.length == CONTEXT + 3
        if isinstance(layer, FullLayer):
            torch.testing.assert_close(layer.value_sum, its.value_sum)
    assert other.cache.extent.lengths.tolist() == [CONTEXT + 3]


class Replayed:
    """Replaces a CUDA graph of a pass: all that the host knows in `replay` is as when it was captured."""

    def __init__(self, steps: CapturedSteps, tokens: Tensor, drawn: Drawn | None, mode: Mode) -> None:
        self._run = lambda: steps._run(tokens, drawn, mode)
        self._layers = steps._cache.kept
        self._then = [(layer.length, vars(layer).get("_oldest")) for layer in self._layers]
        self.logits = tokens.new_zeros(len(tokens), steps._model.config.vocab_size, dtype=torch.float32)

    def replay(self) -> None:
        now = [dict(vars(layer)) for layer in self._layers]
        for layer, (length, oldest) in zip(self._layers, self._then, strict=True):
            vars(layer).update({"length": length} | ({} if oldest is None else {"_oldest": oldest}))
        self.logits.copy_(self._run())
        for layer, known in zip(self._layers, now, strict=True):
            vars(layer).update(known)


class AsCaptured(CapturedSteps):
    """Captured steps without CUDA."""

    def _capture(self, tokens: Tensor, mode: Mode) -> Any:
        own = tokens.clone()
        drawn = Drawn(own, torch.empty(1, device=own.device)) if len(tokens) == 1 else None
        graph = Replayed(self, own, drawn, mode)
        return SimpleNamespace(
            version=self._cache.extent.version, graph=graph, tokens=own, logits=graph.logits, drawn=drawn
        )


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to is poisoned; the interpreter warns of some other numbers there."""
    with nullcontext() if DEVICE == "cuda" else poisoned_memory():
        yield


@pytest.mark.usefixtures("as_on_gpu", "poisoned")
@pytest.mark.parametrize(("name", "attention"), [("full", IN_TORCH), ("windows", FULL)])
def test_captured_passes_need_nothing_of_the_host(monkeypatch, name, attention):
    """By Triton's kernels, in the interpreter where there is no GPU: two passes of four tokens, of which one
    is wrong, and the next one is right; then steps.
    """

    def timeline_of(model: nn.Module, drafts: str) -> Timeline:
        timeline = Timeline(Loaded(model), attention, context=120, drafts=drafts, counts=True)
        if drafts == "auto" and timeline.sparse is not None:
            timeline.use(Sparse(timeline.sparse.settings, TritonBackend()))
        list(timeline.read(numbers(60)))
        return timeline

    tokens, question = 9, numbers(7, 1)
    plain = timeline_of(small(name), "off")
    plain._stepper._captured = Launched(plain)
    said = [e.id for e in plain.answer(question, GREEDY, tokens, (), keep=True) if isinstance(e, Token)]
    model = small(name).to(DEVICE)
    if DEVICE == "cpu":
        Model.of(Loaded(model)).dense = TritonBackend()
    timeline = timeline_of(model, "auto")
    steps = timeline._stepper._captured = AsCaptured(timeline.model, timeline.cache)
    monkeypatch.setattr(Stepper, "_row_for", lambda stepper, mode: None)  # graphs of this cache alone

    def propose(drafter: Drafter, most: int, left: int) -> list[int]:
        at = len(drafter._text) - 67
        return [*said[at : at + 2], (said[at + 2] + 1) % 250] if left >= 4 else []

    monkeypatch.setattr(Drafter, "propose", propose)
    *events, done = timeline.answer(question, GREEDY, tokens, (), keep=True)
    assert [event.id for event in events if isinstance(event, Token)] == said
    assert (done.drafted.proposed, done.drafted.accepted, done.drafted.passes) == (6, 4, 4)
    assert sorted(size for _, size in steps._graphs) == [1, 4]
    assert timeline.length == plain.length
    assert timeline.cache.extent.lengths.tolist() == [timeline.length]
    torch.testing.assert_close(timeline.logits.cpu(), plain.logits, rtol=1e-3, atol=1e-3)
    if attention is IN_TORCH:
        np.testing.assert_allclose(timeline.attended(), plain.attended(), rtol=1e-3, atol=1e-3)


def repeating(costs: Costs, tokens: int, left: int = 1000) -> list[int]:
    """How many tokens are proposed after each of these of an answer that copies a text."""
    text = numbers(400, below=10_000)
    drafter, sizes = Drafter(text, costs), []
    for token in text[100 : 100 + tokens].tolist():
        drafter.say(token)
        sizes.append(len(drafter.propose(LARGEST_STEP, left)))
    return sizes


def measured(setup: float) -> Costs:
    """Costs of a GPU that has taken steps of a millisecond."""
    costs = Costs(GPU_COSTS, lambda size: setup)
    for _ in range(3):
        costs.took(1, 0.001)
    return costs


def test_a_size_is_begun_once_its_passes_would_have_saved_the_setup():
    assert not any(repeating(Costs(GPU_COSTS, lambda size: 0.02), 100))  # how long a step takes is not known
    begun = [next(at for at, size in enumerate(repeating(measured(s), 200)) if size) for s in (0, 0.02, 0.05)]
    assert begun[0] < begun[1] < begun[2]
    assert 20 < begun[1] < 40  # each token would have saved most of a step
    assert not any(repeating(measured(0.02), 200, left=20))  # the answer is nearly over
    assert any(repeating(measured(0.02), 200, left=60))


def test_what_one_size_costs_tells_about_the_others():
    costs = measured(0.02)
    assert [costs.of(size) for size in SIZES] == [GPU_COSTS[size] for size in SIZES]
    for _ in range(2):  # the first one has the set-up
        costs.took(SIZES[1], 0.001 * 3 * GPU_COSTS[SIZES[1]])
    assert [costs.of(size) for size in SIZES] == pytest.approx([3 * GPU_COSTS[size] for size in SIZES])


# On a GPU


def on_gpu(name: str, attention, drafts: str, context: int = ROOM, **options) -> Timeline:
    model = tiny_architecture(name).to("cuda").requires_grad_(False)
    settings = {"context": context, "drafts": drafts, "counts": True, **options}
    timeline = Timeline(Loaded(model), attention, **settings)
    list(timeline.read(numbers(CONTEXT)))
    return timeline


@pytest.mark.gpu
@pytest.mark.parametrize("context", [ROOM, CONTEXT + 12])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "attention"), [("gemma3", FULL), ("qwen2", FULL), ("qwen2", SPARSE), ("gemma3", SPARSE)]
)
def test_captured_drafts_give_the_tokens_of_captured_steps(name, attention, temperature, context):
    """In a cache with room, and in one that grows within the answer, so that passes are captured again."""
    sampling = Sampling(temperature=temperature, seed=3)
    one, other = (on_gpu(name, attention, drafts, context) for drafts in ("off", "text"))
    assert other.draft_reason is None
    expected, _ = answer(one, sampling, keep=True)
    found, done = answer(other, sampling, keep=True)
    assert found == expected
    assert done.drafted.proposed >= done.drafted.accepted > 0
    own = {size for _, size in other._stepper._captured._graphs}
    assert own == {1} if attention is FULL else own > {1}
    assert (other.step_reason, other.draft_reason) == (None, None)
    assert other.answered == one.answered
    assert other.cache.extent.lengths.tolist() == [other.length]
    if one.length == other.length:
        for layer, its in zip(one.cache.kept, other.cache.kept, strict=True):
            if isinstance(layer, FullLayer):
                torch.testing.assert_close(layer.value_sum, its.value_sum, rtol=1e-3, atol=1e-3)
        if attention is SPARSE:
            np.testing.assert_allclose(other.attended(), one.attended(), rtol=1e-2, atol=1e-2)
    assert answer(other, sampling)[0] == answer(one, sampling)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("attention", [FULL, SPARSE])
@pytest.mark.parametrize("size", SIZES)
def test_a_captured_pass_gives_the_logits_of_its_steps_and_its_tokens_back(size, attention):
    timeline = on_gpu("qwen2", attention, "text")
    mode, cache = timeline._answering(sparse=True), timeline.cache
    new = torch.from_numpy(numbers(size, 5)).long().cuda()
    start = timeline.mark()
    cache.begin_answer(mode)
    expected = [timeline._stepper.step(token, mode)[0].clone() for token in new.split(1)]
    timeline.rewind(start)
    cache.begin_answer(mode)
    wrong = (new + 1) % 250
    for kept in (1, 2):
        drafted = torch.cat((new[:kept], wrong[kept:]))
        found, _ = timeline._stepper.steps(drafted, mode)
        torch.testing.assert_close(found[:kept], torch.stack(expected[:kept]), rtol=1e-3, atol=1e-3)
        cache.retract_in_place(CONTEXT)
    found, greedy = timeline._stepper.steps(new, mode)
    assert greedy is None
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-3)
    own = [tokens for _, tokens in timeline._stepper._captured._graphs]
    shared = [new for _, _, new in StepsApart.of(timeline.model, captures=True)._passes]
    assert [n for n in (own + shared) if n > 1] == [size]
    assert (size in own) == (attention is SPARSE)
    assert timeline._stepper.captured(mode, size)


@pytest.mark.gpu
def test_a_budget_of_all_tokens_counts_only_those_that_stay(monkeypatch):
    """Each token of an answer attends to all before it, in both heads' groups and every sparse layer. The
    last token of each draft is wrong.
    """
    propose = Drafter.propose

    def spoilt(drafter: Drafter, most: int, left: int) -> list[int]:
        draft = propose(drafter, most, left)
        return [*draft[:-1], (draft[-1] + 1) % 250] if draft else []

    monkeypatch.setattr(Drafter, "propose", spoilt)
    whole = on_gpu("qwen2", AttentionSettings("adamas", SparseSettings(budget=512), dense_layers=1), "text")
    _, done = answer(whole, keep=True)
    assert done.drafted.proposed > done.drafted.accepted > 0
    steps = whole.length - CONTEXT - 9
    counts = whole.cache.tally.counts[0, 0, : CONTEXT + 9]
    layers, heads = 3, 4
    assert counts.unique().tolist() == [steps * layers * heads]
