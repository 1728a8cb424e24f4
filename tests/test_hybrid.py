"""Models with recurrent states or latent attention: answers as by transformers, kept, continued, rewound."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from hybrid_models import HYBRIDS, hybrid_model
from test_store import Loaded

from adamas_cli.cache.latent import Expansion
from adamas_cli.cache.names import is_stream
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.models.shape import STATES, shape_of, shape_of_config
from adamas_cli.store import document
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.parts import keeps_states
from adamas_cli.store.settings import StoreSettings

FULL = AttentionSettings("full")
WHOLE = AttentionSettings("adamas", SparseSettings(budget=1000), dense_layers=0, backend="torch")
SMALL = AttentionSettings("adamas", SparseSettings(budget=24), dense_layers=0, backend="torch")
# One of each kind: delta rule, state space, both in a layer, convolution, layers without states, latents.
KINDS = ("qwen3_next", "jamba", "falcon_h1", "lfm2", "nemotron_h", "kimi_linear", "deepseek_v2")
STATES_OF = ("conv.", "recurrent.")  # stored parts of a layer
BLOCK, CHUNK, DOCUMENT, ANSWER = 32, 16, 100, 5


def loaded(name: str) -> Loaded:
    files = ModelFiles("tiny", Path(), name.ljust(64, "0"))
    return Loaded(hybrid_model(name), files, torch.device("cpu"), torch.float32)


def text(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


def opened(name: str, settings: AttentionSettings, chunk: int = CHUNK) -> Timeline:
    return Timeline(loaded(name), settings, context=200, prefill_chunk=chunk)


def answer(timeline: Timeline, ids: np.ndarray, *, keep: bool = False) -> list[int]:
    """Answer a question about the cache's contents."""
    events = timeline.answer(ids, Sampling(), ANSWER, (), keep=keep)
    return [event.id for event in events if isinstance(event, Token)]


QUESTIONS = [text(9, seed) for seed in (1, 2, 3)]


@cache
def generated(name: str, question: int) -> list[int]:
    """The answer of transformers to a question about the document."""
    ids = torch.tensor(np.concatenate([text(DOCUMENT, 0), QUESTIONS[question]])).long().unsqueeze(0)
    model = hybrid_model(name)
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=ANSWER,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", HYBRIDS)
def test_questions_in_turn_get_the_answers_of_transformers(name):
    """With any chunks, with full attention and with sparse steps that attend to everything."""
    expected = [generated(name, 0), generated(name, 1)]
    for settings, chunk in ((FULL, 1000), (WHOLE, CHUNK + 1)):
        timeline = opened(name, settings, chunk)
        list(timeline.sync(text(DOCUMENT, 0)))
        assert [answer(timeline, question) for question in QUESTIONS[:2]] == expected
        assert timeline.attention_kind == ("full" if settings is FULL else "adamas")


@pytest.mark.parametrize("name", HYBRIDS)
def test_kept_documents_and_what_continues_them(name, tmp_path, monkeypatch):
    """Answers from the store are the same; a longer document starts at the last border with a state."""
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path))
    monkeypatch.setattr(document, "block_tokens", lambda chunk, token_bytes: BLOCK)
    model, ids, notes = loaded(name), text(DOCUMENT, 0), []
    said, reused = [], []
    for length in (DOCUMENT, DOCUMENT, DOCUMENT + 20):
        whole = np.concatenate([ids, text(20, 5)])[:length]
        timeline = opened(name, SMALL)
        kept = StoredDocument(
            model, whole, CHUNK, Model.of(model).placement, StoreSettings(), ["a.txt"], notes.append
        )
        events = list(timeline.sync(whole, kept))
        kept.finish()
        said.append(answer(timeline, QUESTIONS[0]))
        reused.append(events[0].reused)
    assert said[0] == said[1]
    assert reused[:2] == [0, DOCUMENT]
    assert reused[2] in (BLOCK, 2 * BLOCK, 3 * BLOCK)
    fresh = opened(name, SMALL)
    list(fresh.sync(np.concatenate([ids, text(20, 5)])))
    assert answer(fresh, QUESTIONS[0]) == said[2]
    assert not notes


