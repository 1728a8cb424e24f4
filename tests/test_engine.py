"""The engine against transformers' own generation, on three tiny random architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import ARCHITECTURES, tiny_architecture
from loaded import Loaded
from told import raises_told
from transformers import DynamicCache

from adamas_cli.cache.mode import Mode
from adamas_cli.engine import reading
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Done, Prefill, Token
from adamas_cli.engine.interface import NAME
from adamas_cli.engine.model import Model
from adamas_cli.engine.reading import SMALLEST_CHUNK
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.errors import ModelUnavailableError, OutOfMemoryError, UsageError
from adamas_cli.planning.choice import AUTO_MIN_CONTEXT, auto_min_context, budget_for
from adamas_cli.planning.decision import Backends, decide_attention

GREEDY = Sampling()
FULL = AttentionSettings("full")


def sparse(budget: int, **settings) -> AttentionSettings:
    return AttentionSettings("adamas", SparseSettings(budget=budget, **settings))


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


def answer(timeline: Timeline, document: np.ndarray, question: np.ndarray, tokens: int = 24) -> list[int]:
    for _ in timeline.read(document):
        pass
    events = list(timeline.answer(question, GREEDY, tokens, stop_ids=()))
    return [event.id for event in events if isinstance(event, Token)]


def generated(model: torch.nn.Module, ids: np.ndarray, tokens: int = 24) -> list[int]:
    inputs = torch.from_numpy(ids.astype(np.int64)).unsqueeze(0)
    settings = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(inputs, attention_mask=torch.ones_like(inputs), **settings)
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [7, 64, 2048])
def test_full_attention_equals_generate(name, chunk):
    model = tiny_architecture(name)
    ids = prompt(150)
    timeline = Timeline(Loaded(model), FULL, context=200, prefill_chunk=chunk)
    assert answer(timeline, ids[:140], ids[140:]) == generated(model, ids)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
def test_a_budget_of_the_whole_context_equals_full(name, scorer):
    model = tiny_architecture(name)
    ids = prompt(150)
    timeline = Timeline(Loaded(model), sparse(500, scorer=scorer), context=200, prefill_chunk=64)
    assert timeline.attention_kind == "adamas"
    assert answer(timeline, ids[:140], ids[140:]) == generated(model, ids)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_small_budget_is_really_sparse(name):
    model = tiny_architecture(name)
    ids = prompt(400)
    timeline = Timeline(Loaded(model), sparse(16, compensate=False, sinks=0, recents=1), context=500)
    for _ in timeline.read(ids[:390]):
        pass
    events = [e for e in timeline.answer(ids[390:], GREEDY, 8, ()) if isinstance(e, Token)]
    assert [e.attended for e in events] == [400] + [16] * 7  # the first token comes from the prefill
    assert [e.context for e in events] == list(range(400, 408))
    full = Timeline(Loaded(model), FULL, context=500)
    for step in (timeline, full):
        if step is full:
            for _ in step.read(ids[:390]):
                pass
        list(step.answer(ids[390:], GREEDY, 2, ()))  # one step after the prefill, with the same input token
    assert (timeline.logits - full.logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["full", "adamas"])
def test_several_questions_get_the_answers_they_get_alone(name, kind):
    model = tiny_architecture(name)
    settings = FULL if kind == "full" else sparse(32)
    document, questions = prompt(200), [prompt(9, seed) for seed in (1, 2, 3)]
    shared = Timeline(Loaded(model), settings, context=256, prefill_chunk=64)
    for _ in shared.read(document):
        pass
    for question in [*questions, questions[0]]:
        together = [e.id for e in shared.answer(question, GREEDY, 12, ()) if isinstance(e, Token)]
        alone = answer(
            Timeline(Loaded(model), settings, context=256, prefill_chunk=64), document, question, 12
        )
        assert together == alone
        assert shared.length == 200


def test_an_abandoned_answer_leaves_the_cache_where_it_was():
    timeline = Timeline(Loaded(tiny_architecture("gemma3")), sparse(32), context=300)
    first = answer(timeline, prompt(200), prompt(5, 1))
    events = timeline.answer(prompt(5, 2), GREEDY, 12, ())
    while not isinstance(next(events), Token):
        pass
    events.close()
    assert timeline.length == 200
    again = [e.id for e in timeline.answer(prompt(5, 1), GREEDY, 24, ()) if isinstance(e, Token)]
    assert again == first


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_chunked_and_whole_prefill_give_the_same_logits(name):
    model = tiny_architecture(name)
    ids = prompt(333)
    logits = []
    for chunk in (1, 50, 64, 332, 2048):
        timeline = Timeline(Loaded(model), FULL, context=340, prefill_chunk=chunk)
        for _ in timeline.read(ids):
            pass
        logits.append(timeline.logits)
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-4)


def test_a_cache_reserved_too_small_grows():
    model = tiny_architecture("llama")
    ids = prompt(150)
    timeline = Timeline(Loaded(model), sparse(500), context=10, prefill_chunk=40)
    assert answer(timeline, ids[:140], ids[140:]) == generated(model, ids)


def test_prefill_events_count_and_estimate():
    timeline = Timeline(Loaded(tiny_architecture("llama")), FULL, context=300, prefill_chunk=64)
    events = list(timeline.read(prompt(200)))
    assert [e.done for e in events] == [0, 64, 128, 192, 200]
    assert all(e.total == 200 and e.reused == 0 for e in events)
    assert events[0].remaining_seconds is None
    assert all(e.remaining_seconds > 0 for e in events[1:-1])
    assert events[-1].remaining_seconds == 0
    question = [e for e in timeline.answer(prompt(10), GREEDY, 1, ()) if isinstance(e, Prefill)]
    assert [(e.done, e.total, e.reused) for e in question] == [(200, 210, 200), (210, 210, 200)]


def test_stop_tokens_and_length():
    model = tiny_architecture("llama")
    ids = prompt(60)
    expected = generated(model, ids, 12)
    timeline = Timeline(Loaded(model), FULL, context=100)
    done = list(timeline.answer(ids, GREEDY, 12, ()))[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.completion_tokens, done.prompt_tokens) == ("length", 12, 60)
    stop = expected[5]
    events = list(timeline.answer(ids, GREEDY, 12, {stop}))
    ids_before_stop = [e.id for e in events if isinstance(e, Token)]
    assert ids_before_stop == expected[: expected.index(stop)]
    assert events[-1].finish_reason == "stop"


def test_sampling_repeats_with_its_seed():
    timeline = Timeline(Loaded(tiny_architecture("llama")), FULL, context=100)

    def draw(**sampling) -> list[int]:
        return [
            e.id for e in timeline.answer(prompt(20), Sampling(**sampling), 20, ()) if isinstance(e, Token)
        ]

    assert draw(temperature=1.0, seed=7) == draw(temperature=1.0, seed=7)
    assert draw(temperature=1.0, seed=7) != draw(temperature=1.0, seed=8)
    greedy = draw()
    assert draw(temperature=1.0, top_k=1, seed=1) == greedy
    assert draw(temperature=1.0, top_p=1e-6, seed=1) == greedy
    assert draw(temperature=1.0, min_p=1.0, seed=1) == greedy


class ShortOfMemory(torch.nn.Module):
    """A model that runs out of memory, in the middle of its layers, on steps of more than `most` tokens."""

    def __init__(self, model: torch.nn.Module, most: int) -> None:
        super().__init__()
        hook = model.model.layers[1].register_forward_pre_hook(self.check, with_kwargs=True)
        self.most, self.hook = most, hook

    def check(self, module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] > self.most:
            raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_out_of_memory_halves_the_chunk_and_goes_on(name):
    model = tiny_architecture(name)
    ids = prompt(600)
    expected = generated(model, ids)
    ShortOfMemory(model, most=130)
    timeline = Timeline(Loaded(model), FULL, context=700, prefill_chunk=512)
    events = list(timeline.read(ids[:590]))
    assert [e.done for e in events] == [0, 128, 256, 384, 512, 590]
    assert events[-1].chunk == 128
    assert [e.id for e in timeline.answer(ids[590:], GREEDY, 24, ()) if isinstance(e, Token)] == expected


def test_out_of_memory_with_the_smallest_chunk_is_said():
    model = tiny_architecture("llama")
    ShortOfMemory(model, most=SMALLEST_CHUNK - 1)
    timeline = Timeline(Loaded(model), FULL, context=700)
    with pytest.raises(OutOfMemoryError, match="out of memory on cpu with 0 tokens in the cache"):
        list(timeline.read(prompt(300)))


def test_other_runtime_errors_are_not_swallowed():
    model = tiny_architecture("llama")
    timeline = Timeline(Loaded(model), FULL, context=700)
    with pytest.raises(IndexError):
        list(timeline.read(np.array([10**6])))


def test_a_model_is_told_once_and_still_attends_as_ever_elsewhere():
    """Calls outside the passes of a timeline, also between two of its events and chunk by chunk."""
    model, ids = tiny_architecture("gemma3"), torch.from_numpy(prompt(90)).long().unsqueeze(0)
    with torch.no_grad():
        expected = model(ids).logits
        events = Timeline(Loaded(model), FULL, context=100, prefill_chunk=16).read(prompt(50))
        next(events)
        assert model.config._attn_implementation == NAME
        torch.testing.assert_close(model(ids).logits, expected)
        next(events)
        cache = DynamicCache(config=model.config)
        parts = [model(part, past_key_values=cache).logits for part in ids.split(30, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)
    assert Model.of(Loaded(model)) is Model.of(Loaded(model))


def test_auto_is_full_while_the_context_is_short(monkeypatch):
    monkeypatch.setitem(AUTO_MIN_CONTEXT, "torch", 100)
    model = tiny_architecture("llama")
    settings = AttentionSettings(backend="torch")
    assert Timeline(Loaded(model), settings, context=99).attention_kind == "full"
    assert Timeline(Loaded(model), settings, context=100).attention_kind == "adamas"


def test_auto_on_a_gpu_goes_by_what_full_attention_would_read():
    grouped, whole = 2 * 8 * 128 * 2, 2 * 32 * 128 * 2  # bytes per token: 8 KV heads, and 32
    assert auto_min_context("triton", 128, grouped) < 16384 < auto_min_context("triton", 768, grouped) < 32768
    assert auto_min_context("triton", 768, whole) < 32768
    assert 32768 < auto_min_context("triton", 1472, grouped) < 131072
    assert auto_min_context("cpu", 128, grouped) == auto_min_context("cpu", 4096, whole)


def test_the_backend_is_the_fastest_that_runs_and_says_why_not_triton():
    model = tiny_architecture("llama")
    timeline = Timeline(Loaded(model), sparse(16), context=100)
    assert timeline.sparse.backend.name == "cpu"
    assert timeline.backend_reason == (
        "the cpu backend computes sparse attention (no triton: the model is on cpu, not on a GPU)"
    )
    with raises_told(UsageError, match=r"the triton backend cannot run: the model is on cpu.*--backend auto"):
        Timeline(Loaded(model), AttentionSettings("adamas", backend="triton"), context=100)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
def test_backends_give_the_same_answer(name, scorer):
    """Also a second question, and one that outgrows the reserved room."""
    model = tiny_architecture(name)
    ids = prompt(400)
    answers = []
    for backend in ("torch", "cpu"):
        settings = AttentionSettings("adamas", SparseSettings(budget=64, scorer=scorer), backend=backend)
        timeline = Timeline(Loaded(model), settings, context=405, prefill_chunk=100)
        first = answer(timeline, ids[:390], ids[390:])
        second = [e.id for e in timeline.answer(ids[:7], GREEDY, 24, ()) if isinstance(e, Token)]
        again = [e.id for e in timeline.answer(ids[390:], GREEDY, 24, ()) if isinstance(e, Token)]
        assert again == first
        answers.append((first, second))
    assert answers[0] == answers[1]


def soft_capped() -> torch.nn.Module:
    """A Gemma 2 with alternating windows and full layers."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16}
    config = Gemma2Config(**shape, **heads, query_pre_attn_scalar=1, attn_logit_softcapping=2.0)
    config._attn_implementation = "eager"  # torch's kernel has no soft caps
    return spread(Gemma2ForCausalLM(config))


