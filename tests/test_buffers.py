"""Keys and values that grow in place."""

from __future__ import annotations

import gc
import mmap
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import tiny_architecture
from layer_caches import make_cache
from test_engine import FULL, GREEDY, Loaded, answer, generated, prompt, sparse

from adamas_cli.cache import codes, mapped, placement
from adamas_cli.cache.growing import TokenBuffer
from adamas_cli.cache.placement import Paged, by_head, placement_on
from adamas_cli.engine import model as engine_model
from adamas_cli.engine.events import Token
from adamas_cli.engine.timeline import Timeline
from adamas_cli.errors import OutOfMemoryError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LIKE = (2, 3, 5, 16)  # [B, K, N, D]


@pytest.fixture(params=["heads first", "tokens first"])
def order(request, monkeypatch):
    """Both orders in memory, whatever the device."""
    placement = Paged(tokens_first=request.param == "tokens first")
    monkeypatch.setattr(engine_model, "placement_on", lambda device: placement)
    return placement


def buffer_on(device, like: tuple[int, ...], **room: int) -> TokenBuffer:
    device = torch.device(device)
    return placement_on(device).buffer(torch.empty(like, device=device), **room)


def filled(buffer: TokenBuffer, tokens: int) -> torch.Tensor:
    x = torch.randn(*buffer.tensor.shape[:2], tokens, buffer.tensor.shape[3], device=buffer.tensor.device)
    buffer.tensor[:, :, :tokens] = x
    return x


def test_a_buffer_keeps_what_it_holds_where_it_has_to_move(order):
    buffer = order.buffer(torch.empty(LIKE), room=10)
    assert buffer.tensor.shape == (2, 3, 10, 16)
    x = filled(buffer, 10)
    assert not buffer.grow(10, 10)
    assert buffer.grow(11, 10)
    assert buffer.room == 15  # half as much again, so that adding single tokens does not copy each time
    assert torch.equal(buffer.tensor[:, :, :10], x)


@pytest.mark.parametrize("device", DEVICES)
def test_a_buffer_with_a_limit_grows_where_it_lies(device):
    limit = 100_000
    buffer = buffer_on(device, LIKE, room=10, limit=limit)
    place = buffer.tensor.data_ptr()
    x = filled(buffer, 10)
    for tokens in (11, 5_000, 50_000, limit):
        assert not buffer.grow(tokens, 10)
        assert buffer.room >= tokens
        buffer.tensor[:, :, 10:tokens] = tokens
        assert float(buffer.tensor[:, :, tokens - 1].min()) == tokens
    assert buffer.tensor.data_ptr() == place
    assert torch.equal(buffer.tensor[:, :, :10], x)
    assert buffer.grow(limit + 1, limit)  # beyond the limit, it has to move
    assert buffer.tensor.data_ptr() != place
    assert torch.equal(buffer.tensor[:, :, :10], x)
    assert float(buffer.tensor[:, :, 10:limit].min()) == limit


def test_memory_comes_with_the_tokens():
    psutil = pytest.importorskip("psutil")
    process, gigabyte = psutil.Process(), 1 << 30
    before = process.memory_info().rss
    buffer = buffer_on("cpu", (1, 1, 1, 64), room=10, limit=gigabyte // 256)
    assert buffer.tensor.nbytes == gigabyte
    buffer.tensor[:, :, :1000] = 1
    assert process.memory_info().rss - before < 50 << 20


def test_where_no_more_memory_is_promised_than_there_is(monkeypatch):
    class Promised(TokenBuffer):
        def __init__(self, like, room, **order):
            if room > 20:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            super().__init__(like, room, **order)

    monkeypatch.setattr(placement, "TokenBuffer", Promised)
    assert Paged().buffer(torch.empty(LIKE), room=10, limit=1000).room == 10


def test_tokens_lie_in_one_piece_or_in_one_for_each_head(order):
    buffer = order.buffer(torch.empty(1, 3, 1, 16), room=40)
    x = filled(buffer, 40)
    lying = buffer.lying(8, 20)
    parts = [lying] if order.tokens_first else list(lying)
    assert all(part.is_contiguous() for part in parts)
    assert lying.data_ptr() == buffer.tensor[:, :, 8:].data_ptr()
    assert torch.equal(by_head(lying, order), x[0, :, 8:20])


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("settings", [FULL, sparse(24), sparse(24, scorer="manhattan")])
def test_the_order_in_memory_changes_no_answer(settings):
    model, ids = tiny_architecture("llama"), prompt(300)
    timeline = Timeline(Loaded(model), settings, context=340, prefill_chunk=64)
    first = answer(timeline, ids[:280], ids[280:])
    if settings is FULL:
        assert first == generated(model, ids)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(engine_model, "placement_on", lambda device: Paged())
        other = Timeline(Loaded(tiny_architecture("llama")), settings, context=340, prefill_chunk=64)
        assert answer(other, ids[:280], ids[280:]) == first


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [FULL, sparse(24)])
def test_a_cache_that_outgrows_its_room_is_not_copied(device, settings):
    """Three documents one after another, as in a conversation, in a cache reserved for the first."""
    loaded = Loaded(tiny_architecture("llama").to(device))
    ids = prompt(900)

    def conversation(**room):
        timeline = Timeline(loaded, settings, prefill_chunk=64, **room)
        answers, places = [], []
        for start, end in ((0, 150), (150, 400), (400, 880)):
            list(timeline.read(ids[start:end]))
            events = timeline.answer(ids[880:], GREEDY, 24, stop_ids=())
            answers.append([event.id for event in events if isinstance(event, Token)])
            places.append([layer.stored_keys.data_ptr() for layer in timeline.cache.layers])
        return answers, places

    grown, places = conversation(context=200, limit=4096)
    roomy, _ = conversation(context=1000)
    assert grown == roomy
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", ["codes", "values"])
def test_growing_that_fails_leaves_a_cache_that_can_grow(error, failing, monkeypatch):
    """Keys may have moved before memory for values, or for codes, ran out."""
    loaded, ids = Loaded(tiny_architecture("llama")), prompt(460)
    answers = []
    for fails in (True, False):
        timeline = Timeline(loaded, sparse(24), context=300, prefill_chunk=64)
        list(timeline.read(ids[:280]))
        layer, failed = timeline.cache.layers[-1], []
        owner, name = (codes, "codes_beside") if failing == "codes" else (layer._buffers["values"], "grow")

        whole = getattr(owner, name)

        def once(*args, whole=whole, failed=failed):
            if not failed:
                failed.append(True)
                raise error
            return whole(*args)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt, OutOfMemoryError):
            if fails:
                patch.setattr(owner, name, once)
            list(timeline.read(ids[280:440]))
        assert bool(failed) == fails
        assert layer.codes.layer.keys is layer.stored_keys  # even before anything else grows
        if timeline.length < 440:
            list(timeline.read(ids[timeline.length : 440]))
        events = timeline.answer(ids[440:], GREEDY, 24, stop_ids=())
        answers.append([event.id for event in events if isinstance(event, Token)])
        assert layer.codes.layer.keys is layer.stored_keys
        assert layer.codes.layer.values is layer.stored_values
        assert layer.codes.layer.capacity >= layer.length
    assert answers[0] == answers[1]


