"""Drafts from the text: where they come from, and that answers are the same as without them."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch
from adamas_kernels.contract import LARGEST_STEP, SparseSettings
from adamas_kernels.torch.backend import TorchBackend
from conftest import tiny_architecture
from loaded import Loaded
from torch import Tensor, nn

from adamas_cli.cache.mode import Mode
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.checking import Checked, CheckedAhead
from adamas_cli.engine.decoding import Alone
from adamas_cli.engine.drafts import ORDER, SIZES, Costs, Drafter, TextIndex
from adamas_cli.engine.events import Token
from adamas_cli.engine.sampler import Sampler
from adamas_cli.engine.sampling import GuidedSampling, Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models.packed import pack_model
from adamas_cli.progress import Silent

CONTEXT, ANSWER, DRAWN = 300, 48, 3000
GREEDY = Sampling()
FULL = AttentionSettings("full")
SPARSE = AttentionSettings("adamas", SparseSettings(budget=48), dense_layers=1)


def numbers(count: int, seed: int = 0, below: int = 250) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, count).astype(np.int32)


def longest_repetition(ids: list[int]) -> tuple[int, int]:
    """The place after the earlier tokens that share most with the end, and how many, by trying all."""
    best = 0, 0
    for place in range(1, len(ids)):
        shared = 0
        while shared < place and ids[place - 1 - shared] == ids[-1 - shared]:
            shared += 1
        if shared >= max(best[1], ORDER):
            best = place, shared
    return best


@pytest.mark.parametrize("known", [0, 2, 3, 400])
def test_the_index_finds_the_longest_repetition(known):
    ids = numbers(500, below=4 if known else 7).tolist()
    index = TextIndex(np.array(ids[:known], np.int32))
    for end in range(known, len(ids)):
        index.append(ids[end])
        place, shared = index.repeated()
        _, most = longest_repetition(ids[: end + 1])
        assert (shared > 0) == (most > 0)
        if shared:
            assert ids[place - shared : place] == ids[end + 1 - shared : end + 1]
    assert len(index) == 500
    assert index.behind(497, 7) == [*ids[497:], *ids[497:], ids[497]]


def test_of_few_places_the_one_that_shares_most_is_found():
    end = [5, 1, 2, 3]
    ids = [9, *end, 7, 8, 1, 2, 3, 6, *end]
    assert TextIndex(np.array(ids, np.int32)).repeated() == (5, 4)


def sizes_of(drafter: Drafter, tokens: list[int]) -> list[int]:
    """How many tokens are proposed after each of these."""
    sizes = []
    for token in tokens:
        drafter.say(token)
        sizes.append(len(drafter.propose(LARGEST_STEP, ANSWER)))
    return sizes


def test_drafts_are_as_long_as_pays():
    text = numbers(300, below=10_000)
    drafter = Drafter(text, Costs())
    assert drafter.propose(LARGEST_STEP, ANSWER) == []
    sizes = sizes_of(drafter, text[100:200].tolist())
    assert sizes[: ORDER - 1] == [0] * (ORDER - 1)
    assert sizes[-1] == LARGEST_STEP - 1
    assert drafter.propose(LARGEST_STEP, ANSWER) == text[200 : 200 + LARGEST_STEP - 1].tolist()
    assert len(drafter.propose(SIZES[0], ANSWER)) == SIZES[0] - 1
    assert drafter.propose(SIZES[0] - 1, ANSWER) == []
    for _ in range(3):  # passes turn out as slow as this many steps
        for size in (1, *SIZES):
            drafter.costs.took(size, 0.1 * size)
    assert drafter.costs.of(SIZES[0]) == pytest.approx(SIZES[0])
    assert drafter.propose(LARGEST_STEP, ANSWER) == []


@pytest.mark.parametrize("left_out", [[50, 51], [50], []])
def test_an_answer_that_differs_a_little_is_found_again_at_the_next_token(left_out):
    """As where lines are joined, after fewer tokens than a look-up would need. left_out: tokens of the text
    instead of which the answer has another one.
    """
    drafter = Drafter(np.array([*range(1, 10), *left_out, *range(52, 80), 0], np.int32), Costs(), always=True)
    for token in [*range(1, 10), 90]:
        drafter.say(token)
    assert drafter.propose(4, ANSWER) == []
    drafter.say(52)
    assert drafter.propose(4, ANSWER) == [53, 54, 55]


def test_where_repetitions_mislead_nothing_is_proposed_after_a_while():
    phrase, other = numbers(ORDER, 1, 1000).tolist(), (numbers(2500, 2, 1000) + 1000).tolist()
    parts = [[*phrase, *other[at : at + 5]] for at in range(0, len(other), 5)]
    known, rest = np.array(parts[:300]).ravel(), np.array(parts[300:]).ravel().tolist()
    drafter = Drafter(known, Costs())
    assert not any(sizes_of(drafter, rest)[-400:])
    always = Drafter(known, Costs(), always=True)
    assert any(sizes_of(always, rest)[-400:])


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """Full attention, and windows as long as a pass."""
    return packed_models()


def packed_models() -> dict[str, nn.Module]:
    """A model with full attention, and one with windows, packed as on a CPU."""
    found = {}
    for name in ("qwen2", "gemma3"):
        found[name] = tiny_architecture(name).requires_grad_(False)
        pack_model(found[name], Silent())
    return found


def opened(model: nn.Module, attention: AttentionSettings, drafts: str) -> Timeline:
    """A timeline that has read a text; random models answer it by repeating themselves."""
    timeline = Timeline(Loaded(model), attention, context=900, drafts=drafts, counts=True)
    list(timeline.read(numbers(CONTEXT)))
    return timeline


def answer(timeline: Timeline, sampling: Sampling = GREEDY, stop_ids: tuple[int, ...] = (), **options):
    """An answer's tokens and its `Done`."""
    *events, done = timeline.answer(numbers(9, 1), sampling, ANSWER, stop_ids, **options)
    return [event.id for event in events if isinstance(event, Token)], done


