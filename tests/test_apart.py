"""Answers that decode together by Triton's kernels, each in a cache of its own: on a GPU, or in the
interpreter.

Alone they are computed in plain torch. In a batch of kernels sums have another order, so logits are compared
within rounding.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adamas_kernels.contract import LARGEST_STEP, SparseSettings
from adamas_kernels.triton.backend import TritonBackend
from layer_caches import poisoned_memory
from test_drafts import Loaded, numbers
from test_together import begun, in_turns
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from adamas_cli.cache.apart import common_root
from adamas_cli.cache.mode import Mode, Sparse
from adamas_cli.cache.placement import Paged
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.batch import Batch, Seat
from adamas_cli.engine.decoding import OneByOne
from adamas_cli.engine.drawn import Drawn, together
from adamas_cli.engine.events import Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.reading import Reader
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.steps.apart import Row, StepsApart
from adamas_cli.engine.steps.stepper import Stepper
from adamas_cli.engine.timeline import Timeline

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
ANSWER = 2  # tokens: the interpreter takes long for each
FULL = AttentionSettings("full")
SPARSE = AttentionSettings("adamas", SparseSettings(budget=24), dense_layers=0, backend="torch")
KERNELS = TritonBackend()

pytestmark = [pytest.mark.gpu] if ON_GPU else []


def small(name: str) -> PreTrainedModel:
    """A model of one layer, or two, each with two query heads and one KV head."""
    common = {
        "vocab_size": 258, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 1 if name == "full" else 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 32, "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": 256,
        "pad_token_id": None,
    }  # fmt: skip
    windows = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    torch.manual_seed(1)
    model = (
        LlamaForCausalLM(LlamaConfig(**common))
        if name == "full"
        else Gemma3ForCausalLM(Gemma3TextConfig(**common, **windows))
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def in_double(name: str, timeline: Timeline) -> torch.Tensor:
    """The logits after what a timeline's last answer began from and fed, by definition in float64."""
    said = [*timeline.ids, *numbers(7, seed=ANSWER), *timeline.answered[:-1]]
    with torch.no_grad():
        return small(name).double()(torch.tensor([said])).logits[0, -1]


@pytest.fixture(scope="module")
def plain() -> dict[str, Loaded]:
    """Models that take each step by themselves, in plain torch: one with full attention, one with windows."""
    return {name: Loaded(small(name)) for name in ("full", "windows")}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Loaded]:
    """The same, with steps by Triton's kernels."""
    found = {name: Loaded(small(name).to(DEVICE)) for name in ("full", "windows")}
    for one in found.values() if not ON_GPU else ():
        Model.of(one).dense = KERNELS
    return found


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    """Keys and values lie as they do on a GPU, and memory that nothing was written to is poisoned."""
    if not ON_GPU:
        placed = lambda device, forks=False: Paged(tokens_first=True, forks=forks)  # noqa: E731
        monkeypatch.setattr("adamas_cli.engine.timeline.placement_on", placed)
    with nullcontext() if ON_GPU else poisoned_memory():
        yield


def opened(loaded: Loaded, length: int, attention: AttentionSettings, **options) -> Timeline:
    """A timeline that has read a text of this length, different for each length."""
    timeline = Timeline(loaded, attention, context=length + 60, forks=True, **options)
    if timeline.sparse is not None and timeline.batch is not None:
        timeline.use(Sparse(timeline.sparse.settings, TritonBackend()))  # as each timeline loads one
    list(timeline.sync(numbers(length, seed=length)))
    return timeline