def test_one_set_of_buffers_serves_the_steps_of_a_cache_that_may_grow():
    from adamas_kernels.triton.backend import TritonBackend

    cache = make_cache(1, 2, 64, 100, 128, SparseSettings())
    cache.keys = torch.empty(1, 2, 500, 64)  # addresses for more tokens
    backend, queries = TritonBackend(), torch.empty(1, 4, 1, 64)
    assert backend.scratch(queries, cache, 32) is backend.scratch(queries, cache, 32)


@pytest.mark.gpu
def test_a_captured_step_serves_a_cache_that_grows():
    loaded, ids = Loaded(tiny_architecture("llama").to("cuda")), prompt(900)
    timeline = Timeline(loaded, FULL, context=200, limit=4096, prefill_chunk=64)
    graphs = []
    for start, end in ((0, 150), (150, 400), (400, 890)):
        list(timeline.read(ids[start:end]))
        list(timeline.answer(ids[890:], GREEDY, 8, stop_ids=()))
        graphs += timeline._stepper._captured._graphs.values()
    assert timeline.step_reason is None
    assert len(graphs) == 3
    assert all(graph is graphs[0] for graph in graphs)


@pytest.mark.gpu
def test_mapped_memory_goes_back():
    device = torch.device("cuda")
    gc.collect()
    before = mapped.mapped_bytes(device)
    free = torch.cuda.mem_get_info()[0]
    buffer = buffer_on(device, (1, 8, 1, 128), room=1, limit=1 << 20)
    buffer.grow(1 << 17, 1)
    assert mapped.mapped_bytes(device) - before == 1 << 29  # 128K tokens of 4 KiB
    assert free - torch.cuda.mem_get_info()[0] >= 1 << 29
    part = buffer.tensor[:, :, 5:7].fill_(3)
    del buffer
    assert float(part.sum()) == 3 * part.numel()  # a view keeps it
    del part
    assert mapped.mapped_bytes(device) == before