def with_sinks() -> torch.nn.Module:
    """A gpt-oss with alternating windows and full layers."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "eos_token_id": None, "pad_token_id": None}
    model = spread(GptOssForCausalLM(GptOssConfig(**shape, **heads, **experts)))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks, std=2)
    return model


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights large enough that attention is far from uniform."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def unserved() -> torch.nn.Module:
    """A model whose attention bypasses transformers' interface."""
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8, "n_positions": 4096, "vocab_size": 258}
    return GPTJForCausalLM(GPTJConfig(**sizes, bos_token_id=None, eos_token_id=256)).eval()


def test_models_with_other_attention_are_refused_by_name_but_run_with_full():
    model = unserved()
    with raises_told(ModelUnavailableError, match=r"transformers' interface\. Use --attn full"):
        Timeline(Loaded(model), sparse(64), context=100)
    ids = prompt(90)
    timeline = Timeline(Loaded(model), AttentionSettings("auto"), context=10**6, prefill_chunk=32)
    assert timeline.attention_kind == "full"
    first = answer(timeline, ids[:80], ids[80:], 10)
    assert first == generated(model, ids, 10)
    again = [e.id for e in timeline.answer(ids[80:], GREEDY, 10, ()) if isinstance(e, Token)]
    assert again == first


