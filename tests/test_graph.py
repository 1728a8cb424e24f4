"""Steps as CUDA graphs, with fused kernels, against the same steps launched one by one and against
transformers' own generation.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import ARCHITECTURES, tiny_architecture
from families import VOCABULARY, tiny_family
from test_engine import FULL, Loaded, answer, generated, prompt, soft_capped, sparse, with_sinks

from adamas_cli.engine.events import Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import REHEARSED_FROM, Timeline
from adamas_cli.errors import NotFiniteError

pytestmark = pytest.mark.gpu

SPARSE = sparse(24)
CONTEXT = 400


def on_gpu(name: str, dtype: torch.dtype = torch.float32) -> Loaded:
    return Loaded(tiny_architecture(name).to("cuda", dtype))


def engine_of(loaded: Loaded, settings, **options) -> Timeline:
    return Timeline(loaded, settings, context=CONTEXT, prefill_chunk=64, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [FULL, SPARSE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_gives_the_tokens_of_its_launches(name, settings, dtype):
    loaded, ids = on_gpu(name, dtype), prompt(300)
    graphed, launched = engine_of(loaded, settings), engine_of(loaded, settings, graphs=False)
    expected = answer(launched, ids[:280], ids[280:], tokens=60)
    assert answer(graphed, ids[:280], ids[280:], tokens=60) == expected
    assert graphed.step_reason is None
    assert len(graphed._stepper._captured._graphs) == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_full_attention_equals_generate(name):
    loaded, ids = on_gpu(name), prompt(150)
    expected = generated(tiny_architecture(name), ids)
    assert answer(engine_of(loaded, FULL), ids[:140], ids[140:]) == expected


def test_one_graph_serves_every_question():
    loaded, ids = on_gpu("llama"), prompt(300)
    timeline = engine_of(loaded, SPARSE)
    first = answer(timeline, ids[:250], ids[250:270])
    graphs = {id(graph) for graph in timeline._stepper._captured._graphs.values()}
    ask = lambda question: [  # noqa: E731
        event.id for event in timeline.answer(question, Sampling(), 24, ()) if isinstance(event, Token)
    ]
    other = ask(ids[270:300])
    assert ask(ids[250:270]) == first
    assert {id(graph) for graph in timeline._stepper._captured._graphs.values()} == graphs
    fresh = engine_of(loaded, SPARSE, graphs=False)
    list(fresh.read(ids[:250]))
    assert [e.id for e in fresh.answer(ids[270:300], Sampling(), 24, ()) if isinstance(e, Token)] == other


def test_full_and_sparse_steps_have_graphs_of_their_own():
    loaded, ids = on_gpu("llama"), prompt(300)
    timeline = engine_of(loaded, SPARSE)
    list(timeline.read(ids[:280]))

    def ask(way):
        events = timeline.answer(ids[280:], Sampling(), 24, (), sparse_from=way)
        return [event.id for event in events if isinstance(event, Token)]

    assert ask("never") == generated(tiny_architecture("llama"), ids)
    sparsely = ask("answer")
    assert len(timeline._stepper._captured._graphs) == 2
    assert ask("answer") == sparsely


def test_an_answer_may_outgrow_the_cache():
    loaded, ids = on_gpu("llama"), prompt(150)
    timeline = Timeline(loaded, FULL, context=152)
    found = answer(timeline, ids[:140], ids[140:], tokens=40)
    assert timeline.step_reason is None
    assert found == generated(tiny_architecture("llama"), ids, tokens=40)


@pytest.mark.parametrize("graphs", [True, False])
def test_drawn_answers_repeat_with_their_seed(graphs):
    loaded, ids = on_gpu("llama"), prompt(300)
    timeline = engine_of(loaded, SPARSE, graphs=graphs)
    list(timeline.read(ids[:280]))
    drawn = Sampling(temperature=1.0, top_p=0.9, top_k=50, seed=3)

    def ask(sampling):
        return [e.id for e in timeline.answer(ids[280:], sampling, 24, ()) if isinstance(e, Token)]

    first = ask(drawn)
    assert ask(drawn) == first
    assert ask(dataclasses.replace(drawn, seed=4)) != first


def test_an_answer_ends_at_a_stop_token():
    loaded, ids = on_gpu("llama"), prompt(300)
    timeline = engine_of(loaded, SPARSE)
    tokens = answer(timeline, ids[:280], ids[280:])
    stop = tokens[-1]
    before = tokens[: tokens.index(stop)]
    events = list(timeline.answer(ids[280:], Sampling(), 24, (stop,)))
    assert [event.id for event in events if isinstance(event, Token)] == before
    assert timeline.length == 280


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "minicpm3"])
def test_steps_over_latents_are_captured(name):
    ids = prompt(300) % VOCABULARY
    loaded = Loaded(tiny_family(name).to("cuda"))
    loaded.model.config._experts_implementation = "batched_mm"
    graphed, launched = engine_of(loaded, FULL), engine_of(loaded, FULL, graphs=False)
    found = answer(graphed, ids[:280], ids[280:], tokens=60)
    assert graphed.step_reason is None
    assert found == answer(launched, ids[:280], ids[280:], tokens=60)
    assert found == generated(tiny_family(name), ids, tokens=60)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=5, seed=1)])
def test_an_answer_of_numbers_that_are_not_finite_ends(sampling):
    """Captured sparse steps meet keys that are no numbers, and choose no token outside of the cache."""
    loaded, ids = on_gpu("llama"), prompt(300)
    timeline = engine_of(loaded, SPARSE)
    list(timeline.read(ids[:280]))
    events = timeline.answer(ids[280:], sampling, 24, ())
    next(event for event in events if isinstance(event, Token))
    layer = timeline.cache.kept[2]
    layer.stored_keys.fill_(torch.nan)
    layer.codes.layer.scales.fill_(torch.nan)
    with pytest.raises(NotFiniteError):
        list(events)
    assert timeline.length == 280


@pytest.mark.parametrize("make", [soft_capped, with_sinks])
@pytest.mark.parametrize("settings", [FULL, SPARSE, sparse(512)], ids=["full", "sparse", "all"])
def test_windows_soft_caps_and_sinks_are_captured(make, settings):
    loaded, ids = Loaded(make().to("cuda")), prompt(300)
    # torch's grouped product in float32, which these experts would choose, reads values on the host.
    loaded.model.config._experts_implementation = "batched_mm"
    graphed, launched = engine_of(loaded, settings), engine_of(loaded, settings, graphs=False)
    found = answer(graphed, ids[:280], ids[280:], tokens=60)
    assert graphed.step_reason is None
    assert found == answer(launched, ids[:280], ids[280:], tokens=60)
    if settings is not SPARSE:
        assert found == generated(make(), ids, tokens=60)
    again = [e.id for e in graphed.answer(ids[280:], Sampling(), 60, ()) if isinstance(e, Token)]
    assert again == found  # the rings are unchanged


def test_a_step_that_cannot_be_captured_is_launched():
    said: list[str] = []
    loaded, ids = on_gpu("llama"), prompt(300)
    expected = answer(engine_of(loaded, SPARSE, graphs=False), ids[:280], ids[280:])
    timeline = engine_of(loaded, SPARSE, announce=said.append)
    norm = loaded.model.model.norm
    plain = norm.forward
    # A graph cannot hold a read of a number on the host.
    norm.forward = lambda x: plain(x) if float(x.sum()) < 1e30 else x
    found = answer(timeline, ids[:280], ids[280:])
    assert found == expected
    assert timeline.step_reason.startswith("no CUDA graph")
    assert said.count(timeline.step_reason) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.rand(3, device="cuda")  # the capture's generator would refuse this


def test_a_step_after_a_long_document_is_rehearsed_and_forgotten():
    loaded, ids = on_gpu("llama"), prompt(REHEARSED_FROM + 100)
    settings = {"context": len(ids) + 100, "prefill_chunk": 512}
    timeline = Timeline(loaded, SPARSE, **settings)
    list(timeline.read(ids[:-20]))
    assert len(timeline._stepper._captured._graphs) == 1
    assert timeline.length == len(ids) - 20
    graph = next(iter(timeline._stepper._captured._graphs.values()))
    found = [e.id for e in timeline.answer(ids[-20:], Sampling(), 24, ()) if isinstance(e, Token)]
    assert next(iter(timeline._stepper._captured._graphs.values())) is graph
    assert found == answer(Timeline(loaded, SPARSE, graphs=False, **settings), ids[:-20], ids[-20:])


def test_a_model_is_fused_once_and_still_computes_the_same_elsewhere():
    loaded, ids = on_gpu("qwen2"), torch.from_numpy(prompt(60)).long().unsqueeze(0).cuda()
    with torch.no_grad():
        expected = loaded.model(ids).logits
        list(engine_of(loaded, SPARSE).read(prompt(100)))
        fused = [module.__dict__.get("forward") for module in loaded.model.modules()]
        engine_of(loaded, FULL)
        again = [module.__dict__.get("forward") for module in loaded.model.modules()]
        assert all(one is other for one, other in zip(fused, again, strict=True))
        torch.testing.assert_close(loaded.model(ids).logits, expected, rtol=1e-3, atol=1e-3)


def test_budgets_beyond_the_context_equal_full_attention():
    loaded, ids = on_gpu("llama"), prompt(200)
    whole = sparse(512)
    full, all_tokens = engine_of(loaded, FULL), engine_of(loaded, whole)
    assert answer(all_tokens, ids[:180], ids[180:]) == answer(full, ids[:180], ids[180:])
    assert isinstance(all_tokens.sparse.settings, SparseSettings)
