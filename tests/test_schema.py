"""Answers in JSON that follow a schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Run, byte_tokenizer
from starlette.testclient import TestClient
from test_serve import BASE, chat, make_server

import adamas_cli
from adamas_cli.engine.sampler import Sampler
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import UsageError
from adamas_cli.prompt.thinking import Thinking
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.session.listener import Listener
from adamas_cli.session.schema import Grammars, Schema
from adamas_cli.store.settings import StoreSettings

ENUM = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["fox", "crow"]},
        "count": {"type": "integer", "maximum": 99, "minimum": 10},
    },
    "required": ["animal", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    byte_tokenizer().save_pretrained(folder)
    return Tokenizer.from_directory(folder)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_any_logits_make_json_by_the_schema_and_then_an_end(tokenizer: Tokenizer, temperature: float) -> None:
    import torch

    end = tokenizer.control_tokens["<|im_end|>"]
    schema = Schema(ENUM, Grammars(tokenizer, lambda: [end]))
    torch.manual_seed(0)
    for seed in range(3):
        sampling = schema.constrained(
            Sampling(temperature=temperature, seed=seed), Listener(tokenizer, Thinking())
        )
        sampler, said = Sampler(sampling, torch.device("cpu")), []
        while not said or said[-1] != end:
            said.append(sampler.next(torch.randn(300)).id())  # more rows than tokens
            assert len(said) < 60
        answer = json.loads(b"".join(map(tokenizer.token_bytes, said)))
        assert answer["animal"] in ("fox", "crow")
        assert 10 <= answer["count"] <= 99
        assert sampler.next(torch.randn(300)).id() == end  # one step ahead of what is known


def test_a_schema_that_cannot_be_held_to_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="schema"):
        Schema({"type": "nonsense"}, Grammars(tokenizer, lambda: [0]))


QUOTING = {
    "type": "object",
    "properties": {
        "claims": {
            "type": "array",
            "items": {"$ref": "#/$defs/claim"},
            "minItems": 1,
            "maxItems": 1,
        }
    },
    "required": ["claims"],
    "additionalProperties": False,
    "$defs": {
        "claim": {
            "type": "object",
            "properties": {
                "quote": {"enum": ["A fox ran.", "A cow ran."]},
                "why": {"const": "so it is said"},
            },
            "required": ["quote", "why"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"items": {"type": "strin"}}}}, "properties/a/items"),
        (
            {"$defs": {"b": {"anyOf": [{"type": "null"}, {"type": "strin"}]}}, "$ref": "#/$defs/b"},
            "$defs/b/anyOf/1",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "properties/a"),
    ],
)
def test_the_place_of_what_is_wrong_in_a_schema_is_named(
    tokenizer: Tokenizer, schema: dict[str, object], place: str
) -> None:
    with pytest.raises(UsageError) as refused:
        Schema(schema, Grammars(tokenizer, lambda: [0]))
    assert f"enforced at {place}: " in refused.value.message


def test_quotations_in_json_are_checked_for_each_question(
    run_here: Run, tiny_model: Path, tmp_path: Path
) -> None:
    document, schema = tmp_path / "a.txt", tmp_path / "schema.json"
    document.write_text("Nothing.\nA fox ran.\n")
    schema.write_text(json.dumps(QUOTING))
    ask = ["ask", document, "-m", tiny_model, "--device", "cpu", "-q", "Who?", "-q", "What else?", "--cite"]
    code, out, _ = run_here(*ask, "--schema", schema, "--json", "-n", "90")
    assert code == 0
    for record in json.loads(out):
        said = json.loads(record["answer"])["claims"][0]["quote"]
        (quote,) = record["quotes"]
        assert quote["text"] == said.strip(".")
        assert quote["verified"] == (said == "A fox ran.")
    schema.write_text(json.dumps(ENUM))
    code, _, err = run_here(*ask, "--schema", schema)
    assert code == 2
    assert "--cite" in err


def test_the_command_answers_with_json(run_here: Run, tiny_model: Path, tmp_path: Path) -> None:
    document, schema = tmp_path / "a.txt", tmp_path / "schema.json"
    document.write_text("A fox.")
    schema.write_text(json.dumps(ENUM))
    ask = ["ask", document, "Who?", "-m", tiny_model, "--device", "cpu", "--quiet", "--schema", schema]
    code, out, _ = run_here(*ask, "-n", "60")
    assert code == 0
    assert set(json.loads(out)) == {"animal", "count"}
    assert run_here(*ask, "-n", "60", "--draft", "text")[1] == out
    code, _, err = run_here(*ask[:-3], "--schema", schema, "-n", "8")
    assert code == 1
    assert "--max-tokens" in err
    schema.write_text("[]")
    assert run_here(*ask)[0] == 2


def test_the_interface_answers_with_json(tiny_model: Path) -> None:
    off = StoreSettings(off=True)
    model = adamas_cli.load(str(tiny_model), store=off, schema=ENUM, device="cpu", max_tokens=60)
    with model.open(text="A fox.") as opened:
        assert set(json.loads(opened.ask("Who?").text)) == {"animal", "count"}


def test_the_server_answers_with_json(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    with make_server(tiny_model, []) as server:
        server.open(lambda event: None)
        client = TestClient(server.application, base_url=BASE)
        form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": ENUM}}
        answer = chat(client, "Who?", response_format=form, max_tokens=60)["choices"][0]
        assert set(json.loads(answer["message"]["content"])) == {"animal", "count"}
        assert answer["finish_reason"] == "stop"
        text = {"format": {"type": "json_schema", "name": "animal", "schema": ENUM}}
        body = {"input": "Who?", "text": text, "max_output_tokens": 60}
        (message,) = client.post("/v1/responses", json=body).json()["output"]
        assert message["content"][0]["text"] == answer["message"]["content"]
        body["text"] = {"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}
        refused = client.post("/v1/responses", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_schema")
