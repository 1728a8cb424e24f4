"""Every family of decoders in transformers: answers are right, and what is not served is refused in time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from adamas_kernels.triton.backend import TritonBackend
from families import (
    FAMILIES,
    LIKE_THEM,
    SEEING,
    UNTRIED,
    VOCABULARY,
    Family,
    seeing_config,
    tiny_config,
    tiny_family,
)
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from adamas_cli.cache.mode import Mode
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.errors import ModelUnavailableError
from adamas_cli.forecast.calibration import calibrate
from adamas_cli.models import LoadedModel, ModelFiles, load
from adamas_cli.models.families import BESIDES_TEXT, RESTARTING, UNANSWERING
from adamas_cli.planning.choice import AUTO_MIN_CONTEXT
from adamas_cli.planning.decision import decide
from adamas_cli.planning.facts import config_facts, file_facts, machine_facts
from adamas_cli.progress import Silent
from adamas_cli.settings import DecodingSettings, ModelSettings
from adamas_cli.store import document as stored_document
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.settings import StoreSettings

FULL = AttentionSettings("full")
WHOLE = AttentionSettings("adamas", SparseSettings(budget=1000))  # sparse steps that attend to everything
DOCUMENT, QUESTION, ANSWER = 100, 4, 3  # tokens
CHUNK, SHORT_CHUNK, BLOCK = 40, 7, 64
LONG = AUTO_MIN_CONTEXT["cpu"] + 900  # a context at which a CPU decodes sparsely
HERE = sorted(set(FAMILIES) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
RUNNING = [name for name in HERE if not FAMILIES[name].refused and FAMILIES[name].text is None]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from several threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_family_of_transformers_has_a_row() -> None:
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= set(FAMILIES)
    assert {family.text for family in FAMILIES.values() if family.text} <= set(FAMILIES)


def test_every_family_that_sees_or_hears_was_looked_at() -> None:
    """Each answers by its text part, or is refused before weights load."""
    known = {name for mapping, _ in BESIDES_TEXT for name in getattr(modeling_auto, mapping, {})}
    looked_at = {*FAMILIES, *SEEING, *LIKE_THEM, *UNTRIED, *UNANSWERING}
    assert not known - looked_at
    assert not UNTRIED & (LIKE_THEM | UNANSWERING.keys())


def test_a_step_over_latents_is_that_of_the_reference(tmp_path: Path) -> None:
    """The kernel that graphs replay, in Triton's interpreter."""
    model = Model.of(loaded(tiny_family("deepseek_v2"), tmp_path))
    found = []
    for dense in (None, TritonBackend()):
        timeline = read(opened(loaded(model.module, tmp_path), FULL))
        mode = Mode(answers=True, dense=dense)
        timeline.cache.begin_answer(mode)
        found.append([model.forward(torch.tensor([token]), timeline.cache, mode) for token in (5, 9)])
    assert_near(torch.stack(found[1]), torch.stack(found[0]))


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, VOCABULARY, count).astype(np.int32)


IDS = tokens(DOCUMENT + QUESTION)


def loaded(model: PreTrainedModel, directory: Path) -> LoadedModel:
    files = ModelFiles("tiny", directory, "a" * 64)
    return LoadedModel(model, files, torch.device("cpu"), torch.float32, 4096, ())


def opened(model: LoadedModel, attention: AttentionSettings, chunk: int = CHUNK) -> Timeline:
    return Timeline(model, attention, context=len(IDS) + 20, prefill_chunk=chunk)


def read(timeline: Timeline, stored: Any = None) -> Timeline:
    for _ in timeline.read(IDS[:DOCUMENT], stored):
        pass
    return timeline


@torch.no_grad()
def plain(model: PreTrainedModel) -> torch.Tensor:
    """The model's own logits after each token of the question, [n, vocabulary], without a cache."""
    found = model(torch.from_numpy(IDS.astype(np.int64)).unsqueeze(0), use_cache=False)
    return found.logits[0, DOCUMENT:]


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def said(timeline: Timeline, question: np.ndarray) -> list[int]:
    return [e.id for e in timeline.answer(question, Sampling(), ANSWER, ()) if isinstance(e, Token)]


@pytest.mark.parametrize("name", RUNNING)
def test_a_family_answers_as_transformers_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[name]
    module = tiny_family(name)
    expected = plain(module)
    assert expected.std(0).max() > 0.01  # earlier tokens make a difference
    model = loaded(module, tmp_path)
    timeline = read(opened(model, FULL))
    assert_near(timeline.score(IDS[DOCUMENT:], sparse=False), expected)
    found = said(timeline, IDS[DOCUMENT:])  # rewinds, reads the question, and steps
    assert found[0] == int(expected[-1].argmax())
    as_is_planned(family, model)
    if family.reason is None:
        sparse = read(opened(model, WHOLE))
        assert any(layer.coded and layer.length for layer in sparse.cache.kept if layer.coded)
        assert_near(sparse.score(IDS[DOCUMENT:], sparse=True), expected)
    if family.deep:
        assert_near(read(opened(model, FULL, SHORT_CHUNK)).score(IDS[DOCUMENT:], sparse=False), expected)
        several_questions(model, timeline)
        kept_and_restored(model, timeline, tmp_path, monkeypatch)


def several_questions(model: LoadedModel, timeline: Timeline) -> None:
    for seed in (1, 2):
        assert said(timeline, tokens(QUESTION, seed)) == said(
            read(opened(model, FULL)), tokens(QUESTION, seed)
        )


