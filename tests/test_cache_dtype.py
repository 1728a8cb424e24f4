"""`--cache-dtype`: a low-bit cache through reading, answering, rewinding and the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import tiny_architecture
from loaded import Loaded

from adamas_cli.cache.full import FullLayer
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.errors import UsageError
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.models.shape import shape_of_config
from adamas_cli.planning.decision import check_cache
from adamas_cli.store import document
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.entries import entries
from adamas_cli.store.settings import StoreSettings

CHUNK, BLOCK, TOKENS = 64, 64, 160
IDS = np.random.default_rng(0).integers(0, 256, TOKENS).astype(np.int32)
MORE = np.arange(4, dtype=np.int32)
SMALL = ["16", "int8", "int4"]
# KL in nats to the distributions with a float32 cache, for a random model, whose keys are as good as noise.
CLOSE = {"16": 1e-6, "int8": 1e-5, "int4": 1e-3}


@pytest.fixture(scope="module")
def model() -> Loaded:
    """Heads of 32, in layers with a window and without."""
    return Loaded(tiny_architecture("gemma3"), ModelFiles("tiny", Path(), "a" * 64), torch.device("cpu"))


def timeline_of(model: Loaded, kept: str, kind: str = "full") -> Timeline:
    settings = AttentionSettings(kind, SparseSettings(budget=48), backend="torch", dense_layers=0)
    settings = replace(settings, cache_dtype=kept)
    return Timeline(model, settings, context=TOKENS + 100, prefill_chunk=CHUNK)


def read(model: Loaded, kept: str, kind: str = "full") -> Timeline:
    timeline = timeline_of(model, kept, kind)
    list(timeline.read(IDS))
    return timeline


def full_layers(timeline: Timeline) -> list[FullLayer]:
    return [layer for layer in timeline.cache.kept if isinstance(layer, FullLayer)]


@pytest.mark.parametrize(
    ("kept", "kind"), [("16", "full"), ("int8", "full"), ("int4", "full"), ("int4", "adamas")]
)
def test_distributions_stay_close_in_fewer_bytes(model, kept, kind):
    timeline, whole = read(model, kept, kind), read(model, "auto", kind)
    scores = [one.score(MORE, sparse=kind == "adamas").double().log_softmax(-1) for one in (whole, timeline)]
    divergence = (scores[0].exp() * (scores[0] - scores[1])).sum(-1).mean()
    assert 0 < divergence < CLOSE[kept]
    small, large = full_layers(timeline)[0], full_layers(whole)[0]
    rows = [
        sum(x.shape[3] * x.element_size() for x in (it.stored_keys, it.stored_values))
        for it in (small, large)
    ]
    shape = next(it for it in shape_of_config(model.model.config).by_layer if it.kind == small.kind)
    assert [shape.kv_heads * size for size in rows] == [shape.token_bytes(4, kept), shape.token_bytes(4)]


@pytest.mark.parametrize("kept", SMALL)
def test_what_was_forgotten_leaves_no_trace(model, kept):
    timeline = read(model, kept, "adamas")
    fresh = timeline.score(MORE, sparse=True)
    mark = timeline.mark()
    layer = full_layers(timeline)[0]
    total = layer.value_sum.clone()
    list(timeline.answer(MORE, Sampling(), 2, stop_ids=()))
    timeline.rewind(mark)
    assert torch.equal(layer.value_sum, total)
    other = timeline.fork()
    assert torch.equal(timeline.score(MORE, sparse=True), fresh)
    assert torch.equal(other.score(MORE, sparse=True), fresh)
    layer.truncate(TOKENS // 2)
    expected = timeline_of(model, kept)
    list(expected.read(IDS[: TOKENS // 2]))
    again = full_layers(expected)[0]
    torch.testing.assert_close(layer.value_sum, again.value_sum, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kept", ["int8", "int4"])
def test_documents_are_kept_in_these_bits_and_found_by_them(model, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path))
    monkeypatch.setattr(document, "block_tokens", lambda chunk, token_bytes: BLOCK)

    def run(kept: str) -> tuple[int, torch.Tensor]:
        timeline = timeline_of(model, kept, "adamas")
        place = Model.of(model).placement
        # A store of its own in 8 bits leaves low-bit rows as they are.
        stored = StoredDocument(
            model, IDS, CHUNK, place, StoreSettings(dtype="int8"), ["a"], pytest.fail, cached=kept
        )
        first = next(events := timeline.read(IDS, stored))
        list(events)
        stored.finish()
        return first.reused, timeline.score(MORE, sparse=True)

    (cold, scores), (warm, restored), (other, _) = run(kept), run(kept), run("auto")
    assert (cold, warm, other) == (0, TOKENS, 0)
    assert torch.equal(scores, restored)
    listed = {entry.dtype for entry in entries(document.documents_directory())}
    assert listed == {kept, "int8"}  # the other one is listed with the store's own format


def test_sixteen_bits_are_the_default_where_activations_are_rounded_to_bytes(model):
    rounding = replace(model, in_bytes=True)
    (default, asked), exact = (read(rounding, kept) for kept in ("auto", "16")), read(model, "auto")
    assert default.cache_dtype == "16"
    assert exact.cache_dtype == "auto"
    kept, computed = ({layer.stored_keys.dtype for layer in full_layers(it)} for it in (default, exact))
    assert (kept, computed) == ({torch.float16}, {torch.float32})
    assert torch.equal(default.score(MORE, sparse=False), asked.score(MORE, sparse=False))


def test_heads_that_are_not_whole_groups_stay_as_they_are():
    llama = Loaded(tiny_architecture("llama"), ModelFiles("tiny", Path(), "b" * 64), torch.device("cpu"))
    timeline = read(llama, "int8")
    assert {layer.stored_keys.dtype for layer in full_layers(timeline)} == {torch.float32}
    shape = shape_of_config(llama.model.config)
    assert shape.cache_bytes(10, 4, "int8") == shape.cache_bytes(10, 4)


def test_other_devices_refuse_it():
    for kept, device, reason in (("auto", "mps", "not there"), ("int8", "cpu", None), ("int8", "cuda", None)):
        check_cache(kept, device, reason)
    with pytest.raises(UsageError, match="the model is on mps"):
        check_cache("int8", "mps")
    with pytest.raises(UsageError, match=r"on cuda \(too old\)"):
        check_cache("int8", "cuda", "too old")