@pytest.mark.parametrize(
    ("name", "attention", "temperature"),
    [("qwen2", FULL, 0.0), ("qwen2", SPARSE, 0.0), ("qwen2", SPARSE, 0.3), ("gemma3", SPARSE, 0.0)],
)
def test_answers_are_those_without_drafts(models, name, attention, temperature):
    sampling = Sampling(temperature=temperature, seed=3)
    one, other = opened(models[name], attention, "off"), opened(models[name], attention, "text")
    expected, plain = answer(one, sampling, keep=True)
    found, done = answer(other, sampling, keep=True)
    assert found == expected
    assert done.drafted.proposed >= done.drafted.accepted > 0
    assert done.drafted.proposed > done.drafted.accepted or name == "gemma3"  # whose repetitions are short
    assert done.drafted.passes + done.drafted.accepted == plain.drafted.passes == ANSWER - 1
    assert (other.length, other.answered) == (one.length, one.answered)
    assert np.array_equal(other.ids, one.ids)
    full = [
        (a, b) for a, b in zip(one.cache.kept, other.cache.kept, strict=True) if a.kind == "full_attention"
    ]
    for layer, its in full:
        assert torch.equal(layer.value_sum, its.value_sum)
        assert torch.equal(layer.stored_keys[:, :, : one.length], its.stored_keys[:, :, : one.length])
    if attention is SPARSE:
        np.testing.assert_allclose(other.attended(), one.attended(), rtol=1e-4, atol=1e-4)
    assert answer(other, sampling)[0] == answer(one, sampling)[0]


