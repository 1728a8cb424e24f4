"""Decode steps recorded from a model and replayed, and `adamas bench --kernels -m MODEL --text FILE`."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adamas_kernels.contract import LayerCache, SparseSettings
from adamas_kernels.torch.backend import TorchBackend
from conftest import ARCHITECTURES, tiny_architecture
from told import raises_told

from adamas_cli.errors import UsageError
from adamas_cli.lab.bench import clock, recording
from adamas_cli.lab.bench.clock import turn_microseconds
from adamas_cli.lab.bench.composing import FIRST_TOKENS, Composer, documents_needed
from adamas_cli.lab.bench.document import text_documents
from adamas_cli.lab.bench.kernels import LAYERS, Shape
from adamas_cli.lab.bench.pulse import Pulse
from adamas_cli.lab.bench.recorded import RecordedBench, Source
from adamas_cli.lab.bench.recording import record
from adamas_cli.lab.bench.replay import Replay
from adamas_cli.lab.bench.traces import Trace, random_traces, with_one_length
from adamas_cli.models import LoadedModel, ModelFiles
from adamas_cli.planning.choice import budget_for

STEPS = 8
CPU = torch.device("cpu")
SETTINGS = SparseSettings(budget=24)
SMALL = ["--kernels", "--device", "cpu", "--quantization", "none", "--dtype", "float32", "-r", "1"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Commands record 8 steps, and time full attention no longer than needed."""
    monkeypatch.setattr(recording, "STEPS", STEPS)
    monkeypatch.setattr(clock, "CPU_SECONDS", 0.0)


def recorded(name: str = "llama", context: int = 100, steps: int = 20, seed: int = 0, dense_layers: int = 2):
    """The model, its tokens and its traces."""
    model = tiny_architecture(name)
    loaded = LoadedModel(model, ModelFiles("tiny", Path(), ""), CPU, torch.float32, 4096, ())
    ids = np.random.default_rng(seed).integers(0, 256, context + steps)
    traces = record(
        loaded,
        ids,
        steps,
        backend=TorchBackend(),
        settings=SETTINGS,
        dense_layers=dense_layers,
        chunk=None,
        pulse=Pulse(lambda line: None, ""),
    )
    return model, ids, traces


def copied(cache: LayerCache) -> LayerCache:
    """A separate cache with the same contents."""
    names = ("keys", "values", "codes", "scales", "value_sum", "length")
    return replace(cache, **{name: getattr(cache, name).clone() for name in names})


