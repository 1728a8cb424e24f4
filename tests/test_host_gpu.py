"""Locked host memory as a GPU sees it: kernels, captured steps and copies on other streams."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import tiny_architecture
from loaded import Loaded
from test_host_placement import QUESTION, said

from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.hosted import HostBuffer, LockedMemory
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.model import Model
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.store import document
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.settings import StoreSettings

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda:0")
IDS = np.random.default_rng(0).integers(0, 256, 3500).astype(np.int32)
# More than one launch chooses and attends to at once, since choices in host memory are fetched in between.
SPARSE = AttentionSettings("adamas", SparseSettings(budget=200), kv="host")
LARGE = replace(SPARSE, sparse=SparseSettings(budget=512))
FULL = AttentionSettings("full", kv="host")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def loaded(request):
    model = tiny_architecture("llama").to(DEVICE, request.param)
    return Loaded(model, ModelFiles("tiny", Path(), "a" * 64), DEVICE, request.param)


def pair(loaded, settings, context=4000, **options) -> tuple[Timeline, Timeline]:
    """A timeline with keys and values in the GPU's memory, and one in the host's."""
    both = [
        Timeline(loaded, replace(settings, kv=kv), context=context, prefill_chunk=512, **options)
        for kv in ("gpu", "host")
    ]
    return both[0], both[1]


def test_a_gpu_reads_and_writes_locked_memory_in_place():
    memory = LockedMemory(DEVICE, 1 << 22)
    seen = memory.tensor()
    assert seen.is_cuda
    assert seen.data_ptr() == memory.host.data_ptr()
    memory.host.copy_(torch.arange(1 << 22) % 251)
    assert torch.equal(seen.cpu(), memory.host)
    seen += 1
    torch.cuda.synchronize()
    assert int(memory.host[5]) == 6
    views = seen[10:20]
    del memory, seen
    assert views.cpu().tolist() == list(range(11, 21))


@pytest.mark.parametrize("settings", [SPARSE, LARGE, FULL], ids=["small", "large", "full"])
@pytest.mark.parametrize("read", ["dense", "sparse"])
def test_tokens_are_those_of_gpu_memory(loaded, settings, read):
    here, there = pair(loaded, replace(settings, read=read))
    for timeline in (here, there):
        list(timeline.read(IDS))
    assert there.kv == "host"
    assert here.kv == "gpu"
    layers = [layer for layer in there.cache.kept if isinstance(layer, FullLayer)]
    assert [isinstance(layer.buffers["keys"], HostBuffer) for layer in layers] == [False, False, True, True]
    for _ in range(2):
        assert said(there, count=40) == said(here, count=40)
        assert said(there, "never", count=10) == said(here, "never", count=10)
    if settings is not FULL:
        assert there.step_reason is None
        assert there._stepper._captured is not None
        assert len(there._stepper._captured._graphs) == 1  # full steps are not captured


def test_questions_and_documents_in_turn(loaded):
    here, there = pair(loaded, SPARSE)
    for timeline in (here, there):
        list(timeline.read(IDS[:2000]))
        said(timeline)
        list(timeline.read(IDS[2000:2600]))
    assert said(there, count=30) == said(here, count=30)
    for timeline in (here, there):
        timeline.truncate(1500)
        list(timeline.read(IDS[3000:]))
    assert said(there, count=30) == said(here, count=30)


def test_a_cache_may_outgrow_its_memory(loaded):
    here, there = pair(loaded, SPARSE, context=600)
    for timeline in (here, there):
        list(timeline.read(IDS))
    assert said(there, count=30) == said(here, count=30)


def test_the_store_serves_both_placements(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path))
    monkeypatch.setattr(document, "block_tokens", lambda chunk, token_bytes: 512)

    def run(timeline: Timeline) -> tuple[int, list[int]]:
        place = Model.of(loaded).placement
        stored = StoredDocument(loaded, IDS, 512, place, StoreSettings(), ["a"], pytest.fail)
        first = next(events := timeline.read(IDS, stored))
        list(events)
        stored.finish()
        return first.reused, said(timeline)

    here, there = pair(loaded, SPARSE)
    again = pair(loaded, SPARSE)[1]
    (cold, one), (warm, other), (warmer, third) = run(there), run(here), run(again)
    assert (cold, warm, warmer) == (0, len(IDS), len(IDS))
    assert one == other == third


@pytest.mark.parametrize("kept", ["int8", "int4"])
@pytest.mark.parametrize("budget", [48, 512])
def test_fewer_bits_in_either_memory(kept, budget):
    model = tiny_architecture("gemma3").to(DEVICE, torch.bfloat16)
    loaded = Loaded(model, ModelFiles("tiny", Path(), "b" * 64), DEVICE, torch.bfloat16)
    plain = replace(SPARSE, sparse=SparseSettings(budget=budget), dense_layers=1)
    whole = pair(loaded, plain)[0]
    here, there = pair(loaded, replace(plain, cache_dtype=kept))
    for timeline in (whole, here, there):
        list(timeline.read(IDS))
    layer = next(layer for layer in here.cache.kept if isinstance(layer, FullLayer))
    assert layer.stored_keys.dtype == torch.int8
    for sparse in (True, False):
        scores = [one.score(QUESTION, sparse=sparse).float().log_softmax(-1) for one in (whole, here, there)]
        divergence = (scores[0].exp() * (scores[0] - scores[1])).sum(-1).mean()
        assert 0 < divergence < 0.02
        if sparse:  # rows that begin at other places are added up in another order
            assert (scores[1].exp() * (scores[1] - scores[2])).sum(-1).mean() < 1e-3
        else:
            assert torch.equal(scores[1], scores[2])
    assert said(here, "never", count=20) == said(there, "never", count=20)
    assert len(said(here, count=20)) == len(said(there, count=20)) == 20
    assert here.step_reason is None


def test_memory_is_returned(loaded):
    timeline = pair(loaded, SPARSE)[1]
    list(timeline.read(IDS[:1000]))
    said(timeline)
    hosts = [
        buffer.host
        for layer in timeline.cache.kept
        if isinstance(layer, FullLayer)
        for buffer in layer.buffers.values()
        if isinstance(buffer, HostBuffer)
    ]
    assert hosts
    assert all(host.is_pinned() for host in hosts)
    del timeline
    gc.collect()
    assert not any(host.is_pinned() for host in hosts)
