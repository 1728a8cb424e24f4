"""`adamas eval`: how methods choose, what is compared, and the command on a tiny model."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math

import numpy as np
import pytest
import torch
from adamas_kernels import reference
from adamas_kernels.contract import SparseSettings
from conftest import ARCHITECTURES, tiny_architecture
from layer_caches import make_cache
from loaded import Loaded

from adamas_cli.cache.mode import Sparse
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.eval.divergence import diverge, interval
from adamas_cli.lab.eval.methods import METHODS, true_scores
from adamas_cli.lab.eval.perplexity import Passage, measure
from adamas_cli.lab.eval.reading import all_ways
from adamas_cli.lab.eval.study import StudyBackend


def tokens(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, length)


def chosen(name: str, budget: int, length: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions that a method selects for the newest of `length` tokens, and the true scores."""
    torch.manual_seed(0)
    method = METHODS[name]
    settings = method.at(budget)
    cache = make_cache(1, 2, 64, length, length + 9, settings).view()
    queries = torch.randn(1, 6, 1, 64)
    index = reference.select(method.rank(queries, cache, settings), settings.budget, *settings.forced)
    return index, true_scores(queries, cache.keys)


def test_the_oracle_takes_the_highest_scores():
    index, scores = chosen("oracle", 16)
    best = scores[..., :-1].topk(15).indices.sort(-1).values
    assert torch.equal(index[..., :-1], best)
    assert (index[..., -1] == 199).all()


def test_streaming_takes_the_first_and_the_last():
    index, _ = chosen("streaming-llm", 20)
    assert index[0, 3, 0].tolist() == [*range(4), *range(184, 200)]


def test_a_page_is_bounded_by_what_its_extremes_allow():
    torch.manual_seed(0)
    cache = make_cache(1, 2, 64, 100, 120, SparseSettings()).view()
    queries = torch.randn(1, 4, 3, 64)
    bound = METHODS["quest"].rank(queries, cache, SparseSettings())
    assert (bound >= true_scores(queries, cache.keys) - 1e-4).all()
    assert torch.equal(bound[..., 0], bound[..., 15])
    one = make_cache(1, 1, 64, 1, 9, SparseSettings()).view()  # a page of one token: the bound is its score
    query = torch.randn(1, 1, 1, 64)
    found = METHODS["quest"].rank(query, one, SparseSettings())
    torch.testing.assert_close(found, true_scores(query, one.keys))


def test_divergence_by_hand():
    full = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    other = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    found = diverge(full, other, torch.tensor([1, 0]))
    assert found.kl == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0], abs=1e-6)
    assert found.same.tolist() == [0.0, 1.0]
    assert found.perplexity == pytest.approx(4 / 3)
    assert found.perplexity_ratio == pytest.approx(math.sqrt(2 / 3))


def test_the_interval_holds_the_mean_and_repeats():
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    low, high = interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert interval(values) == (low, high)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_the_models_own_and_leave_the_cache_alone(name):
    model = tiny_architecture(name)
    ids = tokens(150)
    settings = AttentionSettings("adamas", SparseSettings(budget=1000))
    timeline = Timeline(Loaded(model), settings, context=200, prefill_chunk=40)
    for _ in timeline.read(ids[:100]):
        pass
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).unsqueeze(0)).logits[0, 100:]
    for sparse in (False, True, False):
        found = timeline.score(ids[100:], sparse=sparse)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert timeline.length == 100


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
def test_the_study_computes_what_the_backends_do(scorer):
    """So that measurements hold for answers."""
    model = tiny_architecture("llama")
    ids = tokens(340)
    settings = SparseSettings(budget=32, scorer=scorer)
    found = []
    for backend in ("cpu", "torch", None):
        timeline = Timeline(
            Loaded(model), AttentionSettings("adamas", settings, backend=backend or "torch"), context=400
        )
        if backend is None:
            timeline.use(Sparse(settings, StudyBackend(METHODS[scorer])))
        for _ in timeline.read(ids[:300]):
            pass
        found.append(timeline.score(ids[300:], sparse=True))
    torch.testing.assert_close(found[2], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_a_row_for_full_attention_and_for_each_method_and_budget():
    loaded = Loaded(tiny_architecture("qwen2"))
    ways = all_ways(["oracle", "dot", "paper"], [16, 400 + 48], ["dense"])
    passage = Passage("t", "", tokens(500), context=400, scored=48)
    rows = list(measure(loaded, passage, ways, dense_layers=1))
    assert [(row.method, row.budget) for row in rows][:3] == [("full", 0), ("oracle", 16), ("oracle", 448)]
    assert len(rows) == 7
    full, *others = rows
    assert full.kl == 0
    assert full.top1 == full.perplexity_ratio == 1
    for row in others:
        assert row.kl_low <= row.kl <= row.kl_high
        assert len(row.recall_by_layer) == 3  # one of four layers stays dense
        if row.budget == 448:
            assert row.kl < 1e-5
            assert row.mass_kept == pytest.approx(1, abs=1e-5)
            assert row.recall == pytest.approx(1)
        else:
            assert row.kl > 1e-5
            assert row.mass_kept <= row.mass_of_best + 1e-6
    oracle = rows[1]  # its own token takes a place, and may not be among the best
    assert oracle.mass_kept == pytest.approx(oracle.mass_of_best, rel=0.05)


def test_the_command_prints_rows(evaluate, tiny_model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged. " * 40, encoding="utf-8")
    some = ["--text", text, "--len", "300,400", "--budgets", "16", "--methods", "dot,quest", "--scored", "20"]
    code, out, err = evaluate("ppl", *some, "-m", tiny_model, "--format", "jsonl")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["context"], row["method"]) for row in rows] == [
        (context, method) for context in (300, 400) for method in ("full", "dot", "quest")
    ]
    assert {row["scored"] for row in rows} == {20}
    assert {row["text_sha256"] for row in rows} == {hashlib.sha256(text.read_bytes()).hexdigest()[:12]}
    for row in rows:
        assert row["perplexity_ratio_low"] <= row["perplexity_ratio"] <= row["perplexity_ratio_high"]
    _, out, _ = evaluate("ppl", *some, "-m", tiny_model, "--format", "csv")
    assert [row["method"] for row in csv.DictReader(io.StringIO(out))] == ["full", "dot", "quest"] * 2
    _, out, _ = evaluate("ppl", *some, "-m", tiny_model)
    assert [len(line.split("|")) for line in out.splitlines()] == [13] * 8


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--methods", "guess"], 2, "choose from oracle, dot"),
        (["--len", "3k"], 2, "has 1,600 tokens"),
        (["--len", "4k"], 4, "the context of"),
        (["--len", "x"], 2, "--len: 'x' is not a length"),
        (["--budgets", "0"], 2, "0 is too small"),
        (["--dense-layers", "4", "--len", "300"], 2, "none is sparse"),
        (["--text", "/nowhere.txt", "--len", "300"], 2, "No such file"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, code, message, evaluate, tiny_model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged. " * 40, encoding="utf-8")
    got, out, err = evaluate("ppl", "--text", text, "-m", tiny_model, *arguments)
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") <= 2
