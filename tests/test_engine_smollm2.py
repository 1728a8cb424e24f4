"""The engine on a real model, in float32: the same tokens as transformers' own generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models import LoadedModel, load
from adamas_cli.progress import Silent
from adamas_cli.prompt.tokens import Tokenizer

NOVEL = Path(__file__).parents[1] / "docs" / "examples" / "pride-and-prejudice-1-4.txt"
LENGTH, ANSWER = 500, 24


@pytest.fixture(scope="module")
def loaded(smollm2) -> LoadedModel:
    return load(smollm2, device="cpu", dtype="float32", progress=Silent())


@pytest.fixture(scope="module")
def prompt(smollm2) -> np.ndarray:
    return Tokenizer.from_directory(smollm2.directory).encode(NOVEL.read_text("utf-8"))[:LENGTH]


@pytest.fixture(scope="module")
def generated(loaded, prompt) -> list[int]:
    """The likeliest tokens by passes over everything so far, outside of any timeline."""
    ids = torch.from_numpy(prompt.astype(np.int64)).unsqueeze(0)
    with torch.inference_mode():
        for _ in range(ANSWER):
            likeliest = loaded.model(ids, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, likeliest], 1)
    return ids[0, LENGTH:].tolist()


@pytest.mark.parametrize(
    "attention",
    [
        AttentionSettings("full"),
        AttentionSettings("adamas", SparseSettings(budget=LENGTH + ANSWER)),
        AttentionSettings("adamas", SparseSettings(budget=LENGTH + ANSWER, scorer="manhattan")),
    ],
    ids=["full", "adamas-dot", "adamas-manhattan"],
)
def test_the_answer_is_that_of_whole_passes(loaded, prompt, generated, attention):
    timeline = Timeline(loaded, attention, context=LENGTH + ANSWER, prefill_chunk=256)
    for _ in timeline.read(prompt[:-30]):
        pass
    events = timeline.answer(prompt[-30:], Sampling(), ANSWER, stop_ids=())
    assert [event.id for event in events if isinstance(event, Token)] == generated


def test_a_sparse_answer_stays_close_to_the_full_one(loaded, prompt):
    """The next-token distribution after one sparse step is much closer to full attention's than after
    dropping tokens.
    """

    def distribution(attention: AttentionSettings) -> torch.Tensor:
        timeline = Timeline(loaded, attention, context=LENGTH + 8)
        list(timeline.read(prompt[:-1]))
        list(timeline.answer(prompt[-1:], Sampling(), 2, stop_ids=()))
        return timeline.logits.log_softmax(-1)

    full = distribution(AttentionSettings("full"))
    divergence = {}
    for name, settings in {
        "adamas": SparseSettings(budget=64),
        "recent tokens only": SparseSettings(budget=64, sinks=4, recents=60, compensate=False),
    }.items():
        sparse = distribution(AttentionSettings("adamas", settings))
        divergence[name] = float((full.exp() * (full - sparse)).sum())
    assert divergence["adamas"] < 0.1
    assert divergence["adamas"] < 0.5 * divergence["recent tokens only"]