@pytest.mark.parametrize("make", [soft_capped, with_sinks])
def test_soft_caps_and_learned_sinks_answer_as_generate_does(make):
    model, ids = make(), prompt(90)
    expected = generated(model, ids, 10)  # before the model's attention is the engine's
    for settings in (FULL, sparse(256)):
        timeline = Timeline(Loaded(model), settings, context=120, prefill_chunk=32)
        assert answer(timeline, ids[:80], ids[80:], 10) == expected
        again = [e.id for e in timeline.answer(ids[80:], GREEDY, 10, ()) if isinstance(e, Token)]
        assert again == expected
    assert timeline.attention_kind == "adamas"
    assert timeline.cache.kinds == {"full_attention", "sliding_attention"}
    assert generated(model, ids, 10) == expected  # and when others call it


def test_models_whose_layers_all_have_windows_attend_fully_and_say_so():
    from transformers import MistralConfig, MistralForCausalLM

    common = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    common |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    windowed = Loaded(MistralForCausalLM(MistralConfig(**common, sliding_window=16)).eval())
    timeline = Timeline(windowed, AttentionSettings("auto"), context=4000)
    assert timeline.attention_kind == "full"
    assert "every layer attends to a window" in timeline.backend_reason
    with raises_told(ModelUnavailableError, match="every layer attends to a window"):
        Timeline(windowed, sparse(64), context=100)
    wide = Loaded(MistralForCausalLM(MistralConfig(**common, sliding_window=4096)).eval())
    assert Timeline(wide, sparse(64), context=100).cache.kinds == {"full_attention"}