@pytest.mark.gpu
def test_a_gpu_without_memory_for_more_says_so():
    device = torch.device("cuda")
    there = torch.cuda.mem_get_info()[1]
    buffer = buffer_on(device, (1, 8, 1, 128), room=1, limit=there // 2048)
    with pytest.raises(torch.OutOfMemoryError, match="bytes are left on cuda"):
        buffer.grow(there // 4096 + 1000, 1)
    assert not buffer.grow(2000, 1)  # but it can go on with less


class Driver:
    """A driver with this much memory, in steps of 100 bytes, that records its calls."""

    def __init__(self, memory: int) -> None:
        self.memory, self.calls, self.mapped = memory, [], []

    def cu_mem_get_allocation_granularity(self, kind, which):
        return 0, 100

    def cu_mem_address_reserve(self, size, *rest):
        self.calls.append(("reserve", size))
        return 0, 7000

    def cu_mem_create(self, size, kind, flags):
        if size > self.memory:
            return self.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        self.memory -= size
        return 0, size

    def cu_mem_map(self, at, size, offset, memory, flags):
        assert memory >= size
        self.calls.append(("map", at, size))
        self.mapped.append(("map", at, size))
        return (0,)

    def cu_mem_set_access(self, at, size, access, count):
        return (0,)

    def cu_mem_retain_allocation_handle(self, at):
        return 0, next(size for call, start, size in self.mapped if start == at)

    def cu_mem_release(self, memory):
        return (0,)

    def cu_mem_unmap(self, at, size):
        self.memory += size
        self.calls.append(("unmap", at, size))
        return (0,)

    def cu_mem_address_free(self, at, size):
        self.calls.append(("free", at, size))
        return (0,)

    CUresult = SimpleNamespace(CUDA_ERROR_OUT_OF_MEMORY=2)
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
    CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3)
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM=0)

    CUmemAllocationProp = staticmethod(lambda: SimpleNamespace(location=SimpleNamespace()))
    CUmemAccessDesc = SimpleNamespace

    def __getattr__(self, name):
        return getattr(self, re.sub("([A-Z])", r"_\1", name).lower())  # cuMemMap


@pytest.fixture
def driver(monkeypatch):
    """The driver functions that `mapped.py` calls, on machines without them."""
    found, package = Driver(1000), ModuleType("cuda.bindings")
    package.driver = found
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return found


def test_memory_is_mapped_behind_what_is_there_and_given_back(driver):
    device = torch.device("cuda", 0)
    memory = mapped.MappedMemory(device, 650)
    memory.grow(150)
    memory.grow(200)  # already there
    memory.grow(301)
    assert driver.calls == [("reserve", 700), ("map", 7000, 200), ("map", 7200, 200)]
    assert memory.room == mapped.mapped_bytes(device) == 400
    with pytest.raises(ValueError, match="701 bytes do not fit"):
        memory.grow(701)
    del driver.calls[:], memory
    assert driver.calls == [("unmap", 7000, 200), ("unmap", 7200, 200), ("free", 7000, 700)]
    assert mapped.mapped_bytes(device) == 0


def test_a_range_may_begin_with_the_memory_of_another(driver):
    device = torch.device("cuda", 0)
    first, second = (mapped.MappedMemory(device, 900, divides=True) for _ in range(2))
    first.grow(600)
    assert driver.calls[2:] == [("map", 7000 + place, 100) for place in range(0, 600, 100)]
    del driver.calls[:]
    assert second.share(first, 399) == 300  # whole pages
    assert driver.calls == [("map", 7000, 100), ("map", 7100, 100), ("map", 7200, 100)]
    second.grow(500)
    assert driver.calls[3:] == [("map", 7300, 100), ("map", 7400, 100)]
    assert (second.room, mapped.mapped_bytes(device)) == (500, 800)
    del second
    assert mapped.mapped_bytes(device) == 600


def test_only_whole_pieces_of_memory_are_shared(driver):
    """A driver maps no part of them."""
    first, second = (mapped.MappedMemory(torch.device("cuda", 0), 900) for _ in range(2))
    first.grow(200)
    first.grow(600)
    assert second.share(first, 399) == second.room == 200


def test_what_torch_has_freed_is_given_back_before_memory_is_said_to_be_out(driver, monkeypatch):
    def empty_cache():
        driver.memory += 300

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    memory = mapped.MappedMemory(torch.device("cuda", 0), 5000)
    memory.grow(1200)
    with pytest.raises(torch.OutOfMemoryError, match="no 2,000 bytes are left on cuda:0"):
        memory.grow(3200)
    assert memory.room == 1200


@pytest.mark.parametrize("call", ["cu_mem_map", "cu_mem_set_access"])
def test_mapping_that_is_interrupted_is_undone(call, driver, monkeypatch):
    memory = mapped.MappedMemory(torch.device("cuda", 0), 900)
    memory.grow(100)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            memory.grow(300)
    assert memory.room == mapped.mapped_bytes(torch.device("cuda", 0)) == 100
    assert driver.calls[-1] == ("unmap", 7100, 200)
    memory.grow(300)
    assert memory.room == 300


def test_nothing_is_given_back_while_a_step_is_captured(driver, monkeypatch):
    memory = mapped.MappedMemory(torch.device("cuda", 0), 300)
    memory.grow(300)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    del memory
    assert ("free", 7000, 300) not in driver.calls
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    mapped.MappedMemory(torch.device("cuda", 0), 100)
    assert ("free", 7000, 300) in driver.calls


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_of_a_context_is_resident_where_there_are_tokens_only() -> None:
    size, room = 1 << 26, 1 << 18  # bytes; tokens
    like = torch.empty(1, 1, 0, size // room, dtype=torch.uint8)
    for _ in range(8):  # memory that the C library keeps for the next one to ask
        torch.ones(size // 8, dtype=torch.uint8)
    before = resident()
    buffer = Paged().buffer(like, room=0, limit=room)
    assert resident() - before < size / 8
    buffer.tensor[:, :, : room // 2] = 1
    assert size / 4 < resident() - before < size * 3 / 4
    del buffer
    assert resident() - before < size / 8


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