def seen_attention(model, ids: np.ndarray, layers: list[int]) -> list[torch.Tensor]:
    """Outputs of each layer's attention in the model's own implementation, [tokens, H x D]."""
    found: dict[int, torch.Tensor] = {}
    hooks = [
        model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(
            lambda module, given, layer=layer: found.__setitem__(layer, given[0][0])
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(torch.from_numpy(ids).unsqueeze(0))
    for hook in hooks:
        hook.remove()
    return [found[layer] for layer in layers]


def full_attention(trace: Trace, step: int) -> torch.Tensor:
    """Attention of one recorded step over everything before it, in float64: [H x D]."""
    groups = trace.queries.shape[2] // trace.keys.shape[2]

    def all_of(cached, new):
        """[H, S, D]"""
        added = new[: step + 1, 0, :, 0].transpose(0, 1)
        return torch.cat([cached[0, :, : trace.context], added], 1).double().repeat_interleave(groups, 0)

    keys, values = all_of(trace.cache.keys, trace.keys), all_of(trace.cache.values, trace.values)
    scores = keys @ trace.queries[step, 0].double().transpose(1, 2) * trace.scaling
    return (scores.softmax(1) * values).sum(1).flatten()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_recorded_gives_the_attention_of_the_model_itself(name):
    model, ids, traces = recorded(name, dense_layers=1)
    assert [trace.layer for trace in traces] == ([1, 3] if name == "gemma3" else [1, 2, 3])
    assert {trace.steps for trace in traces} == {20}
    for trace, expected in zip(traces, seen_attention(model, ids, [t.layer for t in traces]), strict=True):
        for step in (0, 7, 19):
            found = full_attention(trace, step)
            torch.testing.assert_close(found.float(), expected[100 + step], rtol=1e-4, atol=1e-5)


def test_recording_leaves_the_caches_where_the_text_ends():
    _, _, traces = recorded()
    assert all(int(trace.cache.length) == trace.context == 100 for trace in traces)
    assert len({id(trace.cache.length) for trace in traces}) == 1
    for trace in traces:
        total = trace.cache.values[:, :, :100].sum(2)
        torch.testing.assert_close(trace.cache.value_sum, total, rtol=1e-4, atol=1e-4)


def test_a_replay_takes_the_steps_that_the_backend_takes_in_their_order():
    _, _, traces = recorded()
    backend = TorchBackend()
    caches = [copied(trace.cache) for trace in traces]
    expected = []
    for step in range(20):
        for trace, cache in zip(traces, caches, strict=True):
            given = (trace.queries[step], trace.keys[step], trace.values[step])
            expected.append(backend.decode_step(*given, cache, trace.scaling, SETTINGS)[0])
            cache.length += 1
    replay = Replay(backend, traces, SETTINGS)
    for _ in range(2):  # the second starts from what the first has left
        found = [(step, layer, out.clone()) for step, layer, out in replay.run()]
        assert [place[:2] for place in found] == [(step, layer) for step in range(20) for layer in range(2)]
        assert all(torch.equal(out, one) for (_, _, out), one in zip(found, expected, strict=True))


def test_a_replay_is_timed_step_by_step_and_ends_where_it_began():
    _, _, traces = recorded(steps=5)
    before = [copied(trace.cache) for trace in traces]
    times = Replay(TorchBackend(), traces, SETTINGS).microseconds(2)
    assert times.shape == (2, 5)
    assert (times > 0).all()
    for trace, cache in zip(traces, before, strict=True):
        assert torch.equal(trace.cache.value_sum, cache.value_sum)
        assert torch.equal(trace.cache.length, cache.length)


def test_calls_take_turns_in_every_round_and_once_more_to_warm_up():
    log: list[object] = []
    calls = [lambda: log.append("a"), lambda: log.append("b")]
    times = turn_microseconds(log.append, calls, 3, 2, CPU)
    assert times.shape == (2, 3)
    assert log == [0, "a", "b", 1, "a", "b", 2, "a", "b"] * 3


def test_on_a_gpu_gaps_between_graphs_are_not_counted(monkeypatch):
    """Calls of 10 and 30 us in separate graphs, 4 us apart; in one graph they take 40 us."""
    lasts = {"short": 10.0, "long": 30.0}
    log: list[object] = []
    running: list[float] = []

    def captured(call):
        running.clear()
        call()
        return list(running)

    calls = [lambda name=name: running.append(lasts[name]) for name in lasts]
    monkeypatch.setattr(clock, "_captured", captured)
    monkeypatch.setattr(
        clock, "_between", lambda graphs: [sum(graph) + (4 if len(graphs) > 1 else 0) for graph in graphs]
    )
    times = turn_microseconds(log.append, calls, 3, 2, torch.device("cuda"))
    assert times.tolist() == [[10.0] * 3, [30.0] * 3]
    assert log == [0, *([0, 1, 2] * 2) * 3]  # each pass goes through the rounds twice


class Rereading(TorchBackend):
    """Reports for every fifth step that one of its queries was re-read."""

    def __init__(self) -> None:
        self.steps = 0

    def decode_step(self, *args):
        self.steps += 1
        return super().decode_step(*args)

    def reread(self):
        return torch.tensor([0, 3 if self.steps % 5 == 0 else 0, 0], dtype=torch.int32)


def test_steps_off_the_ordinary_path_are_those_that_the_backend_tells_of():
    _, _, traces = recorded(steps=5)
    slower = Replay(Rereading(), traces, SETTINGS).slower()
    assert slower is not None
    assert slower.T.flatten().tolist() == [step % 5 == 4 for step in range(10)]
    assert Replay(TorchBackend(), traces, SETTINGS).slower() is None


def test_random_steps_have_the_shape_of_the_recorded_ones():
    _, _, traces = recorded()
    random = random_traces(traces, TorchBackend(), SETTINGS)
    assert len(random) == len(traces)
    for one, other in zip(random, traces, strict=True):
        assert (one.shape, one.context, one.steps) == (other.shape, other.context, other.steps)
        assert not torch.equal(one.queries[0], one.queries[1])
        assert one.cache.length is random[0].cache.length


def test_rows_say_what_was_measured():
    _, _, traces = recorded(steps=5)
    said: list[str] = []
    bench = RecordedBench(Rereading(), SETTINGS, "a device", 1, said.append)
    (first, by_layer), (second, _) = bench.measure(Source("tiny", "a text"), traces, [16, 32])
    assert (first.budget, second.budget) == (16, 32)
    assert (first.shape, first.context, first.layers, first.steps) == ("4/2x16", 100, 2, 5)
    assert (first.model, first.text, first.built, first.dtype) == ("tiny", "a text", None, "float32")
    assert first.ratio == pytest.approx(first.dense / first.step)
    assert first.to_random == pytest.approx(first.step / first.random)
    assert first.worst == max(row.worst for row in by_layer) >= first.median
    assert first.slower == pytest.approx(0.2)
    assert [(row.layer, row.slower) for row in by_layer] == [(2, 0.2), (3, 0.2)]
    assert all(row.spread == pytest.approx(row.worst / row.median) for row in by_layer)
    assert any("replaying at budget 16" in line for line in said)


@pytest.mark.parametrize(
    ("context", "read", "expected"),
    [(50, 100, 1), (100, 100, 1), (101, 100, 2), (184, 100, 2), (185, 100, 3), (131072, 32704, 5)],
)
def test_a_context_takes_as_many_documents_as_it_is_long(context, read, expected):
    assert FIRST_TOKENS == 16
    assert documents_needed(context, read) == expected


def numbered(document: int, layers: int = 3, read: int = 40, steps: int = 2) -> list[Trace]:
    """Traces of 6/2 heads of 16 whose every coordinate tells its origin: document, layer, head, token (for
    queries, the query head instead of the KV head).
    """

    def numbers(layer: int, heads: int, tokens: range) -> torch.Tensor:
        """[1, heads, tokens, 16]"""
        head, token = torch.arange(heads)[:, None], torch.tensor(tokens)[None]
        told = document * 1e6 + layer * 1e5 + head * 1e4 + token
        noise = torch.linspace(0, 0.4, 16)
        return (told[None, ..., None] + noise).double()

    traces = []
    for layer in range(layers):
        keys = numbers(layer, 2, range(read + steps))
        cache = LayerCache(keys, -keys, *[torch.empty(0)] * 3, None, torch.tensor([read], dtype=torch.int32))
        behind = range(read, read + steps)
        queries, new = (
            numbers(layer, heads, behind).permute(2, 0, 1, 3).unsqueeze(3).contiguous() for heads in (6, 2)
        )
        traces.append(Trace(layer, cache, read, queries, new, -new, 0.25))
    return with_one_length(traces)


def told(numbers: torch.Tensor) -> list[int]:
    """The number that `numbered` put into the first coordinate of each row."""
    return numbers[..., 0].int().flatten().tolist()


def test_built_layers_take_recorded_heads_whole_and_in_turn():
    documents = [numbered(0), numbered(1)]
    composer = Composer(documents, Shape(8, 4, 16))
    layers = composer.layers(2, 40, TorchBackend(), SETTINGS)
    assert [layer.shape for layer in layers] == [Shape(8, 4, 16)] * 2
    # Document, layer, KV head: the layers of head 0, then of head 1, with documents in turn; from the seventh
    # on the same heads again, of the other document.
    places = [(0, 0, 0), (1, 1, 0), (0, 2, 0), (1, 0, 1), (0, 1, 1), (1, 2, 1), (1, 0, 0), (0, 1, 0)]
    keys = torch.cat([layer.cache.keys for layer in layers], 1)
    assert told(keys[0, :, 0]) == [d * 10**6 + x * 10**5 + h * 10**4 for d, x, h in places]
    assert told(keys[0, 0, :40]) == list(range(40))
    assert torch.equal(layers[0].cache.values[:, :, :40], -layers[0].cache.keys[:, :, :40])
    new = torch.cat([layer.keys for layer in layers], 2)
    assert told(new[1, 0, :, 0]) == [d * 10**6 + x * 10**5 + h * 10**4 + 41 for d, x, h in places]
    # Two of each head's three queries; the second time starting at the third.
    queries = torch.cat([layer.queries for layer in layers], 2)
    pairs = [(0, 1)] * 3 + [(3, 4)] * 3 + [(2, 0)] * 2
    expected = [
        d * 10**6 + x * 10**5 + q * 10**4 + 40
        for (d, x, _), pair in zip(places, pairs, strict=True)
        for q in pair
    ]
    assert told(queries[0, 0, :, 0]) == expected
    assert int(layers[1].cache.length) == 40
    assert layers[0].cache.length is layers[1].cache.length


def test_longer_contexts_are_put_together_of_documents():
    documents = [numbered(0), numbered(1), numbered(2)]
    layer = Composer(documents, Shape(3, 1, 16)).layers(2, 80, TorchBackend(), SETTINGS)[1]
    # Its own document is the second, without its first 16 tokens. Before it comes the first document, also
    # without them, and before that as much of the third's beginning as there is room for.
    own = 10**6 + 10**5
    expected = [own + 10**6 + token for token in range(32)]
    expected += [own - 10**6 + token for token in range(16, 40)]
    expected += [own + token for token in range(16, 40)]
    assert told(layer.cache.keys[0, 0, :80]) == expected
    assert told(layer.keys[0]) == [own + 40]


@pytest.mark.parametrize(
    ("shape", "message"),
    [(Shape(4, 2, 64), "the model's heads have 16 coordinates"), (Shape(8, 2, 16), "4 queries to a KV head")],
)
def test_heads_that_the_model_does_not_have_are_refused(shape, message):
    with pytest.raises(UsageError, match=message):
        Composer([numbered(0)], shape)


def test_what_is_built_is_told_in_a_line():
    line = Composer([numbered(0), numbered(1)], Shape(12, 12, 16)).about(60, 4)
    assert line.startswith("12/12x16 at 60: 4 layers of 12 KV heads each, taken in turn from 6 recorded ones")
    assert "1 of the 3 queries of each; 2 documents of 40 tokens; each KV head used up to 8 times" in line
    assert "each context is 2 of them" in line


@pytest.fixture
def texts(tmp_path):
    """Two texts of different bytes, one token per byte."""
    paths = []
    for name, sentence in (("one.txt", "It is a truth. "), ("two.txt", "No one who had ever seen. ")):
        paths.append(tmp_path / name)
        paths[-1].write_text(sentence * 40, encoding="utf-8")
    return paths


def test_documents_are_the_texts_in_turn_and_then_what_follows(texts, tiny_model):
    documents = text_documents(texts, tiny_model, 100, 3)
    assert [document.text for document in documents] == ["one.txt", "two.txt", "one.txt"]
    assert [len(document.ids) for document in documents] == [100] * 3
    one, two = text_documents(texts[:1], tiny_model, 200, 1)[0].ids, documents[1].ids
    assert np.array_equal(np.concatenate([documents[0].ids, documents[2].ids]), one)
    assert not np.array_equal(one[:100], two)
    with raises_told(UsageError, match=r"one\.txt: it has 600 tokens, and 700 are needed.* more --text"):
        text_documents(texts, tiny_model, 350, 3)


def test_rows_come_before_those_by_layer(bench, tiny_model, texts):
    arguments = [*SMALL, "-m", tiny_model, "--text", texts[0], "--len", "128,300", "--format", "jsonl"]
    code, out, err = bench(*arguments)
    assert code == 0, err
    about, *others = map(json.loads, out.splitlines())
    assert (about["steps"], about["backend"]) == (STEPS, "cpu")
    rows = [row for row in others if "ratio" in row]
    assert others[: len(rows)] == rows
    assert [(row["context"], row["budget"]) for row in rows] == [
        (context, budget) for context in (128, 300) for budget in (128, budget_for(context + STEPS))
    ]
    assert all(row["text"] == "one.txt" and row["built"] is None and row["slower"] is None for row in rows)
    assert [row["layer"] for row in others[len(rows) :]] == [2, 3] * 4
    assert "one.txt, 308 tokens: reading" in err


def test_the_tables_are_markdown(bench, tiny_model, texts):
    arguments = ["-m", tiny_model, "--text", texts[0], "--text", texts[1], "--len", "128", "--budget", "32"]
    code, out, err = bench(*SMALL, *arguments)
    assert code == 0, err
    about, blank, head, _, first, second, gap, layer_head, _, *by_layer = out.splitlines()
    assert f"{STEPS} teacher-forced steps" in about
    assert (blank, gap) == ("", "")
    assert head.startswith(
        "| text | heads | context | budget | attended | full, us | by | sparse, us | ratio | median |"
    )
    assert [row.split(" | ")[0] for row in (first, second)] == ["| one.txt", "| two.txt"]
    assert first.split(" | ")[-1] == "- |"
    assert layer_head.startswith("| text | heads | context | budget | layer | median, us |")
    assert [row.split(" | ")[4] for row in by_layer] == ["2", "3"] * 2


def test_other_shapes_are_built_of_all_texts(bench, tiny_model, texts):
    given = [word for path in texts for word in ("--text", path)]
    arguments = ["-m", tiny_model, *given, "--len", "128", "--heads", "6/6x16,8/4x16", "--budget", "32"]
    code, out, err = bench(*SMALL, *arguments, "--format", "csv")
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["shape"], row["layers"]) for row in rows] == [
        ("6/6x16", str(LAYERS)),
        ("8/4x16", str(LAYERS)),
    ]
    assert {row["text"] for row in rows} == {"one.txt, two.txt"}
    assert "2 documents of 128 tokens" in rows[0]["built"]
    _, out, _ = bench(*SMALL, *arguments)
    told_first, told_second = (line for line in out.splitlines() if "layers of" in line)
    assert (told_first, told_second) == (rows[0]["built"], rows[1]["built"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-m", "MODEL"], 2, "give both -m and --text, or neither"),
        (["--text", "TEXT"], 2, "give both -m and --text, or neither"),
        (["-m", "MODEL", "--text", "TEXT", "--len", "1k"], 2, "it has 600 tokens, and 1,032 are needed"),
        (["-m", "MODEL", "--text", "TEXT", "--len", "4k"], 4, "--len 4,096 with 8 steps needs 4,104 tokens"),
        (["-m", "MODEL", "--text", "TEXT", "--len", "64", "--dense-layers", "4"], 2, "no layer of the model"),
        (
            ["-m", "MODEL", "--text", "TEXT", "--len", "64", "--heads", "4/2x64"],
            2,
            "heads have 16 coordinates",
        ),
        (["-m", "MODEL", "--text", "/nowhere", "--len", "64"], 2, "--text /nowhere: No such file"),
    ],
)
def test_mistakes_are_told_in_a_line(bench, tiny_model, texts, arguments, code, message):
    places = {"MODEL": tiny_model, "TEXT": texts[0]}
    found, out, err = bench(*SMALL, *(places.get(word, word) for word in arguments))
    assert found == code
    assert message in err
    assert "Traceback" not in err
    assert "ratio" not in out.splitlines()[4:]


def test_a_model_in_the_environment_does_not_ask_for_a_recording(bench, tiny_model, monkeypatch):
    monkeypatch.setenv("ADAMAS_MODEL", str(tiny_model))
    arguments = ["--kernels", "--heads", "4/2x16", "--len", "64", "--no-break-even", "--device", "cpu"]
    code, out, err = bench(*arguments)
    assert code == 0, err
    assert "| 4/2x16 | 64 |" in out


def test_only_kernels_take_several_texts(bench, tiny_model, texts):
    code, _, err = bench("-m", tiny_model, "--text", texts[0], "--text", texts[1], "--len", "64")
    assert code == 2
    assert "more than one --text does not work with --len without --kernels" in err
