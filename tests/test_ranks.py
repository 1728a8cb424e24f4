"""A model split over two processes: the same answers as in one, whatever happens between them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from block_weights import some_blocks
from checkpoints import KINDS, write
from conftest import ARCHITECTURES, byte_tokenizer, tiny_architecture
from gguf_sources import VOCABULARY, build
from gguf_writing import write_source

from adamas_cli import models
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Prefill, Token
from adamas_cli.engine.sampling import GuidedSampling, Sampling
from adamas_cli.engine.shared import load_share
from adamas_cli.engine.timeline import Timeline
from adamas_cli.errors import UsageError
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.settings import config_of
from adamas_cli.models.packed_linear import PackedLinear
from adamas_cli.progress import Silent
from adamas_cli.ranks.team import Team
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.entries import entries
from adamas_cli.store.settings import StoreSettings

CPU = torch.device("cpu")
GREEDY = Sampling()
FULL = AttentionSettings("full")
SPARSE = AttentionSettings("adamas", SparseSettings(budget=32))
SETTINGS = {
    "dtype": "float32", "quantization": "none", "threads": 1, "trust_remote_code": False, "device": "cpu",
}  # fmt: skip
CHUNK, ANSWER = 64, 20


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


DOCUMENT, QUESTION = text(300), text(9, 1)
PROMPT = np.concatenate([DOCUMENT, QUESTION])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of kept documents of this process and of those that it starts."""
    with pytest.MonkeyPatch.context() as environment:
        root = tmp_path_factory.mktemp("kept")
        environment.setenv("ADAMAS_DOC_CACHE", str(root))
        yield root


