"""Keys and values in host memory: the same tokens as with all of them on the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from adamas_kernels.reading import ReadSettings
from adamas_kernels.torch.backend import TorchBackend
from conftest import tiny_architecture
from loaded import Loaded

from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.hosted import HostBuffer
from adamas_cli.cache.placement import Allocated, Hosted
from adamas_cli.cache.staging import Staging
from adamas_cli.engine import model as engine_model
from adamas_cli.engine import placing
from adamas_cli.engine import timeline as engine_timeline
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.store import document
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.settings import StoreSettings

CPU = torch.device("cpu")
CHUNK, BLOCK = 180, 180
IDS = np.random.default_rng(0).integers(0, 256, 520).astype(np.int32)
QUESTION = np.arange(3, dtype=np.int32)
SETTINGS = AttentionSettings(
    "adamas", SparseSettings(budget=48), backend="torch", dense_layers=1, reading=ReadSettings(0.05)
)


@pytest.fixture(scope="module")
def loaded():
    """A model on a CPU whose cache is laid out as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_model, "placement_on", lambda device: Allocated(tokens_first=True))
        one = Loaded(tiny_architecture("llama"), ModelFiles("tiny", Path(), "a" * 64), CPU)
        Model.of(one)
        return one


@pytest.fixture
def hosted(monkeypatch):
    """Makes timelines in host memory, which on a CPU is the same kind."""

    def make(loaded, settings, **options) -> Timeline:
        with monkeypatch.context() as patch:
            patch.setattr(engine_timeline, "host_placement", lambda *facts: Hosted(Staging(CPU)))
            return timeline_of(loaded, settings, **options)

    return make


def timeline_of(loaded, settings=SETTINGS, context=600) -> Timeline:
    timeline = Timeline(loaded, settings, context=context, prefill_chunk=CHUNK)
    timeline._stepper._compiled = None  # a GPU has no such steps
    return timeline


def said(timeline: Timeline, way: str = "answer", count: int = 3) -> list[int]:
    events = timeline.answer(QUESTION, Sampling(), count, (), sparse_from=way)
    return [event.id for event in events if isinstance(event, Token)]


def host_layers(timeline: Timeline) -> list[FullLayer]:
    return [layer for layer in timeline.cache.kept if isinstance(layer, FullLayer) and layer.staged]


def test_tokens_are_those_of_the_device(loaded, hosted):
    settings = replace(SETTINGS, read="sparse")
    here, there = timeline_of(loaded, settings), hosted(loaded, settings)
    for timeline in (here, there):
        list(timeline.read(IDS))
    assert there.cache.staged
    assert not here.cache.staged
    kinds = {type(buffer) for layer in host_layers(there) for buffer in layer.buffers.values()}
    assert kinds == {HostBuffer}
    assert len(host_layers(there)) == 3  # of four
    for sparse in (True, False):
        assert torch.equal(there.score(QUESTION, sparse=sparse), here.score(QUESTION, sparse=sparse))
    for way in ("answer", "never"):
        assert said(there, way) == said(here, way)
    forks = [timeline.fork() for timeline in (here, there)]
    for fork in forks:
        fork._stepper._compiled = None
    assert said(forks[1]) == said(forks[0])


def test_what_was_forgotten_is_not_brought_again(loaded, hosted):
    timeline = hosted(loaded, SETTINGS)
    list(timeline.read(IDS[:100]))
    mark = timeline.mark()
    list(timeline.read(IDS[100:200]))
    timeline.rewind(mark)
    list(timeline.read(IDS[300:400]))
    fresh = timeline_of(loaded)
    list(fresh.read(np.concatenate([IDS[:100], IDS[300:400]])))
    assert torch.equal(timeline.score(QUESTION, sparse=False), fresh.score(QUESTION, sparse=False))