@pytest.mark.parametrize(("name", "attention"), [("full", SPARSE), ("windows", FULL)])
def test_answers_are_those_of_one_at_a_time(plain, loaded, name, attention):
    lengths = (70, 35, 33)
    alone, expected = [opened(plain[name], length, attention, counts=True) for length in lengths], []
    for timeline in alone:
        expected += in_turns(begun(timeline, ANSWER))
    batch = Batch(Model.of(loaded[name]))
    together = [opened(loaded[name], length, attention, counts=True, batch=batch) for length in lengths]
    assert [timeline.batch_reason for timeline in together] == [None] * 3
    assert in_turns(*(begun(timeline, ANSWER) for timeline in together)) == expected
    assert (batch.steps, batch.rows, batch.seated) == (1, 3, 0)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.logits, other.logits.cpu(), rtol=1e-3, atol=1e-3)
        assert one.length == other.length
        if attention is FULL:
            exact = in_double(name, one)
            alone_error, error = ((x.logits.cpu() - exact).abs().max() for x in (one, other))
            assert error <= 4 * alone_error + 1e-6
        else:
            np.testing.assert_allclose(one.attended(), other.attended(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attention", [FULL, SPARSE], ids=["full", "sparse"])
def test_questions_about_one_document(plain, loaded, attention):
    """A short one beside them ends first, and another enters in its place."""
    questions, other = [numbers(7, seed=1), numbers(9, seed=2)], numbers(5, seed=3)

    def asked(timeline, ids, tokens):
        return timeline.answer(ids, Sampling(), tokens, ())

    document = opened(plain["full"], 70, attention)
    expected = [in_turns(asked(document, ids, 3))[0] for ids in questions]
    beside = [in_turns(asked(opened(plain["full"], n, attention), other, 2))[0] for n in (20, 30)]
    batch = Batch(Model.of(loaded["full"]))
    document = opened(loaded["full"], 70, attention, batch=batch)
    branches = [document.fork() for _ in questions]
    assert common_root([branch.cache for branch in branches])[1] == 70
    answers = [asked(branch, ids, 3) for branch, ids in zip(branches, questions, strict=True)]
    short = (asked(opened(loaded["full"], n, attention, batch=batch), other, 2) for n in (20, 30))
    said = in_turns(*answers, chain(*short))
    assert said[:2] == expected
    assert said[2] == beside[0] + beside[1]
    assert batch.steps < batch.rows


def test_what_forks_share_ends_where_one_is_cut(loaded):
    document = opened(loaded["full"], 40, FULL)
    one, other = document.fork(), document.fork()
    one.truncate(30)
    assert common_root([one.cache, other.cache])[1] == 30
    document.rewind(document._states[0])
    list(document.sync(numbers(50, seed=9)))
    assert common_root([document.fork().cache, other.cache]) == (None, 0)


@pytest.mark.parametrize("attention", [FULL, SPARSE], ids=["full", "sparse"])
def test_joined_documents(plain, loaded, attention):
    """Sequences with the same shift of positions share a pass, others take their own."""

    def joined(model: Loaded, lengths: tuple[int, ...], **options) -> Timeline:
        timeline = Timeline(model, attention, context=200, forks=True, **options)
        if timeline.sparse is not None and timeline.batch is not None:
            timeline.use(Sparse(timeline.sparse.settings, TritonBackend()))
        for length in lengths:
            timeline.join(opened(model, length, FULL), 0)
        timeline.end_joining()
        return timeline

    each = [(40, 30), (30, 50), (35, 33)]
    alone = [joined(plain["full"], lengths) for lengths in each]
    expected = [in_turns(begun(timeline, ANSWER))[0] for timeline in alone]
    batch = Batch(Model.of(loaded["full"]))
    together = [joined(loaded["full"], lengths, batch=batch) for lengths in each]
    assert [timeline.cache.extent.shift for timeline in together] == [30, 30, 33]
    assert in_turns(*(begun(timeline, ANSWER) for timeline in together)) == expected
    assert (batch.steps, batch.rows) == (2, 3)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.logits, other.logits.cpu(), rtol=1e-3, atol=1e-3)


class Fed:
    """A row that notes the tokens of its sequence."""

    def __init__(self, *unused) -> None:
        self.tokens: list[int] = []
        self.settled: list[int] | None = None

    def retract(self) -> None:
        self.tokens.pop()

    def settle(self) -> None:
        self.settled = list(self.tokens)


class Counting:
    """Steps after which the next number is the likeliest token."""

    ahead, row = True, Fed

    def joins(self, seat: Seat, other: Seat) -> bool:
        return True

    def step(self, seats):
        tokens = torch.cat([seat.left for seat in seats])
        for seat in seats:
            seat.row.tokens.append(int(seat.left))
        return torch.zeros(len(tokens), 1), together(tokens + 1, torch.ones(len(tokens)))


@pytest.mark.parametrize("name", ["full", "windows"])
def test_one_pass_takes_several_tokens_of_any_sequence(loaded, name):
    """As many as a draft has; some are given back."""
    steps = StepsApart.of(Model.of(loaded[name]), captures=False)
    for length in (70, 35):
        timeline = opened(loaded[name], length, FULL)
        cache, wrong, new = timeline.cache, numbers(4, seed=8), numbers(4, seed=9)
        row = Row(cache, timeline._answering(sparse=False))
        cache.begin_answer(row.mode)
        for tokens, kept in ((np.concatenate([new[:1], wrong[1:]]), 1), (new[1:3], 2), (new[3:], 1)):
            row.tokens, row.token = cache.get_seq_length(), torch.from_numpy(tokens).long().to(DEVICE)
            logits, _ = steps.step([row])
            row.settle()
            cache.tell_length()
            before = cache.get_seq_length() - len(tokens)
            said = torch.tensor([[*timeline.ids, *new[: before - length], *tokens]])
            with torch.no_grad():
                expected = small(name).double()(said).logits[0, -len(tokens) :]
            torch.testing.assert_close(logits.double().cpu(), expected, rtol=1e-3, atol=1e-3)
            cache.retract_in_place(before + kept)
    assert sorted(tokens for _, _, tokens in steps._passes if tokens > 1) == [2, 4]


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("name", ["full", "windows"])
def test_a_short_question_is_read_in_steps(monkeypatch, loaded, name, fits):
    """Where answers share them, or in a plain pass if a graph does not fit into memory; what fills up the
    last step leaves no trace.
    """
    given_up, step = list[str](), StepsApart.step

    def several(steps: StepsApart, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        if len(rows[0].token) > 1 and not fits:
            raise torch.OutOfMemoryError
        return step(steps, rows)

    monkeypatch.setattr(StepsApart, "step", several)
    monkeypatch.setattr(Stepper, "_give_up", lambda stepper, tokens, reason: given_up.append(reason))
    timeline = opened(loaded[name], 70, FULL, batch=Batch(Model.of(loaded[name])), drafts="off")
    monkeypatch.setattr(Reader, "_read_chunk", None)
    timeline._stepper._captured = timeline._stepper._captured or SimpleNamespace()
    question = numbers(LARGEST_STEP + 5, seed=4)
    read, *tokens, _ = timeline.answer(question, Sampling(), 2, (), keep=True)
    assert (read.done, read.total, read.reused) == (91, 91, 70)
    assert len(tokens) == 2
    said = torch.tensor([[*numbers(70, seed=70), *question, tokens[0].id]])
    with torch.no_grad():
        expected = small(name).double()(said).logits[0, -2:]
    assert [token.id for token in tokens] == expected.argmax(-1).tolist()
    torch.testing.assert_close(timeline.logits.double().cpu(), expected[-1], rtol=1e-3, atol=1e-3)
    assert timeline.ids[: len(said[0])].tolist() == said[0].tolist()
    assert ("no memory for a CUDA graph" in given_up) != fits


def test_a_step_takes_tokens_that_are_expected():
    """So that a GPU has all answers' next step before the host has seen their tokens."""
    batch = Batch(SimpleNamespace(dense=None))
    batch._together = Counting()
    one, other = (batch.seat(SimpleNamespace(tell_length=lambda: None), Mode()) for _ in range(2))

    def go_on(seat: Seat, drawn: Drawn, *, likeliest: bool = True) -> Drawn:
        seat.begin(drawn.token, likeliest=likeliest)
        return seat.finish()[1]

    for seat, first in ((one, 10), (other, 20)):
        seat.begin(torch.tensor([first]), likeliest=True)
    ones = go_on(one, one.finish()[1])
    assert (batch.steps, batch.rows) == (
        2,
        4,
    )  # the second step has what comes after 20, which nobody has seen
    others = go_on(other, other.finish()[1])
    assert (int(ones.token), int(others.token), batch.steps) == (12, 22, 2)
    ones = go_on(one, ones)
    others = go_on(other, Drawn(torch.tensor([99]), torch.ones(1)))  # another token than expected
    assert int(others.token) == 100
    assert other.row.tokens == [20, 21, 99]
    go_on(one, ones, likeliest=False)
    for seat in (one, other):
        seat.leave()
    assert one.row.settled == [10, 11, 12, 13]
    assert other.row.settled == [20, 21, 99]  # without 100, which was expected too


@pytest.mark.parametrize("steps", [0, 1, 2], ids=["none", "one", "two"])
@pytest.mark.parametrize("greedy", [True, False])
def test_a_first_token_is_offered_to_steps_of_others(steps, greedy):
    """However many they take until the answer's next turn, each of its tokens is fed once, and in order."""
    batch = Batch(SimpleNamespace(dense=None))
    batch._together = Counting()

    def begin(first: int) -> tuple[Seat, OneByOne]:
        seat = batch.seat(SimpleNamespace(tell_length=lambda: None), Mode())
        after = lambda logits, drawn: drawn  # noqa: E731
        drawn = Drawn(torch.tensor([first]), torch.ones(1))
        sampler = SimpleNamespace(next=lambda logits: drawn, after=after, greedy=greedy)
        return seat, OneByOne(seat, sampler, torch.zeros(1))

    def turn(saying: OneByOne, left: int) -> int:
        token = saying.next(left)
        saying.feed(left - 1)
        return token

    (other, others), (seat, saying) = begin(10), begin(200)
    saying.offer(20)
    assert seat.left.tolist() == [200]
    told = [turn(others, 20) for _ in range(steps and 1 + steps)]
    taken = batch.steps
    said = [turn(saying, 20)]
    assert batch.steps == taken  # the first token waits for none
    for left in range(19, 9, -1):
        told.append(turn(others, left))
        said.append(turn(saying, left))
    assert said == list(range(200, 211))
    assert told == list(range(10, 10 + len(told)))
    for one, first in ((other, 10), (seat, 200)):
        one.leave()
        assert one.row.settled == list(range(first, first + len(one.row.settled)))


def test_a_step_is_awaited_by_answers_under_way():
    """They expect a token; those that begin together do not, and are computed in one step."""
    batch = Batch(SimpleNamespace(dense=None))
    batch._together = Counting()
    one, other = (batch.seat(SimpleNamespace(tell_length=lambda: None), Mode()) for _ in range(2))
    for seat, first in ((one, 10), (other, 20)):
        seat.begin(torch.tensor([first]))
    assert [seat.awaited for seat in (one, other)] == [False, False]
    _, drawn = one.finish()
    one.expect(drawn.token)
    assert (other.awaited, one.awaited) == (True, False)
    one.begin(drawn.token)
    assert not other.awaited
    for seat in (one, other):
        seat.leave()


@pytest.mark.parametrize("turns", [1, 2, 3], ids=["at once", "after a token", "later"])
def test_an_answer_that_begins_needs_no_step_of_its_own(monkeypatch, plain, loaded, turns):
    """What follows its first token is computed in others' next step, and all say what they say alone.
    Wherever it is ended, its session goes on as if it had not begun.
    """
    document = opened(loaded["full"], 70, FULL, batch=Batch(Model.of(loaded["full"])), drafts="off")
    forks, questions = [document.fork() for _ in range(4)], [numbers(5, seed=seed) for seed in range(4)]
    for one in forks:
        one._stepper._captured = one._stepper._captured or SimpleNamespace()  # questions are read in steps
    rows, step = list[int](), Batch.step

    def counted(batch: Batch, seat: Seat) -> None:
        before = batch.rows
        step(batch, seat)
        rows.append(batch.rows - before)

    monkeypatch.setattr(Batch, "step", counted)
    both = zip(forks, questions, strict=True)
    answers = [one.answer(its, Sampling(), 9, (), keep=True) for one, its in both]
    said = [list[int]() for _ in answers]

    def take_turns(*counts: int) -> None:
        for count in counts:
            for one, tokens in list(zip(answers, said, strict=True))[:count]:
                event = next(one)
                tokens += [event.id] if isinstance(event, Token) else []

    take_turns(2, 2, 3, 3)
    rows.clear()
    take_turns(*[4] * turns)
    assert rows
    assert min(rows) >= 3
    answers[3].close()
    assert len(forks[3].ids) == forks[3].cache.get_seq_length()
    said[3] = in_turns(forks[3].go_on(np.concatenate([document.ids, questions[3]]), Sampling(), 2, ()))[0]
    for one, tokens in zip(questions, said, strict=True):
        alone = opened(plain["full"], 70, FULL).answer(one, Sampling(), len(tokens), ())
        assert tokens == in_turns(alone)[0]
    assert len(said[0]) == 3 + turns


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "attention"), [("full", FULL), ("full", SPARSE), ("windows", SPARSE)])
def test_a_graph_gives_the_tokens_of_its_launches(name, attention, dtype):
    """In batches of every size, of sequences that enter and leave."""
    model = Loaded(small(name).to(DEVICE, dtype))
    found = []
    for graphs in (True, False):
        batch = Batch(Model.of(model), graphs=graphs)
        document = opened(model, 3000, attention, batch=batch, counts=True)
        own = [opened(model, 200 + n, attention, batch=batch, counts=True) for n in range(3)]
        answers = [begun(one, 8 + index) for index, one in enumerate(own)]
        answers += [document.fork().answer(numbers(7, seed=n), Sampling(), 6 + 2 * n, ()) for n in range(14)]
        found.append(in_turns(*answers[:5], chain(*answers[5:7]), *answers[7:]))
        passes = batch._together._steps._passes
        assert all((one.graph is not None) == graphs for one in passes.values())
        assert {size for _, size, _ in passes} >= {1, 2, 4, 8, 16}
    assert found[0] == found[1]


@pytest.mark.gpu
def test_what_a_document_holds_is_in_memory_once():
    model = Loaded(small("full").to(DEVICE, torch.bfloat16))
    document = opened(model, 200_000, FULL)
    whole = sum(layer.stored_keys.nbytes + layer.stored_values.nbytes for layer in document.cache.kept)
    free = torch.cuda.mem_get_info()[0]
    forks = [document.fork() for _ in range(8)]
    assert free - torch.cuda.mem_get_info()[0] <= 8 * document.fork_bytes(200_000, 1)
    assert 8 * document.fork_bytes(200_000, 1) < 8 * whole
    before = [layer.stored_keys[:, :, :200_000].clone() for layer in document.cache.kept]
    for one in forks:
        in_turns(begun(one, 4))
    forks[0].truncate(100)
    in_turns(begun(forks[0], 4))
    for layer, keys in zip(document.cache.kept, before, strict=True):
        assert torch.equal(layer.stored_keys[:, :, :200_000], keys)
