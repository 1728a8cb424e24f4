"""`--apart`: each document is read on its own, kept on its own, and joined with the others for a question."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from conftest import Run, byte_tokenizer, tiny_architecture
from told import Notes, raises_told

import adamas_cli
from adamas_cli.engine.events import Done, Prefill
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import ModelUnavailableError, OverContextError, UsageError
from adamas_cli.models.shape import read_shape
from adamas_cli.planning.joining import require_joinable
from adamas_cli.settings import DecodingSettings, ModelSettings, OriginSettings, PromptSettings

QUESTION = "What does the fox want?"
TEXTS = {
    name: "".join(f"{number}. {line}\n" for number in range(count))
    for name, line, count in (
        ("fox.txt", "A fox saw grapes that hung too high.", 20),
        ("crow.txt", "A crow was thirsty, and threw stones into a jug.", 9),
        ("tortoise.txt", "A tortoise raced a hare.", 30),
    )
}
Load = Callable[..., adamas_cli.Model]


@pytest.fixture
def load(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads the tiny model anew, with documents kept in a folder of this test's own."""
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "error")
    chosen = {
        "device": "cpu", "quantization": "none", "dtype": "float32", "max_tokens": 12, "attn": "adamas",
        "budget": 64, "prefill_chunk": 64,
    }  # fmt: skip
    return lambda **changes: adamas_cli.load(str(tiny_model), **{**chosen, **changes})


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The texts as files, in the order of TEXTS."""
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in TEXTS]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each pass through a model that took several."""
    taken: list[int] = []
    forward = Model.forward

    def counted(self, tokens, *args, **options):
        if len(tokens) > 1:
            taken.append(len(tokens))
        return forward(self, tokens, *args, **options)

    monkeypatch.setattr(Model, "forward", counted)
    return taken


def test_one_document_gets_the_answer_that_it_gets_without(load, files, read):
    with load().open(files[0]) as book:
        expected = book.ask(QUESTION).text
    assert sum(read) > 700
    read.clear()
    with load(apart=True).open(files[0]) as book:
        assert book.ask(QUESTION).text == expected
    assert sum(read) < 64  # it was kept by the other, and so only the question is read


def test_only_a_changed_document_is_read_again(load, files, read):
    with load(apart=True).open(*files) as books:
        first = books.ask(QUESTION)
        tokens = books.tokens
    assert first.done.reused_tokens == 0
    around = sum(read) - sum(tokens.values())
    files[1].write_text(TEXTS["crow.txt"].replace("jug", "jar"))
    for changed in (tokens[str(files[1])], 0):
        read.clear()
        with load(apart=True).open(*files) as books:
            answer = books.ask(QUESTION)
        assert 0 <= sum(read) - changed < around  # the beginning of the prompt and the question
        assert answer.done.prompt_tokens == first.done.prompt_tokens
        assert answer.done.prompt_tokens - answer.done.reused_tokens < changed + around
    read.clear()
    with load(apart=True).open(files[2], files[0]) as books:  # one less, and in another order
        books.ask(QUESTION)
    assert sum(read) < 64


def test_another_order_gets_the_same_answer(load, files):
    answers = set()
    for order in (files, files[::-1], [files[1], files[0], files[2]]):
        with load(apart=True, budget=4096).open(*order) as books:
            answers.add(books.ask(QUESTION).text)
    assert len(answers) == 1


def test_finished_documents_survive_an_interruption(load, files, read):
    books = load(apart=True).open(*files)
    with closing(books.stream(QUESTION)) as events:
        begun = (event.done for event in events if isinstance(event, Prefill))
        assert next(done for done in begun if done > sum(list(books.tokens.values())[:2]) + 100)
    read.clear()
    books.ask(QUESTION)
    here = sum(read)
    assert here < books.tokens[str(files[2])] + 128
    read.clear()
    with load(apart=True).open(*files[:2]) as others:
        others.ask(QUESTION)
    assert sum(read) < 64


def test_progress_counts_all_documents(load, files):
    with load(apart=True).open(*files) as books:
        events = list(books.stream(QUESTION))
    prompt = [event for event in events if isinstance(event, Prefill)]
    reading = [event for event in prompt if event.total < prompt[-1].total]
    assert {event.total for event in reading} == {reading[-1].done}
    assert [event.done for event in reading] == sorted(event.done for event in reading)
    (done,) = [event for event in events if isinstance(event, Done)]
    assert 0 < done.prefill_seconds < done.first_token_seconds


def test_together_they_may_be_longer_than_the_context(load, files):
    around = 700  # tokens of the prompt, room for a question, and the answer
    longest = max(map(len, TEXTS.values())) + around
    with load(apart=True, ctx_size=longest).open(*files) as books:
        assert books.ask(QUESTION).done.prompt_tokens > longest
    with pytest.raises(OverContextError, match=r"^document"):
        load(ctx_size=longest).open(*files)
    with pytest.raises(OverContextError, match=r"^longest document"):
        load(apart=True, ctx_size=longest - around).open(*files)


def test_several_questions_and_their_passages(load, files):
    """Forks of the joined documents know their positions; passages lead to the right file."""
    model = load(apart=True, quantization="packed", draft="off")
    with model.open(*files) as books:
        expected = [books.ask(text).text for text in (QUESTION, "Why?")]
    runtime = load(apart=True, quantization="packed", draft="off")._runtime
    from adamas_cli.session.answer import listen
    from adamas_cli.session.documents import OpenDocuments

    with OpenDocuments(runtime, books._opened._frame, books._opened.layout, [QUESTION, "Why?"]) as opened:
        streams = opened.ask_all([QUESTION, "Why?"], Sampling())
        assert [listen("", events, lambda event: None).text for events in streams] == expected
    with load(apart=True, origins=OriginSettings(sources=50)).open(*files) as books:
        (sources,) = [books.ask(QUESTION).origins.sources]
    assert {Path(passage.path).name for passage in sources.passages} == set(TEXTS)
    for passage in sources.passages:
        lines = TEXTS[Path(passage.path).name].splitlines()[passage.first_line - 1 : passage.last_line]
        assert passage.excerpt.strip("… ")[:10] in " ".join(lines)


