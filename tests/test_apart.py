"""Answers that decode together by Triton's kernels, each in a cache of its own: on a GPU, or in the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from adamas_kernels.triton.backend import TritonBackend
from conftest import tiny_architecture
from test_drafts import Loaded, numbers
from test_together import begun, in_turns

from adamas_cli.cache.mode import Sparse
from adamas_cli.cache.placement import Paged
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.batch import Batch
from adamas_cli.engine.events import Done, Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline

ON_GPU = torch.cuda.is_available()
ANSWER = 5
FULL = AttentionSettings("full")
SPARSE = AttentionSettings("adamas", SparseSettings(budget=24), dense_layers=1, backend="torch")

pytestmark = [pytest.mark.gpu] if ON_GPU else []


@pytest.fixture(scope="module")
def loaded() -> dict[str, Loaded]:
    """Models whose steps are Triton's: one with full attention, and one with windows."""
    kernels, found = TritonBackend(), {}
    for name in ("qwen2", "gemma3"):
        found[name] = Loaded(tiny_architecture(name).to("cuda" if ON_GPU else "cpu"))
        if not ON_GPU:
            model = Model.of(found[name])
            model.dense, model.placement = kernels, Paged(tokens_first=True)
    return found


@pytest.fixture(autouse=True)
def _in_order(monkeypatch):
    """Keys and values lie as they do on a GPU."""
    if not ON_GPU:
        placed = lambda device, forks=False: Paged(tokens_first=True, forks=forks)  # noqa: E731
        monkeypatch.setattr("adamas_cli.engine.timeline.placement_on", placed)


def opened(loaded: Loaded, length: int, attention: AttentionSettings, **options) -> Timeline:
    """A timeline that has read a text of this length, different for each length."""
    timeline = Timeline(loaded, attention, context=length + 60, **options)
    if timeline.sparse is not None:
        timeline.use(Sparse(timeline.sparse.settings, Model.of(loaded).dense))
    list(timeline.sync(numbers(length, seed=length)))
    return timeline


@pytest.mark.parametrize(("name", "attention"), [("qwen2", FULL), ("qwen2", SPARSE), ("gemma3", SPARSE)])
def test_answers_are_those_of_one_at_a_time(loaded, name, attention):
    lengths = (100, 35, 67)
    alone, expected = [opened(loaded[name], length, attention, counts=True) for length in lengths], []
    for timeline in alone:
        expected += in_turns(begun(timeline, ANSWER))
    batch = Batch(Model.of(loaded[name]))
    together = [opened(loaded[name], length, attention, counts=True, batch=batch) for length in lengths]
    assert [timeline.batch_reason for timeline in together] == [None] * 3
    assert in_turns(*(begun(timeline, ANSWER) for timeline in together)) == expected
    assert (batch.steps, batch.rows, batch.seated) == (ANSWER - 1, 3 * (ANSWER - 1), 0)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)
        assert one.length == other.length
        if attention is not FULL:
            np.testing.assert_allclose(one.attended(), other.attended(), rtol=1e-3, atol=1e-3)
