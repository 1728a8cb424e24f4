"""The server, in this process: its routes, its clients, and its thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import adamas_cli
from adamas_cli.documents import collect
from adamas_cli.documents.filtering import Selection
from adamas_cli.engine.sampling import Sampling
from adamas_cli.progress import Silent
from adamas_cli.serve.running import Limits, Server
from adamas_cli.session.runtime import Runtime
from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

FABLE = "A fox saw grapes that hung too high. It jumped and jumped. At last it said that they were sour.\n"
QUESTION = "What does the fox want?"
TOKENS = 12
BASE = "http://localhost"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def fable(folder: Path) -> Path:
    path = folder / "fable.txt"
    path.write_text(FABLE * 4, encoding="utf-8")
    return path


def make_server(model: Path, paths: list[Path], key: str | None = None, **limits: Any) -> Server:
    sources = [str(path) for path in paths]
    stdin = open("/dev/null", "rb")  # noqa: SIM115 - closed below
    with stdin:
        found = collect(sources, Selection(), stdin=stdin, progress=Silent()).documents if sources else []
    runtime = Runtime.resolve(
        ModelSettings(str(model), device="cpu"),
        DecodingSettings(attn="adamas", budget=64),
        PromptSettings(max_tokens=TOKENS),
        StoreSettings(),
        Silent(),
    )
    return Server(runtime, found, Sampling(), Limits(**limits), key)


@pytest.fixture(scope="module")
def server(
    tiny_model: Path, fable: Path, folder: Path
) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAMAS_CACHE_DIR", str(folder / "cache"))
        with make_server(tiny_model, [fable], upload=10_000) as server:
            server.open(lambda event: None)
            yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(server.application, base_url=BASE) as client:
        yield client


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> adamas_cli.Model:
    """The same model, asked as a program asks it."""
    settings = {"device": "cpu", "attn": "adamas", "budget": 64, "max_tokens": TOKENS}
    return adamas_cli.load(str(tiny_model), store=StoreSettings(off=True), **settings)


def chat(client: TestClient, *said: str, **more: Any) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    response = client.post("/v1/chat/completions", json={"messages": messages, **more})
    assert response.status_code == 200, response.text
    return response.json()


def text_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def test_an_answer_is_the_one_that_the_command_gives(
    client: TestClient, alone: adamas_cli.Model, fable: Path
) -> None:
    with alone.open(fable) as book:
        expected = book.ask(QUESTION)
    answer = chat(client, QUESTION)
    assert text_of(answer) == expected.text
    assert answer["choices"][0]["finish_reason"] == expected.done.finish_reason
    usage = answer["usage"]
    assert usage["prompt_tokens"] == expected.done.prompt_tokens
    assert usage["completion_tokens"] == expected.done.completion_tokens
    assert usage["prompt_tokens_details"]["cached_tokens"] >= len(FABLE) * 4