def test_a_question_that_outgrows_the_rotation_reads_all_again(load, files, tiny_model, tmp_path):
    scaled = tmp_path / "scaled"
    shutil.copytree(tiny_model, scaled)
    config = json.loads((scaled / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    config["max_position_embeddings"] = 1600
    (scaled / "config.json").write_text(json.dumps(config))
    long = "Why? " * 300
    model = adamas_cli.load(str(scaled), device="cpu", apart=True, max_tokens=8, ctx_size=6000)
    with model.open(*files) as books:
        books.ask(QUESTION)
        grown = books.ask(long).text
    model = adamas_cli.load(str(scaled), device="cpu", apart=True, max_tokens=8, ctx_size=6000)
    with model.open(*files) as books:
        assert books.ask(long).text == grown


@pytest.fixture
def on_cpu(run_here: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command with the tiny model, which keeps documents."""
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("ADAMAS_NO_DOC_CACHE")
    return lambda command, *arguments: run_here(
        command, *arguments, "-m", tiny_model, "--device", "cpu", "-n", "12"
    )


def test_it_is_reported(on_cpu, files):
    code, out, err = on_cpu("ask", *files, QUESTION, "--apart", "--json")
    assert code == 0
    assert json.loads(out)["apart"] is True
    assert err.count("read apart from each other") == 1
    assert "approximate" in err
    code, out, err = on_cpu("ask", files[0], QUESTION, "--apart", "--json")
    assert (code, json.loads(out)["apart"]) == (0, True)
    assert "approximate" not in err
    code, out, _ = on_cpu("ask", files[0], QUESTION, "--json")
    assert (code, json.loads(out)["apart"]) == (0, False)


def test_a_plan_counts_all_and_fits_the_longest(on_cpu, files, tmp_path):
    options = "--apart", "--ctx-size", "1200", "--no-calibrate"
    code, out, _ = on_cpu("plan", *files, QUESTION, *options)
    assert code == 0
    assert "3 documents read apart from each other (approximate)" in out
    assert "the longest document fits" in out
    plan = json.loads(on_cpu("plan", *files, QUESTION, *options, "--json")[1])
    assert (plan["apart"], plan["fits"], plan["kept_tokens"]) == (True, True, 0)
    assert plan["n_prompt_tokens"] > 1200
    assert on_cpu("ask", *files, QUESTION, "--apart", "--ctx-size", "1200")[0] == 0
    kept = json.loads(on_cpu("plan", *files, QUESTION, *options, "--json")[1])["kept_tokens"]
    reused = json.loads(on_cpu("ask", *files, QUESTION, "--apart", "--json")[1])
    assert kept == reused["usage"]["prompt_tokens_details"]["cached_tokens"] > 2000
    files[1].write_text("A crow.")
    planned = json.loads(on_cpu("plan", *files, QUESTION, *options, "--json")[1])
    assert 1500 < planned["kept_tokens"] < kept
    code, out, _ = on_cpu("plan", *files, QUESTION, "--apart", "--ctx-size", "500", "--no-calibrate")
    assert "the longest document does not fit" in out


def test_it_may_be_configured(on_cpu, files, tmp_path, monkeypatch):
    config = tmp_path / "config.toml"
    config.write_text("apart = true\n")
    monkeypatch.setenv("ADAMAS_CONFIG", str(config))
    code, out, _ = on_cpu("ask", *files, QUESTION, "--json")
    assert (code, json.loads(out)["apart"]) == (0, True)


def test_what_it_does_not_serve_is_refused_before_anything_is_read(load, files, tiny_model, tmp_path, read):
    for settings, told in (
        ({"on_overflow": "truncate"}, "leave out --on-overflow truncate"),
        ({"cache_dtype": "int8"}, "--cache-dtype int8"),
        ({"kv": "host"}, "leave out --kv host"),
    ):
        with raises_told(UsageError, told):
            load(apart=True, **settings)
    shape = read_shape(tiny_model)
    require_joinable(shape, ModelSettings(), DecodingSettings(), PromptSettings())
    with raises_told(UsageError, "leave out --gpus"):
        require_joinable(shape, ModelSettings(gpus=2), DecodingSettings(), PromptSettings())
    windows = tmp_path / "windows"
    tiny_architecture("gemma3").save_pretrained(windows)
    byte_tokenizer().save_pretrained(windows)
    with raises_told(ModelUnavailableError, "--apart does not serve models of type gemma3_text.*sliding"):
        adamas_cli.load(str(windows), device="cpu", apart=True)
    model = load(apart=True)
    model._runtime.load()
    from adamas_cli.engine.timeline import Timeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Timeline, "unjoinable", "its keys and values are in host memory")
        with raises_told(UsageError, "cannot be read --apart here: its keys and values are in host memory"):
            model.open(*files)
    assert not read


def test_the_note_comes_once(tiny_model, files):
    notes = Notes()
    chosen = {"device": "cpu", "max_tokens": 4, "apart": True, "progress": notes}
    with adamas_cli.load(str(tiny_model), **chosen).open(*files) as books:
        for _ in zip(range(2), count(), strict=False):
            books.ask(QUESTION)
    assert sum("approximate" in line for line in notes.lines) == 1
