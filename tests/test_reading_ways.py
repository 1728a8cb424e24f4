"""Sparse reading of documents: what stays dense, what the cache and the store know, and what is reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adamas_kernels.reading import KEY_BLOCK, ReadSettings
from conftest import Run, tiny_architecture
from loaded import Loaded

from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.mode import reading_facts
from adamas_cli.engine import reading as engine_reading
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.errors import ModelUnavailableError
from adamas_cli.lab.eval import readings
from adamas_cli.lab.eval.perplexity import Passage, measure
from adamas_cli.lab.eval.reading import Way, all_ways
from adamas_cli.models.shape import shape_of
from adamas_cli.planning.choice import SPARSE_READING_FROM
from adamas_cli.planning.decision import decide_reading
from adamas_cli.settings import DENSE_LAYERS, DecodingSettings
from adamas_cli.store import document
from adamas_cli.store.chain import Beginning, Chain
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.entries import entries
from adamas_cli.store.keys import sparse_mark
from adamas_cli.store.settings import StoreSettings

CHUNK, LENGTH = 128, 5 * 128
LOOSE = ReadSettings(tolerance=0.5)  # skips all it can in random models, whose heads see everything
DENSE = AttentionSettings("full")
SPARSE = replace(DENSE, read="sparse", reading=LOOSE)
NO_GAIN = "no layer gains by it"
QUESTION = np.arange(12, dtype=np.int32)
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 258, "max_position_embeddings": 4096, "intermediate_size": 96,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def reads_short_texts_sparsely() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_reading, "LEAST_SPARSELY", CHUNK)
        yield


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded(tiny_architecture("llama"))


def text(length: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


def opened(loaded: Loaded, attention: AttentionSettings, context: int = LENGTH) -> Timeline:
    return Timeline(loaded, attention, context=context, prefill_chunk=CHUNK)


def after(loaded: Loaded, attention: AttentionSettings, ids: np.ndarray) -> Timeline:
    timeline = opened(loaded, attention)
    list(timeline.read(ids))
    return timeline


def keys(timeline: Timeline, layer: int) -> torch.Tensor:
    return timeline.cache.kept[layer].stored_keys[:, :, : timeline.length]


def answer(timeline: Timeline, question: np.ndarray = QUESTION) -> list[int]:
    events = timeline.answer(question, Sampling(), 8, ())
    return [event.id for event in events if isinstance(event, Token)]


@pytest.fixture(scope="module")
def dense(loaded: Loaded) -> Timeline:
    return after(loaded, DENSE, text())


@pytest.fixture(scope="module")
def sparse(loaded: Loaded) -> Timeline:
    return after(loaded, SPARSE, text())


def test_the_first_layers_read_densely_and_the_others_leave_out_blocks(dense, sparse):
    for layer in range(DENSE_LAYERS + 1):  # no sparse layer has touched their keys
        assert torch.equal(keys(sparse, layer), keys(dense, layer))
    error = (keys(sparse, DENSE_LAYERS + 1) - keys(dense, DENSE_LAYERS + 1)).abs().amax((0, 1, 3))
    assert error[: 2 * KEY_BLOCK].max() < 1e-4  # nothing can be left out before these
    assert error[2 * CHUNK :].max() > 1e-2
    assert (sparse.read_kind, dense.read_kind) == ("sparse", "dense")
    assert 0 < sparse.computed < 1
    assert dense.computed is None


@pytest.mark.parametrize("attention", [DENSE, replace(SPARSE, read="auto"), SPARSE], ids=lambda one: one.read)
def test_what_is_to_be_read_densely_comes_to_no_sparse_kernel(loaded, attention, monkeypatch):
    def unwanted(*arguments):
        raise AssertionError

    monkeypatch.setattr(FullLayer, "_read_sparsely", unwanted)
    short = engine_reading.LEAST_SPARSELY - 1
    timeline = after(loaded, attention, text(LENGTH if attention.read != "sparse" else short))
    assert timeline.read_kind == "dense"
    assert len(answer(timeline)) == 8


def test_a_question_reads_everything(sparse, monkeypatch):
    """Even one as long as a document."""
    monkeypatch.setattr(FullLayer, "_read_sparsely", None)
    long = text(engine_reading.LEAST_SPARSELY + 1, seed=1)
    assert len(answer(sparse, long)) == 8
    assert sparse.length == LENGTH


def test_a_cache_that_forgot_and_one_that_was_copied_read_on_as_a_new_one(loaded):
    beginning, other = text()[: 2 * CHUNK], text(3 * CHUNK, seed=2)
    new = after(loaded, SPARSE, np.concatenate([beginning, other]))
    marked = opened(loaded, SPARSE, context=CHUNK)  # its room for means grows
    assert all(event.sparsely for event in marked.read(beginning))
    fork, mark = marked.fork(), marked.mark()
    list(marked.read(text(3 * CHUNK, seed=3)))
    truncated = marked.fork()
    marked.rewind(mark)
    truncated.truncate(2 * CHUNK)
    for timeline in (marked, fork, truncated):
        list(timeline.read(other))
        assert all(torch.equal(keys(timeline, layer), keys(new, layer)) for layer in range(4))
        assert timeline.cache.sparse_from == 0
    truncated.truncate(0)
    assert truncated.cache.sparse_from is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 16}, None),
        ({"attn_logit_softcapping": 50.0}, "its attention caps scores"),
        ({"model_type": "gpt_oss"}, "its attention has learned sinks"),
        ({"layer_types": ["full_attention"] + ["sliding_attention"] * 3, "sliding_window": 16}, NO_GAIN),
        ({"kv_lora_rank": 16, "qk_rope_head_dim": 8}, NO_GAIN),
        ({"model_type": "bloom"}, None),
    ],
    ids=["plain", "windows and full", "soft cap", "sinks", "full at first", "latents", "served by nobody"],
)  # fmt: skip
def test_models_that_read_sparsely(changes, why):
    shape = shape_of(LLAMA | changes)
    assert shape.dense_reading == why
    obstacle = shape.obstacle or why
    for device, least in SPARSE_READING_FROM.items():
        decided = [
            decide_reading(DecodingSettings(), tokens, device, obstacle) for tokens in (least - 1, least)
        ]
        assert decided == ["dense", "sparse" if obstacle is None else "dense"]
        assert decide_reading(DecodingSettings(read="dense"), least, device, obstacle) == "dense"
    if obstacle is None:
        assert decide_reading(DecodingSettings(read="sparse"), 1, "cpu", None) == "sparse"
    else:
        with pytest.raises(ModelUnavailableError, match=obstacle):
            decide_reading(DecodingSettings(read="sparse"), 1, "cpu", obstacle)


def test_a_plan_counts_the_means_that_layers_keep(sparse):
    shape = sparse.model.shape
    kept = [
        layer.means.over(*layer._seen(layer.uncoded(), torch.float32), torch.float32, LENGTH)
        for layer in sparse.cache.kept[DENSE_LAYERS:]
    ]
    held = sum(part.nbytes for means in kept for part in vars(means).values())
    assert shape.means_bytes(LENGTH, 4) == held


def test_a_chain_goes_on_from_the_longest_beginning_that_may_serve():
    ids = text(4 * 8)
    chain, dense_only = (Chain(b"link", ids, 8, mark) for mark in (b"mark", None))
    assert chain.keys(2)[:2] == dense_only.keys()[:2]
    assert not {*chain.keys(2)[2:], *chain.keys(0)} & {*dense_only.keys()}
    assert not {*chain.keys(2)[2:]} & {*chain.keys(0)}  # their prefixes were read differently
    for there, sparsely, densely in (
        ([], (0, 0), (0, 0)),
        (chain.keys(2)[:3], (3, 2), (2, 2)),
        (chain.keys(0)[:3], (3, 0), (0, 0)),
        ([*chain.keys(4)[:2], *chain.keys(0)[:3]], (3, 0), (2, 2)),
        ([*chain.keys(4)[:3], *chain.keys(0)[:3]], (3, 3), (3, 3)),
        ([*chain.keys(1), *chain.keys(3)[:3]], (4, 1), (3, 3)),
    ):
        assert chain.longest(set(there).__contains__) == Beginning(*sparsely)
        assert dense_only.longest(set(there).__contains__) == Beginning(*densely)


class Kept:
    """A store, and what successive processes do with it."""

    def __init__(self, loaded: Loaded, root: Path) -> None:
        self.loaded, self.root = loaded, root

    def ask(self, attention: AttentionSettings, ids: np.ndarray) -> tuple[int, Timeline]:
        """The number of tokens found in the store, and the timeline that has read the rest."""
        timeline = opened(self.loaded, attention)
        placement = Model.of(self.loaded).placement
        mark = None if timeline.reading is None else sparse_mark(reading_facts(timeline.reading))
        kept = StoredDocument(
            self.loaded, ids, CHUNK, placement, StoreSettings(), ["a"], pytest.fail, None, mark
        )
        first, *_ = timeline.read(ids, kept)
        kept.finish()
        return first.reused, timeline

    def read(self) -> list[str]:
        return sorted(entry.read for entry in entries(self.root))


@pytest.fixture
def kept(loaded, tmp_path, monkeypatch) -> Kept:
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path / "store"))
    monkeypatch.setattr(document, "block_tokens", lambda chunk, token_bytes: chunk)
    return Kept(loaded, tmp_path / "store")


def test_what_was_read_sparsely_serves_no_dense_reading(kept, dense, sparse):
    reused, cold = kept.ask(SPARSE, text())
    assert (reused, cold.read_kind, kept.read()) == (0, "sparse", ["sparse"])
    reused, warm = kept.ask(SPARSE, text())
    assert (reused, warm.read_kind, warm.computed) == (LENGTH, "sparse", None)
    reused, other = kept.ask(DENSE, text())
    assert (reused, other.read_kind, kept.read()) == (0, "dense", ["dense", "sparse"])
    for layer in range(4):
        assert torch.equal(keys(warm, layer), keys(sparse, layer))
        assert torch.equal(keys(other, layer), keys(dense, layer))


def test_what_was_read_densely_serves_any_and_is_not_mixed_up_with_what_follows(kept, dense):
    kept.ask(DENSE, text()[: 2 * CHUNK])
    reused, mixed = kept.ask(SPARSE, text())
    assert (reused, mixed.cache.sparse_from) == (2 * CHUNK, 2 * CHUNK)
    assert kept.read() == ["dense", f"sparse from {2 * CHUNK:,}"]
    reused, warm = kept.ask(SPARSE, text())
    assert (reused, warm.cache.sparse_from) == (LENGTH, 2 * CHUNK)
    assert all(torch.equal(keys(warm, layer), keys(mixed, layer)) for layer in range(4))
    reused, whole = kept.ask(DENSE, text())
    assert (reused, whole.read_kind) == (2 * CHUNK, "dense")
    assert all(torch.equal(keys(whole, layer), keys(dense, layer)) for layer in range(4))
    reused, served = kept.ask(SPARSE, text())
    assert (reused, served.read_kind) == (LENGTH, "dense")


def test_other_settings_of_sparse_reading_serve_not_each_other(kept):
    kept.ask(SPARSE, text())
    assert kept.ask(replace(SPARSE, reading=ReadSettings(tolerance=0.4)), text())[0] == 0


def test_questions_plans_and_the_list_of_documents_tell_it(
    run_here: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path / "store"))
    monkeypatch.delenv("ADAMAS_NO_DOC_CACHE")
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Keeper {number} is Tobias Wren.\n" for number in range(20)))
    common = [book, "Who keeps it?", "-m", tiny_model, "--dtype", "float32", "--json"]

    def told(*arguments: str | Path) -> dict:
        code, out, err = run_here(*arguments)
        assert code == 0, err
        return json.loads(out)

    asked = told("ask", *common, "--read", "sparse", "-n", "2")
    assert asked["read"] == "sparse"
    assert 0 < asked["blocks_computed"] <= 1
    plans = [told("plan", *common, "--no-calibrate", "--read", read) for read in ("sparse", "dense", "auto")]
    assert [plan["read"] for plan in plans] == ["sparse", "dense", "dense"]
    assert [plan["kept_tokens"] > 0 for plan in plans] == [True, False, False]
    densely = told("ask", *common, "-n", "2")
    assert (densely["read"], densely["blocks_computed"]) == ("dense", None)
    assert densely["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    _, out, _ = run_here("cache", "ls")
    assert sorted(line.split()[2] for line in out.splitlines()[1:]) == ["dense", "sparse"]


def test_rows_of_both_readings_are_beside_full_attention_after_dense_reading(loaded):
    ways = all_ways(["dot"], [48], ["dense"], ["means", "dense"])
    assert [(way.method, way.read) for way in ways] == [
        ("full", "dense"), ("dot", "dense"), ("full", "means"), ("dot", "means"),
    ]  # fmt: skip
    ids = text(LENGTH + 9)
    rows = list(measure(loaded, Passage("t", "", ids, LENGTH, 8), ways, dense_layers=1))
    found = dict(zip(ways, rows, strict=True))
    assert found[Way("full", 0)].kl == 0
    assert found[Way("full", 0, read="means")].kl > 0
    assert found[Way("dot", 48, read="means")].kl > 0
    assert [row.blocks_computed is None for row in rows] == [way.read == "dense" for way in ways]


def test_estimates_by_hand():
    """For four blocks of one repeated key each, which score 0, 2, 0 and 1."""
    keys = torch.tensor([0.0, 2.0, 0.0, 1.0]).repeat_interleave(KEY_BLOCK).view(1, 1, -1, 1)
    queries = torch.ones(1, 1, 8, 1)
    scores = torch.tensor([0.0, 2.0, 0.0, 1.0])
    for estimate in (readings.by_mass, readings.by_means, readings.by_antidiagonals):
        mass = estimate(queries, keys, None, 1.0)[0, 0]
        assert torch.allclose(mass / mass.sum(), scores.softmax(-1), atol=0.02), estimate


def test_the_fewest_blocks_that_hold_the_share_are_chosen():
    mass = torch.tensor([[[0.01, 0.3, 0.04, 0.5, 0.06, 0.02, 0.07]]])
    study = readings.StudyReading(lambda *arguments: mass, share=0.8)
    keys, queries = torch.zeros(1, 1, 7 * KEY_BLOCK, 1), torch.zeros(1, 1, KEY_BLOCK, 1)
    # The first, the last and the one before the last are always read.
    chosen = study._chosen(queries, keys, None, 1.0)
    assert chosen.flatten().tolist() == [True, True, False, True, False, True, True]