@pytest.fixture(scope="module")
def team(store: Path) -> Iterator[Team]:
    made = Team([CPU, CPU])
    yield made
    made.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny architectures as folders."""
    found = {}
    for name in ARCHITECTURES:
        found[name] = tmp_path_factory.mktemp(name)
        tiny_architecture(name).save_pretrained(found[name])
        byte_tokenizer().save_pretrained(found[name])
    return found


def files_of(path: Path | models.ModelFiles) -> models.ModelFiles:
    return (
        path
        if isinstance(path, models.ModelFiles)
        else models.resolve(str(path), offline=True, progress=Silent())
    )


def alone(path: Path, **others: object) -> models.LoadedModel:
    return models.load(files_of(path), **SETTINGS | others, progress=Silent())


def together(team: Team, path: Path | models.ModelFiles, **others: object) -> models.LoadedModel:
    devices = [CPU] * team.ranks.count
    asked = {"files": files_of(path), "settings": SETTINGS | others, "devices": devices}
    return replace(team.load(load_share, asked), team=team)


def opened(loaded: models.LoadedModel, settings: AttentionSettings = FULL, **options: object) -> Timeline:
    return Timeline(loaded, settings, **{"context": 500, "prefill_chunk": CHUNK, **options})


def said(
    timeline: Timeline, ids: np.ndarray = PROMPT, sampling: Sampling = GREEDY, **options: object
) -> list:
    events = timeline.go_on(ids, sampling, ANSWER, (), **options)
    return [event.id for event in events if isinstance(event, Token)]


def exact_logits(name: str, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return tiny_architecture(name).double()(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1]


@pytest.mark.parametrize("settings", [FULL, SPARSE], ids=["full", "sparse"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_ranks_say_what_one_process_says(team, folders, name, settings):
    one, two = opened(alone(folders[name]), settings), opened(together(team, folders[name]), settings)
    assert said(two) == said(one)
    assert two.step_reason == "each token goes through transformers' forward (its layers are split over GPUs)"
    for timeline in (one, two):
        timeline.return_to(DOCUMENT[:0])
        list(timeline.sync(PROMPT))
    exact = exact_logits(name, PROMPT)
    bound = 4 * (one.logits - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (two.logits - exact).abs().max() <= bound
    assert torch.allclose(two.score(QUESTION, sparse=True), one.score(QUESTION, sparse=True), atol=1e-4)


def test_sparse_reading_is_split_alike(team, folders):
    ids, way = text(1200, 2), replace(SPARSE, read="sparse")
    one, two = (
        opened(loaded, way, context=1300, prefill_chunk=512)
        for loaded in (alone(folders["llama"]), together(team, folders["llama"]))
    )
    for timeline in (one, two):
        list(timeline.sync(ids))
    assert two.read_kind == "sparse"
    assert two.computed is not None
    asked = np.concatenate([ids, QUESTION])
    assert said(two, asked) == said(one, asked)


@pytest.fixture(scope="module")
def in_blocks(tmp_path_factory: pytest.TempPathFactory) -> models.ModelFiles:
    """A file in Q4_K and Q6_K, whose MLPs have three blocks of 256 columns to split."""
    kinds = gguf.GGMLQuantizationType

    def kind(name: str) -> gguf.GGMLQuantizationType | None:
        if "norm" in name:
            return None
        return kinds.Q6_K if name.endswith(("ffn_down.weight", "attn_v.weight")) else kinds.Q4_K

    config = build("llama").config
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 768, 128
    config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers = 4, 2, 2
    model = type(build("llama"))(config)
    with pytest.MonkeyPatch.context() as patched:  # gguf's own quantization has no such blocks
        random = count()
        patched.setattr(
            gguf.quants,
            "quantize",
            lambda numbers, of: some_blocks(of.name, *numbers.shape, seed=next(random)).data.numpy(),
        )
        path = write_source("llama", model, tmp_path_factory.mktemp("blocks"), kind)
    folder = path.parent / "settings"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(GgufFile(path), Silent())))
    return models.ModelFiles("blocks", folder, "blocks", gguf=path)


@pytest.mark.parametrize("quantization", ["packed", "none"])
def test_a_file_in_blocks_is_split_at_their_borders(team, in_blocks, quantization):
    settings = SETTINGS | {"quantization": quantization}
    one = models.load(in_blocks, **settings, progress=Silent())
    two = together(team, in_blocks, quantization=quantization)
    assert two.model.config.intermediate_size == 512
    packed = two.model.model.layers[0].mlp.down_proj.product
    assert isinstance(packed, PackedLinear) == (quantization == "packed")
    prompt = PROMPT % VOCABULARY
    answers = [said(opened(loaded, SPARSE), prompt) for loaded in (one, two)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("kind", "quantization"), [("awq", "packed"), ("fp8", "packed"), ("gptq, shuffled", "none")]
)
def test_a_model_that_comes_quantized_is_split(team, tmp_path, kind, quantization):
    write(tmp_path, tiny_architecture("qwen2"), KINDS[kind])
    settings = {"quantization": quantization}
    one, two = alone(tmp_path, **settings), together(team, tmp_path, **settings)
    product = two.model.model.layers[0].mlp.down_proj.product
    assert product.in_features == 64  # of 96, in blocks of 32
    assert isinstance(product, PackedLinear) == (quantization == "packed")
    assert said(opened(two, SPARSE)) == said(opened(one, SPARSE))


def test_draws_are_those_of_the_first_rank(team, folders):
    one, two = opened(alone(folders["llama"])), opened(together(team, folders["llama"]))
    drawn = Sampling(temperature=0.8, top_k=20, seed=5)
    assert said(two, sampling=drawn) == said(one, sampling=drawn)
    unseeded = said(two, sampling=Sampling(temperature=1.5))
    assert len(unseeded) == ANSWER  # each rank would draw its own, and the sums would not fit

    class Never:
        """A constraint that only this process has."""

        def allowed(self, vocabulary: int) -> np.ndarray:
            return np.arange(vocabulary) == 65

        def take(self, token: int) -> None:
            assert token == 65

    assert said(two, sampling=GuidedSampling.of(GREEDY, begin=Never)) == [65] * ANSWER


def test_a_steered_answer_is_steered_in_all_ranks(team, folders):
    def steer(token: int) -> list[int]:
        told.append(token)
        return [7, 8] if len(told) == 3 else []

    answers = []
    for loaded in (alone(folders["qwen2"]), together(team, folders["qwen2"])):
        told: list[int] = []
        answers.append(said(opened(loaded, SPARSE), steer=steer))
        assert told == answers[-1]
    assert answers[0] == answers[1]
    assert answers[1][3:5] == [7, 8]


def test_forks_and_answers_in_turn_stay_apart(team, folders):
    two, one = opened(together(team, folders["llama"]), SPARSE), opened(alone(folders["llama"]), SPARSE)
    list(two.sync(DOCUMENT))
    asked = [np.concatenate([DOCUMENT, text(9, seed)]) for seed in (1, 2)]
    streams = [two.fork().go_on(ids, GREEDY, ANSWER, ()) for ids in asked]
    found: list[list[int]] = [[], []]
    for _ in range(ANSWER + 2):
        for index, stream in enumerate(streams):
            event = next(stream, None)
            found[index] += [event.id] if isinstance(event, Token) else []
    list(one.sync(DOCUMENT))
    for stream, ids, answer in zip(streams, asked, found, strict=True):
        list(stream)
        assert said(one, ids, keep=False) == answer[:ANSWER]


def test_attention_is_counted_over_all_heads(team, folders):
    counted = []
    for loaded in (alone(folders["llama"]), together(team, folders["llama"])):
        timeline = opened(loaded, SPARSE, counts=True)
        said(timeline)
        counted.append(timeline.attended())
    assert np.allclose(*counted, atol=1e-3)


def test_an_answer_that_is_left_leaves_all_ranks_where_they_were(team, folders):
    two = opened(together(team, folders["gemma3"]))
    expected = said(two)
    two.return_to(DOCUMENT[:0])
    events = two.go_on(PROMPT, GREEDY, ANSWER, (), keep=False)
    while not isinstance(next(events), Token):
        pass
    events.close()
    assert said(two) == expected


def test_an_interrupt_waits_until_all_ranks_are_equal(team, folders):
    two = opened(together(team, folders["llama"]))
    expected = said(two)
    two.return_to(DOCUMENT[:0])
    heard: list[int] = []

    def steer(token: int) -> tuple[int, ...]:
        heard.append(token)
        if len(heard) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return ()

    with pytest.raises(KeyboardInterrupt):
        said(two, steer=steer)
    assert heard == expected[:4]
    assert said(two) == expected


def test_an_error_that_all_ranks_have_ends_none_of_them(team, folders):
    loaded = together(team, folders["llama"])
    with pytest.raises(UsageError, match="the triton backend cannot run"):
        opened(loaded, replace(SPARSE, backend="triton"))
    assert said(opened(loaded)) == said(opened(alone(folders["llama"])))


def test_nothing_computes_outside_a_call_of_all_ranks(team, folders):
    two = opened(together(team, folders["llama"]))
    with pytest.raises(RuntimeError, match="in calls of its timelines only"):
        two.model.forward(torch.tensor([1]), two.cache, two._answering(sparse=False))


def kept(loaded: models.LoadedModel, timeline: Timeline, ids: np.ndarray) -> StoredDocument:
    place = timeline.cache.placement
    return StoredDocument(loaded, ids, timeline.chunk, place, StoreSettings(), ["a"], pytest.fail)


def reused(events: Iterator[Prefill]) -> int:
    return max(event.reused for event in events)


def held(root: Path) -> list[Path]:
    return sorted((root / "blocks").glob("*/*.safetensors"))


def test_each_rank_keeps_and_restores_its_part(team, store, folders):
    loaded = together(team, folders["llama"])
    first = opened(loaded)
    document = kept(loaded, first, DOCUMENT)
    assert reused(first.sync(DOCUMENT, document)) == 0
    document.finish()
    expected = said(first)
    assert {entry.model.partition(" (")[2] for entry in entries(store)} == {"part 1 of 2)", "part 2 of 2)"}

    second = opened(loaded)
    assert reused(second.sync(DOCUMENT, kept(loaded, second, DOCUMENT))) == len(DOCUMENT)
    assert said(second) == expected

    whole = alone(folders["llama"])
    one = opened(whole)
    assert reused(one.sync(DOCUMENT, kept(whole, one, DOCUMENT))) == 0  # another number of ranks reads anew


def test_a_part_that_one_rank_lost_is_read_again_by_all(team, store, folders):
    loaded = together(team, folders["qwen2"])
    there = set(held(store))
    first = opened(loaded)
    document = kept(loaded, first, DOCUMENT)
    list(first.sync(DOCUMENT, document))
    document.finish()
    expected = said(first)
    new = [file for file in held(store) if file not in there]
    owners = {entry.blocks[0]: entry for entry in entries(store) if entry.model.endswith("(part 2 of 2)")}
    (lost,) = [file for file in new if file.stem in owners]
    lost.unlink()
    second = opened(loaded)
    assert reused(second.sync(DOCUMENT, kept(loaded, second, DOCUMENT))) == 0
    assert said(second) == expected
