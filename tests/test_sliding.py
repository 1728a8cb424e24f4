"""A layer with a window: its ring against the definition, and rewinding any number of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.backend import TorchBackend
from layer_caches import double_attention
from torch import Tensor

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.mode import READING, Mode
from adamas_cli.cache.placement import Allocated
from adamas_cli.cache.sliding import SlidingLayer

WINDOW, TOKENS = 16, 150
STEPPING = Mode(answers=True, dense=TorchBackend())
CHUNKS = (5, 1, 1, 20, 1, 40, *[1] * 17, 30, 1)


class Tokens:
    """Queries, keys and values for layers to read, and a check of the results."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.queries = torch.randn(1, 4, TOKENS, 32)
        self.keys, self.values = torch.randn(2, 1, 2, TOKENS, 32)

    def read(self, layer: SlidingLayer, new: int, mode: Mode) -> Tensor:
        start, end = layer.length, layer.length + new
        layer._extent.lengths.fill_(start)
        layer.make_room(new)
        one = (x[:, :, start:end] for x in (self.queries, self.keys, self.values))
        return layer.attend(None, *one, 0.2, PLAIN, mode)

    def check(self, layer: SlidingLayer, new: int, mode: Mode) -> None:
        out, end = self.read(layer, new, mode), layer.length
        start = end - new
        expected, _ = double_attention(
            self.queries[:, :, start:end], self.keys[:, :, :end], self.values[:, :, :end], 0.2,
            Softmax(window=WINDOW),
        )  # fmt: skip
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def new_layer(tokens_first: bool = False) -> SlidingLayer:
    extent = Extent(torch.zeros(1, dtype=torch.int32))
    return SlidingLayer(WINDOW, extent, Allocated(tokens_first=tokens_first))


@pytest.fixture(params=[READING, STEPPING], ids=["read", "stepped"])
def mode(request) -> Iterator[Mode]:
    return request.param


@pytest.mark.parametrize(("reserved", "tokens_first"), [(0, False), (20, True), (1000, False)])
def test_chunks_and_steps_see_their_window(mode, reserved, tokens_first):
    layer, tokens = new_layer(tokens_first), Tokens(0)
    layer.reserve(reserved, 0)
    for new in CHUNKS:
        tokens.check(layer, new, mode)
    assert layer.rows < 2 * WINDOW  # whatever was reserved


def test_a_ring_stays_where_it_is_once_it_is_whole():
    layer, tokens = new_layer(), Tokens(0)
    tokens.read(layer, 40, READING)
    address, version = layer.rings[0].data_ptr(), layer._extent.version
    for _ in range(50):
        tokens.read(layer, 1, STEPPING)
    assert (layer.rings[0].data_ptr(), layer._extent.version) == (address, version)


@pytest.mark.parametrize("length", [3, 40])
def test_marks_bring_back_what_was_overwritten_any_number_of_times(mode, length):
    layer, tokens, others = new_layer(), Tokens(0), Tokens(1)
    empty = layer.mark()
    tokens.read(layer, length, READING)
    mark = layer.mark()
    for _ in range(2):
        others.read(layer, 1, STEPPING)
        others.read(layer, 37, READING)
        layer.rewind(mark)
        assert layer.length == length
        tokens.check(layer, 2 if mode is READING else 1, mode)
    layer.rewind(empty)
    others.check(layer, 9, READING)


def test_it_forgets_last_tokens_as_long_as_what_they_saw_is_there():
    layer, tokens = new_layer(), Tokens(0)
    tokens.read(layer, 60, READING)
    spare = layer.rows - WINDOW + 1
    assert layer.can_truncate(60 - spare)
    assert not layer.can_truncate(60 - spare - 1)
    layer.truncate(60 - spare)
    tokens.check(layer, 1, STEPPING)


def test_a_fork_goes_on_by_itself():
    layer, tokens, others = new_layer(), Tokens(0), Tokens(1)
    tokens.read(layer, 50, READING)
    fork = layer.fork(Extent(torch.zeros(1, dtype=torch.int32)))
    others.read(layer, 30, READING)
    for new in (1, 25, 1):
        tokens.check(fork, new, STEPPING)


@pytest.mark.parametrize("length", [7, 60])
def test_what_is_stored_brings_it_back(length):
    layer, tokens, others = new_layer(), Tokens(0), Tokens(1)
    tokens.read(layer, length, READING)
    stored = layer.stored(0, length)
    assert {name: part.shape for name, part in stored.items()} == dict.fromkeys(
        ("window_keys", "window_values"), (2, min(length, WINDOW - 1), 32)
    )
    others.read(layer, 40, READING)  # must not change what was stored
    again = new_layer()
    again.restored(length, stored)
    for new in (1, 20, 1, 1):
        tokens.check(again, new, STEPPING)