def test_the_default_budget_grows_with_the_context():
    assert [budget_for(n) for n in (0, 4096, 4097, 16384, 30720, 131072)] == [256, 256, 320, 512, 704, 1472]
    for given, expected in ((False, 128), (True, 576)):
        settings = AttentionSettings("adamas", backend="torch", budget_by_context=given)
        backends = Backends("cpu", {"torch": None})
        decided = decide_attention(settings.asked(), 20_000, backends, obstacle=None, token_bytes=512)
        decoding = settings.resolve(decided)
        assert decoding.settings.budget == expected


def coded(timeline: Timeline) -> list[torch.Tensor]:
    """The codes of each sparse layer's tokens."""
    layers = [layer.codes for layer in timeline.cache.kept if layer.coded and layer.codes.layer is not None]
    return [codes.layer.codes[:, :, : codes.encoded].clone() for codes in layers]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_codes_are_those_of_the_document_whatever_is_asked(name):
    model = tiny_architecture(name)
    timeline = Timeline(Loaded(model), sparse(32), context=900, prefill_chunk=64)
    for _ in timeline.read(prompt(200)):
        pass
    before = coded(timeline)
    assert before
    assert all(codes.shape[2] == 200 for codes in before)
    # A question longer than the document gets its own codebook, which is dropped with it.
    for question in (prompt(5, seed=1), prompt(500, seed=2)):
        for _ in timeline.answer(question, GREEDY, 3, stop_ids=()):
            pass
        for event in timeline.answer(prompt(5, seed=1), GREEDY, 1, stop_ids=()):
            if isinstance(event, Token):
                assert all(
                    torch.equal(a, b[:, :, :200]) for a, b in zip(before, coded(timeline), strict=True)
                )


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("most", [2048, 100])
def test_codes_made_in_the_pass_are_those_made_behind_it(name, most, monkeypatch):
    """Also if memory runs out in the last chunk, which then is not the last one."""
    found = []
    for in_the_pass in (True, False):
        model = tiny_architecture(name)
        ShortOfMemory(model, most)
        timeline = Timeline(Loaded(model), sparse(32), context=900, prefill_chunk=256)
        with monkeypatch.context() as patch:  # one way only
            if in_the_pass:
                patch.setattr(timeline.cache, "encode", lambda: None)
            else:
                patch.setattr(reading, "Mode", lambda encodes, read: Mode(read=read))
            list(timeline.read(prompt(700)))
        found.append(coded(timeline))
    assert found[0]
    assert all(codes.shape[2] == 700 for codes in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_codebooks_follow_a_document_that_grows():
    model = tiny_architecture("llama")
    timeline = Timeline(Loaded(model), sparse(32), context=900, prefill_chunk=64)
    layer = timeline.cache.layers[-1]
    fitted = []
    for part in (100, 50, 50, 300):
        for _ in timeline.read(prompt(part, seed=part)):
            pass
        fitted.append((layer.codes.fitted, layer.codes.encoded, layer.length))
    assert fitted == [(100, 100, 100), (100, 150, 150), (200, 200, 200), (500, 500, 500)]
