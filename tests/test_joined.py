"""Documents read apart from each other and joined in one cache, beside transformers' forward with a mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import tiny_architecture
from loaded import Loaded
from test_drafts import numbers, packed_models
from test_together import batch_of, begun, in_turns
from torch import Tensor, nn

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline

FULL = AttentionSettings("full")
WHOLE = AttentionSettings("adamas", SparseSettings(budget=4096), dense_layers=1)
SPARSE = AttentionSettings("adamas", SparseSettings(budget=48), dense_layers=1)
BEGINNING = numbers(9, seed=1)
DOCUMENTS = [numbers(length, seed=length) for length in (120, 40, 700)]
QUESTION = numbers(11, seed=2)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def joined(model: nn.Module, attention: AttentionSettings, documents=DOCUMENTS, **options) -> Timeline:
    """A timeline of documents that others have read."""
    timeline = Timeline(Loaded(model), attention, context=1000, **options)
    for document in documents:
        alone = Timeline(Loaded(model), FULL, context=800, prefill_chunk=256)
        list(alone.sync(np.concatenate([BEGINNING, document])))
        timeline.join(alone, len(BEGINNING) if timeline.length else 0)
    timeline.end_joining()
    return timeline


def by_definition(model: nn.Module, documents=DOCUMENTS) -> Tensor:
    """The logits after each token of the question, by one forward of transformers' with positions and a mask
    in which no document sees another.
    """
    parts = [BEGINNING, *documents, QUESTION]
    part = torch.cat([torch.full((len(ids),), index) for index, ids in enumerate(parts)])
    last = len(BEGINNING) + max(map(len, documents))
    starts = [0, *[len(BEGINNING)] * len(documents), last]
    places = [torch.arange(start, start + len(ids)) for start, ids in zip(starts, parts, strict=True)]
    query, key = part[:, None], part[None, :]
    allowed = (key == query) | (key == 0) | (query == len(parts) - 1)
    allowed &= torch.ones(len(part), len(part), dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    with torch.no_grad():
        output = model(
            torch.from_numpy(np.concatenate(parts).astype(np.int64))[None],
            attention_mask=mask[None, None],
            position_ids=torch.cat(places)[None],
            use_cache=False,
        )
    return output.logits[0, -len(QUESTION) :]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("attention", [FULL, WHOLE], ids=["full", "sparse"])
def test_a_question_sees_what_a_mask_would_show(name, attention):
    """Also where it is fed like an answer, token by token."""
    reference = by_definition(tiny_architecture(name))
    timeline = joined(tiny_architecture(name), attention)
    assert timeline.length == len(BEGINNING) + 860
    sparse = attention is not FULL
    torch.testing.assert_close(timeline.score(QUESTION, sparse=sparse), reference, **CLOSE)
    assert (reference - by_definition(tiny_architecture(name), DOCUMENTS[1:])).abs().max() > 0.01


@pytest.mark.parametrize("attention", [FULL, WHOLE], ids=["full", "sparse"])
def test_compiled_steps_take_the_same_positions(attention, plain_numbers):
    model = packed_models()["qwen2"]
    timeline = joined(model, attention)
    assert timeline._stepper.runs_compiled(timeline._answering(sparse=True))
    found = timeline.score(QUESTION, sparse=attention is not FULL)
    torch.testing.assert_close(found, by_definition(model), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("attention", [FULL, WHOLE], ids=["full", "sparse"])
def test_the_order_of_documents_does_not_matter(attention):
    sparse = attention is not FULL
    one, other = (
        joined(tiny_architecture("llama"), attention, documents).score(QUESTION, sparse=sparse)
        for documents in (DOCUMENTS, DOCUMENTS[::-1])
    )
    torch.testing.assert_close(one, other, **CLOSE)


def test_one_document_is_as_if_read_alone():
    """Bit for bit, with codes too, and with keys and values in 16 bits."""
    for attention in (FULL, SPARSE, replace(SPARSE, cache_dtype="16")):
        model = tiny_architecture("llama")
        alone = Timeline(Loaded(model), attention, context=1000)
        list(alone.sync(np.concatenate([BEGINNING, DOCUMENTS[2]])))
        timeline = Timeline(Loaded(model), attention, context=1000)
        reader = Timeline(Loaded(model), replace(attention, kind="full"), context=1000)
        list(reader.sync(alone.ids))
        timeline.join(reader, 0)
        timeline.end_joining()
        assert timeline.cache.extent.shift == 0
        found, expected = (one.score(QUESTION, sparse=True) for one in (timeline, alone))
        assert torch.equal(found, expected)


def test_answers_about_joined_documents_decode_together():
    """With those about other documents, whose positions differ."""
    model = packed_models()["qwen2"]
    chosen = [DOCUMENTS, DOCUMENTS[:2], DOCUMENTS[:1]]
    expected = [in_turns(begun(joined(model, SPARSE, documents)))[0] for documents in chosen]
    batch = batch_of(model)
    together = [joined(model, SPARSE, documents, batch=batch) for documents in chosen]
    assert len({timeline.cache.extent.shift for timeline in together}) == 3
    assert in_turns(*map(begun, together)) == expected
    assert batch.rows > batch.steps


def test_a_timeline_returns_to_joined_documents_and_to_nothing():
    timeline = joined(tiny_architecture("llama"), SPARSE)
    extent, length = timeline.cache.extent, timeline.length
    shift, version = extent.shift, extent.version
    assert shift == 160  # the two shorter documents
    (first,) = in_turns(begun(timeline))
    assert in_turns(begun(timeline)) == [first]
    assert (timeline.length, extent.shift) == (length, shift)
    fork = timeline.fork()
    assert fork.cache.extent.shift == shift
    assert in_turns(begun(fork)) == [first]
    assert not timeline.cache.can_truncate(100)  # where documents share positions
    timeline.rewind(timeline._states[0])
    assert (timeline.length, extent.shift) == (0, 0)
    assert extent.version > version  # captured steps hold the shift
    list(timeline.sync(QUESTION))
    alone = Timeline(Loaded(timeline.model.module), SPARSE, context=1000)
    list(alone.sync(QUESTION))
    assert torch.equal(timeline.logits, alone.logits)


def test_an_interruption_while_joining_leaves_whole_documents(monkeypatch):
    timeline = joined(tiny_architecture("llama"), SPARSE, DOCUMENTS[:2])
    reader = Timeline(Loaded(timeline.model.module), FULL, context=1000)
    list(reader.sync(np.concatenate([BEGINNING, DOCUMENTS[2]])))
    (expected,) = in_turns(begun(timeline))

    def interrupted(*unused) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(timeline.cache.kept[2], "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            timeline.join(reader, len(BEGINNING))
    assert {layer.length for layer in timeline.cache.kept} == {len(timeline.ids)} == {169}
    assert in_turns(begun(timeline)) == [expected]


def test_the_first_sparsely_read_token_is_known():
    timeline = joined(tiny_architecture("llama"), FULL, DOCUMENTS[:1])
    reader = Timeline(Loaded(timeline.model.module), AttentionSettings("full", read="sparse"), context=1000)
    list(reader.sync(np.concatenate([BEGINNING, DOCUMENTS[2]])))
    timeline.join(reader, len(BEGINNING))
    assert reader.cache.sparse_from == 0
    assert timeline.cache.sparse_from == 129


def test_what_cannot_be_joined_is_known_before():
    windows = Timeline(Loaded(tiny_architecture("gemma3")), FULL, context=100)
    assert "sliding_attention" in (windows.unjoinable or "")
    kept = AttentionSettings("full", cache_dtype="int8")
    few_bits = Timeline(Loaded(tiny_architecture("llama")), kept, context=100)
    assert "few bits" in (few_bits.unjoinable or "")
    split = Timeline(Loaded(tiny_architecture("llama")), FULL, context=100)
    split.model.ranks = object()
    assert "split over GPUs" in (split.unjoinable or "")
    counting = Timeline(Loaded(tiny_architecture("llama")), FULL, context=100)
    counting.model.takes_positions = False
    assert "positions" in (counting.unjoinable or "")