@pytest.mark.parametrize("drafts", ["off", "text"])
def test_answers_that_end_early_leave_what_was_said(models, drafts):
    whole, _ = answer(opened(models["qwen2"], FULL, "off"))
    timeline = opened(models["qwen2"], FULL, drafts)
    prompt = timeline.length + 9
    with closing(timeline.answer(numbers(9, 1), GREEDY, ANSWER, (), keep=True)) as events:
        for event in events:
            if isinstance(event, Token) and event.index == 31:
                break
    assert timeline.length == prompt + 31
    assert timeline.ids[prompt:].tolist() == whole[:31]
    timeline.truncate(CONTEXT)
    stop = max(set(whole), key=whole.index)  # the last token that is new
    found, done = answer(timeline, stop_ids=(stop,), keep=True)
    assert (found, done.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert timeline.length == prompt + len(found)


def test_a_thought_is_ended_within_a_draft(models):
    def steer(token: int) -> list[int]:
        said.append(token)
        return [7, 8] if len(said) == 30 else []

    found = []
    for drafts in ("off", "text"):
        said: list[int] = []
        timeline = opened(models["qwen2"], FULL, drafts)
        *events, _ = timeline.answer(numbers(9, 1), GuidedSampling(top=2), ANSWER, stop_ids=(), steer=steer)
        found.append([(event.id, event.likelihood) for event in events if isinstance(event, Token)])
    assert found[0] == found[1]
    assert found[0][30:32] == [(7, None), (8, None)]
    assert all(likelihood is not None for _, likelihood in found[0][:30] + found[0][32:])


def test_log_probabilities_are_those_of_the_raw_logits():
    model = tiny_architecture("qwen2").requires_grad_(False)  # float32: the model's own forward is the truth

    def steer(token: int) -> list[int]:
        return [7, 8] if len(timeline.answered) == 4 else []

    timeline = opened(model, FULL, "off")
    sampling = GuidedSampling(temperature=0.7, top_k=4, seed=3, top=3)
    tokens = [
        event
        for event in timeline.answer(numbers(9, 1), sampling, 12, (), steer=steer)
        if isinstance(event, Token)
    ]
    assert [token.index for token in tokens if token.likelihood is None] == [4, 5]
    prompt = [*numbers(CONTEXT), *numbers(9, 1)]
    ids = torch.tensor([[*prompt, *(token.id for token in tokens)]])
    truth = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    for token, logprobs in zip(tokens, truth, strict=True):
        if (told := token.likelihood) is not None:
            expected, order = logprobs.topk(3)
            assert told.logprob == pytest.approx(float(logprobs[token.id]), abs=1e-4)
            assert [value for _, value in told.likeliest] == pytest.approx(expected.tolist(), abs=1e-4)
            assert [other for other, _ in told.likeliest] == order.tolist()


class Chain:
    """Replaces a model's steps and cache: the logits after a token are the same at every position."""

    on_gpu = False

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.length, self.taken_back = logits, 0, 0

    def most(self, mode: Mode) -> int:
        return LARGEST_STEP

    def steps(self, tokens: Tensor, mode: Mode) -> tuple[Tensor, None]:
        self.length += len(tokens)
        return self.logits[tokens], None

    def get_seq_length(self) -> int:
        return self.length

    def before_step(self) -> list[int]:
        return []

    def retract(self, tokens: int, before: list[int]) -> None:
        self.retract_in_place(tokens)

    def retract_in_place(self, tokens: int) -> None:
        self.taken_back += self.length - tokens
        self.length = tokens


@pytest.mark.parametrize("way", [Checked, CheckedAhead])
def test_drawn_tokens_are_distributed_as_the_model_says(way):
    """Each after its predecessor, drafted or not: chi-square with 12 degrees of freedom."""
    torch.manual_seed(0)
    chain, sampler = Chain(2 * torch.randn(4, 4)), Sampler(Sampling(0.8, seed=5), torch.device("cpu"))
    drafter = Drafter(numbers(200, below=4), Costs(), always=True)
    saying = way(Alone(chain, Mode()), chain, Mode(), sampler, drafter, chain.logits[0])
    said = []
    for _ in range(DRAWN):
        said.append(saying.next(LARGEST_STEP))
        saying.feed(LARGEST_STEP)
    assert saying.drafted.accepted > DRAWN / 4
    assert chain.taken_back > DRAWN / 4
    seen = np.zeros((4, 4))
    np.add.at(seen, (said[:-1], said[1:]), 1)
    expected = (chain.logits / 0.8).softmax(-1).numpy() * seen.sum(1, keepdims=True)
    assert ((seen - expected) ** 2 / expected).sum() < 32.9  # exceeded once in a thousand runs


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_pass_of_the_forward_gives_back_what_was_wrong(name):
    """A backend may compute a pass's full attention; its layers give tokens back as compiled steps do."""
    timeline = Timeline(Loaded(tiny_architecture(name)), FULL, context=400)
    list(timeline.read(numbers(100)))
    mode, new = Mode(answers=True, dense=TorchBackend()), torch.from_numpy(numbers(12, 1)).long()
    start, cache, forward = timeline.mark(), timeline.cache, timeline.model.forward
    cache.begin_answer(mode)
    expected = torch.stack([forward(token, cache, mode) for token in new.split(1)])
    timeline.rewind(start)
    before = cache.before_step()
    found = forward(torch.cat((new[:5], new[:5])), cache, mode, every=True)
    torch.testing.assert_close(found[:5], expected[:5], rtol=1e-4, atol=1e-4)
    cache.retract(105, before)
    assert cache.extent.lengths.tolist() == [105]
    found = forward(new[5:], cache, mode, every=True)
    torch.testing.assert_close(found, expected[5:], rtol=1e-4, atol=1e-4)


def test_why_there_are_no_drafts_is_said(models):
    assert opened(models["qwen2"], FULL, "auto").draft_reason is None
    assert opened(tiny_architecture("qwen2"), FULL, "off").draft_reason is None
    timeline = opened(tiny_architecture("qwen2"), FULL, "text")
    assert "one token at a time" in (timeline.draft_reason or "")
    assert answer(timeline)[1].drafted.proposed == 0
