"""Rotary scaling by length: the length to be reached sets the rotation of a whole text, in any chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from adamas_kernels.contract import SparseSettings
from loaded import Loaded

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models.gguf.rope import by_factors
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.models.rotary import context_of, rotation_of
from adamas_cli.models.shape import read_shape, shape_of
from adamas_cli.store import document
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.settings import StoreSettings

ORIGINAL = 96  # the context that positions were originally trained for
CONTEXT = 512
PAIRS = 8  # in a head
SHORT, LONG = [1.0] * PAIRS, [1.0 + pair for pair in range(PAIRS)]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": ORIGINAL,
}
FULL = AttentionSettings("full")
SPARSE = AttentionSettings("adamas", SparseSettings(budget=1000))  # attends to everything


def tiny(family: str, rope: dict[str, Any], context: int = CONTEXT, **fields: Any) -> Loaded:
    """A random model of two layers with this scaling."""
    name = {"phi3": "Phi3", "llama": "Llama", "phimoe": "Phimoe"}[family]
    config = getattr(transformers, f"{name}Config")(
        **{
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": context,
            "rope_parameters": {"rope_theta": 100.0, **rope},
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **fields,
        }
    )
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return Loaded(model.eval(), ModelFiles("tiny", Path(), "a" * 64))


def phi3(**rope: Any) -> Loaded:
    fields = {"original_max_position_embeddings": ORIGINAL, "sliding_window": 2 * CONTEXT}
    return tiny("phi3", LONGROPE | rope, **fields)


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


@torch.no_grad()
def at_once(loaded: Loaded, ids: np.ndarray) -> torch.Tensor:
    """Logits after the last token, computed by transformers in one pass."""
    return loaded.model(torch.from_numpy(ids.astype(np.int64)).unsqueeze(0)).logits[0, -1]


def read(loaded: Loaded, ids: np.ndarray, chunk: int, context: int, settings=FULL) -> Timeline:
    timeline = Timeline(loaded, settings, context=context, prefill_chunk=chunk)
    list(timeline.sync(ids))
    return timeline


def said(timeline: Timeline, ids: np.ndarray, tokens: int = 8) -> list[int]:
    events = timeline.go_on(ids, Sampling(), tokens, ())
    return [event.id for event in events if isinstance(event, Token)]


@pytest.mark.parametrize("chunk", [40, 97, 200])
@pytest.mark.parametrize("length", [90, 200], ids=["short", "long"])
def test_chunks_turn_as_one_pass_does(length, chunk):
    loaded, ids = phi3(), text(length)
    timeline = read(loaded, ids, chunk, length)
    torch.testing.assert_close(timeline.logits, at_once(phi3(), ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [FULL, SPARSE], ids=["full", "sparse"])
def test_a_short_document_turns_as_its_long_answer_needs(settings):
    ids = text(80)
    always_long = phi3(short_factor=LONG)
    with_answer = read(phi3(), ids, 64, len(ids) + 40, settings)
    assert said(with_answer, ids, 40) == said(read(always_long, ids, 64, 120, settings), ids, 40)
    alone = read(phi3(), ids, 64, len(ids))
    assert not torch.allclose(alone.logits, at_once(always_long, ids), atol=1e-2)


def test_one_that_grows_long_is_read_again_and_no_timeline_disturbs_another():
    loaded, ids, other = phi3(), text(150), text(90, seed=1)
    growing = read(loaded, ids[:80], 64, 90)
    short = read(loaded, other[:60], 64, 90)
    assert not growing.reach(ORIGINAL)
    assert (growing.outgrows(200), short.outgrows(ORIGINAL)) == (True, False)
    long = said(growing, ids)
    assert said(short, other[:80]) == said(read(phi3(), other[:80], 500, 90), other[:80])
    assert long == said(read(phi3(), ids, 500, 200), ids)
    assert growing.turned == ORIGINAL + 1
    assert growing.fork().turned == growing.turned


def test_what_is_no_pass_turns_as_in_transformers():
    loaded, ids = phi3(), text(200)
    read(loaded, ids, 64, 300)
    for length in (50, 200, 60):
        torch.testing.assert_close(at_once(loaded, ids[:length]), at_once(phi3(), ids[:length]))


def test_a_kept_document_serves_no_text_that_turns_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path))
    monkeypatch.setattr(document, "block_tokens", lambda chunk, token_bytes: 32)
    loaded, ids = phi3(), text(80)

    def reused(context: int) -> int:
        timeline = Timeline(loaded, FULL, context=context, prefill_chunk=32)
        placement = timeline.cache.placement
        notes: list[str] = []
        kept = StoredDocument(
            loaded, ids, 32, placement, StoreSettings(), ["a"], notes.append, timeline.turned
        )
        first, *_ = timeline.sync(ids, kept)
        kept.finish()
        assert not notes
        return first.reused

    assert [reused(context) for context in (90, 96, 97, 300, 90)] == [0, 80, 0, 80, 80]


def test_dynamic_scaling_goes_by_the_length_that_is_reached():
    rope = {"rope_type": "dynamic", "factor": 4.0}
    loaded, ids = tiny("llama", rope, ORIGINAL), text(240)
    for length in (240, 120, 60, 96):  # multiples of a step, so that transformers uses the same length
        one = read(loaded, ids[:length], 50, length).logits
        expected = at_once(tiny("llama", rope, ORIGINAL), ids[:length])
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    read(loaded, ids, 50, 240)
    torch.testing.assert_close(at_once(loaded, ids[:120]), at_once(tiny("llama", rope, ORIGINAL), ids[:120]))
    rotation = rotation_of(lambda name: getattr(loaded.model.config, name, None))
    assert [rotation.reach(tokens) for tokens in (96, 97, 120, 121)] == [0, 120, 120, 144]
    assert context_of(lambda name: getattr(loaded.model.config, name, None)) == 4 * ORIGINAL


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_other_scaling_is_the_same_at_any_length(rope):
    loaded, ids = tiny("llama", rope), text(200)
    for context in (200, 400):
        timeline = read(loaded, ids, 60, context)
        torch.testing.assert_close(timeline.logits, at_once(loaded, ids), rtol=1e-4, atol=1e-4)
        assert timeline.turned is None


def test_the_scale_of_phimoe_goes_by_that_length_too():
    rope = LONGROPE | {"short_mscale": 1.0, "long_mscale": 1.7}
    fields = {"num_local_experts": 2, "original_max_position_embeddings": ORIGINAL}
    loaded, ids = tiny("phimoe", rope, **fields), text(150)
    timeline = read(loaded, ids, 60, 150)
    torch.testing.assert_close(timeline.logits, at_once(loaded, ids), rtol=1e-4, atol=1e-4)


OLD = {"max_position_embeddings": 1000, "original_max_position_embeddings": 100}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OLD | {"model_type": "phi3", "rope_scaling": {"type": "su"}}, [0, 101, 101]),
        (OLD | {"model_type": "phi3", "rope_scaling": {"type": "yarn"}}, [0, 101, 101]),
        (OLD | {"model_type": "phi3", "rope_parameters": {"rope_type": "longrope"}}, [0, 101, 101]),
        (OLD | {"model_type": "qwen3", "rope_scaling": {"rope_type": "yarn"}}, [None] * 3),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, [0, 125, 300]),
        (
            {
                "max_position_embeddings": 1000,
                "rope_parameters": {
                    "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 200},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            [0, 0, 201],
        ),
        ({"max_position_embeddings": 1000, "rope_scaling": None}, [None] * 3),
    ],
)
def test_every_spelling_of_a_config_is_read(config, expected):
    rotation = rotation_of(config.get)
    assert [rotation.reach(tokens) for tokens in (100, 110, 300)] == expected


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"type": "dynamic", "factor": 2.5}, 2500),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 800}, 3200),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}, 1000),
        ({"type": "linear", "factor": 4.0}, 1000),
    ],
)
def test_the_context_is_as_long_as_scaling_makes_it(rope, context):
    assert context_of({"max_position_embeddings": 1000, "rope_scaling": rope}.get) == context


def test_a_window_as_long_as_the_context_is_none(tmp_path):
    loaded = phi3()
    timeline = read(loaded, text(200), 64, 200, SPARSE)
    assert timeline.attention_kind == "adamas"
    assert timeline.cache.kinds == {"full_attention"}
    loaded.model.config.save_pretrained(tmp_path)
    assert read_shape(tmp_path).windows == (None, None)
    fields = loaded.model.config.to_dict()
    assert shape_of(fields | {"sliding_window": CONTEXT - 1}).windows == (CONTEXT - 1,) * 2


def test_factors_of_a_gguf_file_are_those_for_the_length():
    keys = {"rope_parameters": by_factors(SHORT, LONG, ORIGINAL, 1.0), "max_position_embeddings": CONTEXT}
    assert rotation_of(keys.get).reach(CONTEXT) == ORIGINAL + 1
    same = keys | {"rope_parameters": by_factors(LONG, LONG, ORIGINAL, 1.0)}
    assert rotation_of(same.get).reach(CONTEXT) is None


def test_plan_says_which_factors_are_used(tmp_path):
    phi3().model.config.save_pretrained(tmp_path)
    rotation = read_shape(tmp_path).rotation
    assert rotation.line(96) == "longrope positions: short factors, for up to 96 tokens"
    assert rotation.line(97) == "longrope positions: long factors, beyond 96 tokens"