@pytest.mark.parametrize("name", KINDS)
def test_forks_and_returns(name):
    """A fork continues independently, and a rewind to a mark forgets later tokens, any number of times."""
    timeline = opened(name, SMALL)
    list(timeline.sync(text(DOCUMENT, 0)))
    mark, other = timeline.mark(), timeline.fork()
    alone = answer(timeline, QUESTIONS[0])
    for _ in range(2):
        answer(timeline, QUESTIONS[1], keep=True)
        timeline.rewind(mark)
        assert answer(timeline, QUESTIONS[0]) == alone
    assert answer(other, QUESTIONS[0]) == alone
    list(timeline.sync(text(20, 8)))  # starts over
    list(timeline.sync(text(DOCUMENT, 0)))
    assert answer(timeline, QUESTIONS[0]) == alone


@pytest.mark.parametrize("name", HYBRIDS)
def test_what_is_planned_is_what_is_kept(name):
    """By transformers' config and by the config file; the store counts the same streams."""
    model, timeline = hybrid_model(name), opened(name, WHOLE)
    list(timeline.sync(text(DOCUMENT, 0)))
    parts = timeline.cache.stored(0, DOCUMENT)
    streams = sum(part.nbytes for label, part in parts.items() if is_stream(label))
    states = sum(
        part.nbytes for label, part in parts.items() if label.partition(".")[2].startswith(STATES_OF)
    )
    config = model.config.get_text_config()
    for shape in (shape_of(config.to_dict()), shape_of_config(config)):
        assert shape.obstacle is None
        assert shape.cache_bytes(DOCUMENT, 4) == streams
        assert shape.state_bytes(4) == STATES * shape.kept_state_bytes(4) == STATES * states
    held = [layer.codes.layer for layer in timeline.cache.kept if layer.coded]
    per_token = sum((x.codes.nbytes + x.scales.nbytes) // x.capacity for x in held)
    assert shape.code_bytes(DOCUMENT, 0) == per_token * DOCUMENT


def test_large_states_are_kept_as_rarely_as_they_are_large():
    assert all(keeps_states(index, 100, 100) for index in range(4))
    assert [index for index in range(16) if keeps_states(index, 300, 100)] == [3, 7, 11, 15]
    assert [index for index in range(16) if keeps_states(index, 100 * (index + 1), 100)] == [0, 1, 3, 7, 15]


@pytest.mark.parametrize("name", KINDS[:-1])
def test_states_stay_where_they_lie(name):
    """A captured step must find states at the same addresses, through rewinds and steps."""
    timeline = opened(name, FULL)
    list(timeline.sync(text(40, 0)))
    mark = timeline.mark()
    version = timeline.cache.extent.version

    def places() -> list[int]:
        layers = [layer for layer in timeline.cache.kept if hasattr(layer, "conv_states")]
        states = [state for x in layers for state in (*x.conv_states.values(), *x.recurrent_states.values())]
        return [state.data_ptr() for state in states if state is not None]

    before = places()
    answer(timeline, QUESTIONS[0], keep=True)
    timeline.rewind(mark)
    assert before
    assert places() == before
    assert timeline.cache.extent.version == version


def test_heads_are_made_as_the_model_makes_them():
    """Also for a projection with a packed weight, which can only multiply."""
    attention = copy.deepcopy(hybrid_model("deepseek_v3").model.layers[0].self_attn)
    latents, rotary = torch.randn(1, 1, 7, 24), torch.randn(1, 1, 7, 8)
    expected = attention.expand_kv(latents, rotary)
    for _ in range(2):
        expansion = Expansion.of(attention, latents)
        made = expansion.heads(torch.cat((latents, rotary), -1), slice(None))
        for one, other in zip(made, expected, strict=True):
            torch.testing.assert_close(one, other)
        attention = copy.deepcopy(attention)
        attention.kv_b_proj = torch.nn.Sequential(attention.kv_b_proj)