def kept_and_restored(
    model: LoadedModel, cold: Timeline, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document from disk gives the same answers as one that was read."""
    if not cold.keeps_documents:
        return
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(directory / "store"))
    monkeypatch.setattr(stored_document, "block_tokens", lambda chunk, token_bytes: BLOCK)
    for known in (0, DOCUMENT):
        timeline = opened(model, FULL)
        kept = StoredDocument(
            model, IDS[:DOCUMENT], CHUNK, timeline.cache.placement, StoreSettings(), ["a.txt"], print
        )
        first, *_ = timeline.read(IDS[:DOCUMENT], kept)
        kept.finish()
        assert first.reused == known
        assert_near(timeline.score(IDS[DOCUMENT:], sparse=False), cold.score(IDS[DOCUMENT:], sparse=False))


@pytest.mark.parametrize("name", sorted(RESTARTING))
def test_a_chunk_is_one_pass_where_transformers_would_begin_anew(name: str, tmp_path: Path) -> None:
    model, passes = loaded(tiny_family(name), tmp_path), []
    timeline = opened(model, FULL)
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    read(timeline)
    assert len(passes) == -(-DOCUMENT // CHUNK)


def as_is_planned(family: Family, model: LoadedModel) -> None:
    """The engine runs what is planned from the config file alone, without weights."""
    directory = model.files.directory
    model.model.config.save_pretrained(directory)
    save_file({}, directory / "model.safetensors")
    facts, machine = file_facts(model.files), machine_facts("cpu")
    assert facts.shape == Model.of(model).shape
    loading = ModelSettings(device="cpu", dtype="float32")
    planned = decide(facts, machine, loading, DecodingSettings(), LONG).attention
    run = Timeline(model, AttentionSettings.of(DecodingSettings()), context=LONG)
    assert (planned.kind, planned.chunk) == (run.attention_kind, run.chunk)
    assert planned.kind == ("adamas" if family.reason is None and not facts.shape.latent else "full")
    asked = DecodingSettings(attn="adamas")
    if family.reason is None:
        assert decide(facts, machine, loading, asked, LONG).attention.kind == "adamas"
    else:
        with pytest.raises(ModelUnavailableError, match=family.reason) as told:
            decide(facts, machine, loading, asked, LONG)
        with pytest.raises(ModelUnavailableError) as raised:
            Timeline(model, AttentionSettings.of(asked), context=LONG)
        assert raised.value.message == told.value.message


@pytest.mark.parametrize("name", [name for name in HERE if FAMILIES[name].refused])
def test_a_family_that_cannot_answer_is_refused_before_weights_are_loaded(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{name}"}}')
    files = ModelFiles("tiny", tmp_path, "")
    with pytest.raises(ModelUnavailableError, match=FAMILIES[name].reason) as told:
        file_facts(files)
    with pytest.raises(ModelUnavailableError) as raised:
        load(files, device="cpu", progress=Silent())
    assert raised.value.message == told.value.message


@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_sees_answers_by_its_text_part(name: str, tmp_path: Path) -> None:
    config = seeing_config(name)
    torch.manual_seed(0)
    module = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    module.save_pretrained(tmp_path)
    expected = plain(module)
    model = load(ModelFiles("tiny", tmp_path, "b" * 64), device="cpu", dtype="float32", progress=Silent())
    assert not any("vision" in part or "visual" in part for part, _ in model.model.named_parameters())
    assert_near(read(opened(model, FULL)).score(IDS[DOCUMENT:], sparse=False), expected)
    sparse = read(opened(model, WHOLE))
    assert_near(sparse.score(IDS[DOCUMENT:], sparse=True), expected)
    facts, built = file_facts(model.files), config_facts(config, tmp_path)
    assert facts.shape == Model.of(model).shape
    assert built.weights.bytes(1) == sum(parameter.numel() for parameter in model.model.parameters())
    # A file also has buffers, such as the corrections of a router.
    assert facts.weights.bytes(1) == sum(numbers.numel() for numbers in model.model.state_dict().values())


@pytest.mark.parametrize("name", ["deepseek_v32", "llama4_text", "nanochat"])
def test_models_that_read_their_weights_are_packed_too(name: str, tmp_path: Path) -> None:
    """Answers of packed weights are close to those of the original numbers."""
    module = tiny_family(name)
    expected = plain(module)
    module.save_pretrained(tmp_path)
    model = load(
        ModelFiles("tiny", tmp_path, "c" * 64),
        device="cpu",
        quantization="packed",
        dtype="float32",
        progress=Silent(),
    )
    assert model.quantization == "packed"
    found = read(opened(model, FULL)).score(IDS[DOCUMENT:], sparse=False)
    assert torch.nn.functional.cosine_similarity(found, expected).mean() > 0.9


@pytest.mark.parametrize("name", ["gemma3n_text", "qwen3_vl"])
def test_a_plan_does_without_times_where_a_config_cannot_be_cut(name: str, tmp_path: Path) -> None:
    config = tiny_config(name) if name in FAMILIES else CONFIG_MAPPING[name]()
    config.save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    files, said = ModelFiles("tiny", tmp_path, "d" * 64), Silent()
    model = file_facts(files)
    settings = ModelSettings(device="cpu", dtype="float32")
    decision = decide(model, machine_facts("cpu"), settings, DecodingSettings(attn="full"), 100)
    found = calibrate(
        files, model.weights, decision, attention=FULL, threads=1, trust_remote_code=False, progress=said
    )
    assert found is None