def test_full_steps_of_a_backend_write_through(loaded, hosted, monkeypatch):
    monkeypatch.setattr(Model.of(loaded), "dense", TorchBackend())
    monkeypatch.setattr(Model.of(loaded), "is_fused", False)
    full = replace(SETTINGS, kind="full")
    timelines = timeline_of(loaded, full), hosted(loaded, full)
    for timeline in timelines:
        list(timeline.read(IDS[:100]))
    for timeline in timelines:
        list(timeline.answer(QUESTION, Sampling(), 8, (), keep=True))
    assert timelines[0].answered == timelines[1].answered
    rows = [
        [buffer.lying(0, 110) for layer in timeline.cache.kept if isinstance(layer, FullLayer)
         for buffer in layer.buffers.values()]
        for timeline in timelines
    ]  # fmt: skip
    for one, other in zip(*rows, strict=True):
        assert torch.equal(one, other)


def test_a_cache_may_outgrow_its_memory(loaded, hosted):
    timeline, fresh = hosted(loaded, SETTINGS, context=100), timeline_of(loaded)
    for one in (timeline, fresh):
        list(one.read(IDS))
    assert all(layer.buffers["keys"].room >= len(IDS) for layer in host_layers(timeline))
    assert torch.equal(timeline.score(QUESTION, sparse=True), fresh.score(QUESTION, sparse=True))


def test_the_store_serves_both_placements(loaded, hosted, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path))
    monkeypatch.setattr(document, "block_tokens", lambda chunk, token_bytes: BLOCK)

    def run(timeline: Timeline) -> tuple[int, torch.Tensor]:
        place = Model.of(loaded).placement
        stored = StoredDocument(loaded, IDS, CHUNK, place, StoreSettings(), ["a"], pytest.fail)
        first = next(events := timeline.read(IDS, stored))
        list(events)
        stored.finish()
        return first.reused, timeline.score(QUESTION, sparse=True)

    (cold, one), (warm, other) = run(hosted(loaded, SETTINGS)), run(timeline_of(loaded))
    again, third = run(hosted(loaded, SETTINGS))
    assert (cold, warm, again) == (0, len(IDS), len(IDS))
    assert torch.equal(one, other)
    assert torch.equal(one, third)


class Rows:
    """A layer of a cache, for a staging."""

    def __init__(self, tokens: int) -> None:
        like = torch.empty(1, 2, 0, 8)
        self.buffers = Hosted(Staging(CPU)).buffers({"keys": like, "values": like}, tokens + 4)
        self.length = tokens
        for buffer in self.buffers.values():
            buffer.host[:, :, :tokens].normal_()

    def matches(self, rows) -> bool:
        whole = [buffer.host[:, :, : self.length] for buffer in self.buffers.values()]
        return all(torch.equal(x[:, :, : self.length], y) for x, y in zip(rows, whole, strict=True))


def test_the_next_layer_arrives_while_one_is_computed():
    staging, layers = Staging(CPU), [Rows(10), Rows(10), Rows(10)]
    for layer in layers:  # a first pass tells the order
        assert layer.matches(staging.open(layer))
    staging.forget()
    first, second, _ = layers
    assert first.matches(staging.open(first))
    second.buffers["keys"].host[:, :, 0] += 1  # after it arrived
    assert not second.matches(staging.open(second))
    staging.forget()
    assert second.matches(staging.open(second))


def test_new_rows_leave_for_the_host():
    staging, layer = Staging(CPU), Rows(10)
    keys, values = staging.open(layer)
    for rows in (keys, values):
        rows[:, :, 10:13] = 7.0
    layer.length = 13
    staging.close(layer, 10)
    assert layer.matches((keys, values))
    assert all((buffer.tensor[:, :, 10:13] == 7).all() for buffer in layer.buffers.values())


@pytest.mark.parametrize(
    ("maps", "chosen", "changes"), [(True, "", 1), (True, "max_split_size_mb:64", 0), (False, "", 0)]
)
def test_memory_of_a_full_card_has_no_gaps(monkeypatch, maps, chosen, changes):
    told: list[str] = []
    monkeypatch.setattr(placing, "maps_memory", lambda device: maps)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append, raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", chosen)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    placing.leave_no_gaps(torch.device("cuda:0"))
    assert told == ["expandable_segments:True"] * changes
