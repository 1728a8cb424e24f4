"""The server in this process: its routes, its clients and its thread."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import tarfile
import threading
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Run
from starlette.testclient import TestClient

import adamas_cli
from adamas_cli.documents import collect
from adamas_cli.documents.filtering import Selection
from adamas_cli.engine.events import Done, Likelihood, Prefill, Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.progress import Silent
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.serve.likelihoods import Spelling
from adamas_cli.serve.opening import Limits
from adamas_cli.serve.requests import Asked, Message
from adamas_cli.serve.running import Server
from adamas_cli.session.answer import Told
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
def server(tiny_model: Path, fable: Path, folder: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAMAS_CACHE_DIR", str(folder / "cache"))
        with make_server(tiny_model, [fable], upload=20_000) as server:
            server.open(lambda event: None)
            yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(server.application, base_url=BASE) as client:
        yield client


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> adamas_cli.Model:
    """The same model, called from Python."""
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


def test_responses_say_the_same(client: TestClient) -> None:
    expected = text_of(chat(client, QUESTION))
    answer = client.post("/v1/responses", json={"input": QUESTION}).json()
    (message,) = answer["output"]
    assert message["content"][0]["text"] == expected
    assert answer["usage"]["output_tokens"] == TOKENS
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


def streamed(client: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    response = client.post(path, json={"stream": True, **body})
    assert response.headers["content-type"].startswith("text/event-stream")
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]


def test_chunks_of_a_stream_make_the_answer(client: TestClient) -> None:
    expected = chat(client, QUESTION)
    messages = [{"role": "user", "content": QUESTION}]
    options = {"include_usage": True, "include_progress": True}
    *chunks, last = streamed(client, "/v1/chat/completions", messages=messages, stream_options=options)
    said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert "".join(said).rstrip() == text_of(expected)
    assert len(said) > 3
    read = [chunk["progress"] for chunk in chunks if "progress" in chunk]
    assert read[-1]["read"] == read[-1]["total"] == expected["usage"]["prompt_tokens"]
    assert last["usage"]["total_tokens"] == expected["usage"]["total_tokens"]


def test_events_of_a_response_make_it(client: TestClient) -> None:
    events = streamed(client, "/v1/responses", input=QUESTION)
    said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert said.rstrip() == text_of(chat(client, QUESTION))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.incomplete"


def test_a_conversation_goes_on_from_what_was_read_and_said(client: TestClient) -> None:
    first = chat(client, "Who was there?")
    second = chat(client, "Who was there?", text_of(first), "And what then?")
    counts = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert counts >= first["usage"]["prompt_tokens"]
    assert text_of(chat(client, "Who was there?", text_of(first), "And what then?")) == text_of(second)


def test_an_answer_ends_at_a_stop_text_that_it_does_not_hold(client: TestClient) -> None:
    whole = text_of(chat(client, QUESTION))
    stop = whole[3:5]
    answer = chat(client, QUESTION, stop=stop)
    assert text_of(answer) == whole[: whole.index(stop)].rstrip()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < TOKENS
    assert text_of(chat(client, QUESTION)) == whole


def test_tokens_of_all_forms_of_an_answer_are_told_alike(client: TestClient) -> None:
    messages, more = [{"role": "user", "content": QUESTION}], {"top_logprobs": 2}
    plain = chat(client, QUESTION)
    assert plain["choices"][0]["logprobs"] is None
    whole = chat(client, QUESTION, logprobs=True, **more)
    expected = whole["choices"][0]["logprobs"]["content"]
    assert len(expected) == whole["usage"]["completion_tokens"]
    assert text_of(whole) == text_of(plain)
    said = b"".join(bytes(entry["bytes"]) for entry in expected).decode("utf-8", "replace")
    # Texts lack the control characters that a model with random weights also says.
    shown = "".join(char for char in said if char in "\n\t" or unicodedata.category(char) != "Cc")
    assert shown.rstrip() == text_of(plain)
    for entry in expected:
        likeliest, second = entry["top_logprobs"]
        assert likeliest == {name: entry[name] for name in ("token", "logprob", "bytes")}
        assert second["logprob"] <= likeliest["logprob"] < 0
    chunks = streamed(client, "/v1/chat/completions", messages=messages, logprobs=True, **more)
    told = [chunk["choices"][0]["logprobs"] or {"content": []} for chunk in chunks]
    assert [entry for one in told for entry in one["content"]] == expected
    included = {"input": QUESTION, "include": ["message.output_text.logprobs"], **more}
    (message,) = client.post("/v1/responses", json=included).json()["output"]
    assert message["content"][0]["logprobs"] == expected
    events = streamed(client, "/v1/responses", **included)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for delta in deltas for entry in delta["logprobs"]] == expected


@pytest.mark.parametrize(
    ("tokens", "pieces", "expected"),
    [
        ("one| two", "one| two", "one| two"),
        ("on|e tw|o", "one |two", "on,e tw|o"),  # held back, like the beginning of a stop text
        ("<|t|>| x|y", "x|y", " x|y"),  # marks and white space before the answer
        ("a|b", "a", "a"),  # up to a stop text
        ("caf|\xc3|\xa9|!", "caf|\xe9|!", "caf|\xc3,\xa9|!"),
    ],
)
def test_tokens_go_with_the_text_that_begins_in_them(tokens: str, pieces: str, expected: str) -> None:
    words = [word.encode("latin-1") for word in tokens.split("|")]
    names = SimpleNamespace(control_tokens={}, token_bytes=words.__getitem__)
    spelling = Spelling(cast("Tokenizer", names))
    for index in range(len(words)):
        spelling.feed(Token(index, index, 0, 0, 0.0, 0, Likelihood(-1.0)))
    told = [spelling.spell(piece) for piece in pieces.split("|")]
    found = "|".join(",".join(token.text.decode("latin-1") for token in one) for one in told)
    assert found == expected


def test_a_seed_makes_drawn_answers_repeat(client: TestClient) -> None:
    drawn = [text_of(chat(client, QUESTION, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_clients_at_once_get_the_answers_of_one(client: TestClient) -> None:
    questions = [f"What happens in sentence {number}?" for number in range(6)]
    expected = [text_of(chat(client, question, max_tokens=6)) for question in questions]
    found: dict[str, str] = {}

    def ask(question: str) -> None:
        found[question] = text_of(chat(client, question, max_tokens=6))

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[question] for question in questions] == expected


def upload(client: TestClient, name: str, data: bytes) -> Any:
    return client.post("/v1/files", files={"file": (name, data)}, data={"purpose": "user_data"})


def test_an_upload_is_asked_about_by_its_id_alone(
    client: TestClient, alone: adamas_cli.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "A crow dropped stones into a jug until the water rose.\n" * 3
    (tmp_path / "crow.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    file = upload(client, "/etc/crow.txt", text.encode()).json()
    assert (file["filename"], file["bytes"]) == ("crow.txt", len(text))
    with alone.open("crow.txt") as expected:
        answer = chat(client, QUESTION, files=[file["id"]])
        assert text_of(answer) == expected.ask(QUESTION).text
    part = {"type": "file", "file": {"file_id": file["id"]}}
    content = [part, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}]}
    assert text_of(client.post("/v1/chat/completions", json=body).json()) == text_of(answer)
    assert client.get(f"/v1/files/{file['id']}/content").text == text
    assert client.delete(f"/v1/files/{file['id']}").json()["deleted"]
    assert client.get(f"/v1/files/{file['id']}").status_code == 404
    assert client.delete(f"/v1/files/{client.get('/v1/files').json()['data'][0]['id']}").status_code == 400


LATEX = b"\\documentclass{article}\n\\input{../../../secret}\n\\input{/etc/passwd}\nText.\n"


def archive_with_latex() -> bytes:
    """A ZIP file with a document that includes files from above it."""
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a/paper.tex", LATEX)
        return stream.getvalue()


def archive_with_link() -> bytes:
    """A tar file with a text and a link to a file of the machine."""
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            link, text = tarfile.TarInfo("link.txt"), tarfile.TarInfo("text.txt")
            link.type, link.linkname, text.size = tarfile.SYMTYPE, "/etc/passwd", 5
            archive.addfile(link)
            archive.addfile(text, io.BytesIO(b"hello"))
        return stream.getvalue()


INTRUDING = {"paper.tex": lambda: LATEX, "paper.zip": archive_with_latex, "files.tar": archive_with_link}


@pytest.mark.parametrize("name", INTRUDING)
def test_no_upload_brings_in_what_is_not_in_it(client: TestClient, folder: Path, name: str) -> None:
    (folder / ".git").mkdir(exist_ok=True)  # makes LaTeX take it for the document's repository
    (folder / "secret.tex").write_text("the password")
    file = upload(client, name, INTRUDING[name]()).json()
    for document in file["documents"]:
        assert document.startswith(name)
        text = client.get(f"/v1/files/{file['id']}/content", params={"document": document}).text
        assert text.strip()
        assert "password" not in text
        assert "root:" not in text


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../secret.tex", "file-000000000000000000000000", "%2e%2e"]
)
def test_only_ids_of_files_lead_to_files(client: TestClient, name: str) -> None:
    assert client.get(f"/v1/files/{name}/content").status_code == 404
    body = {"messages": [{"role": "user", "content": "?"}], "files": [name]}
    assert client.post("/v1/chat/completions", json=body).status_code == 404


def test_passages_behind_an_answer_are_lines_of_a_file(client: TestClient, fable: Path) -> None:
    (file, *_) = client.get("/v1/files").json()["data"]
    sources = chat(client, QUESTION, sources=2)["sources"]
    assert sources
    for passage in sources:
        assert passage["path"] in file["documents"]
        lines = client.get(f"/v1/files/{file['id']}/content").text.splitlines()
        assert passage["excerpt"].strip(" …")[:20] in " ".join(
            lines[passage["first_line"] - 1 : passage["last_line"]]
        )


ASKED = {"messages": [{"role": "user", "content": "Why?"}]}
WRONG = {
    "no messages": ({}, 400, "invalid_value"),
    "an answer last": ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_value"),
    "an empty question": ({"messages": [{"role": "user", "content": " "}]}, 400, "invalid_value"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "unsupported_parameter"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "unsupported_parameter",
    ),
    "tools": (ASKED | {"tools": [{}]}, 400, "unsupported_parameter"),
    "several answers": (ASKED | {"n": 2}, 400, "unsupported_parameter"),
    "a parameter": (ASKED | {"zeal": 1}, 400, "unknown_parameter"),
    "alternatives alone": (ASKED | {"top_logprobs": 2}, 400, "invalid_value"),
    "too many alternatives": (ASKED | {"logprobs": True, "top_logprobs": 21}, 400, "invalid_value"),
    "a seed": (ASKED | {"seed": 10**30}, 400, "invalid_value"),
    "a temperature": (ASKED | {"temperature": "hot"}, 400, "invalid_value"),
    "a limit": (ASKED | {"max_tokens": 0}, 400, "invalid_value"),
    "a model": (ASKED | {"model": "gpt-7"}, 404, "model_not_found"),
    "too much": ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "context_length_exceeded"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused(client: TestClient, name: str) -> None:
    body, status, code = WRONG[name]
    response = client.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_what_asks_for_nothing_more_is_accepted(client: TestClient) -> None:
    nothing = {"n": 1, "tools": [], "tool_choice": "none", "logit_bias": {}, "user": "me", "store": False}
    assert text_of(chat(client, QUESTION, **nothing, foo=None)) == text_of(chat(client, QUESTION))


def test_a_model_is_not_called_by_its_place(client: TestClient, tiny_model: Path) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == tiny_model.name
    assert str(tiny_model) not in chat(client, QUESTION, model=model["id"]).values()
    assert client.put("/v1/models").json()["error"]["code"] == "method_not_allowed"


def test_a_body_must_say_that_it_is_json(client: TestClient) -> None:
    plain = {"content-type": "text/plain"}
    assert client.post("/v1/chat/completions", content=json.dumps(ASKED), headers=plain).status_code == 415
    typed = {"content-type": "application/json"}
    assert client.post("/v1/responses", content="{", headers=typed).status_code == 400
    assert upload(client, "large.txt", b"x" * 20_001).status_code == 413
    binary = upload(client, "empty.bin", bytes(100))
    assert (binary.status_code, binary.json()["error"]["code"]) == (400, "unreadable_file")
    assert "Nothing readable in empty.bin" in binary.json()["error"]["message"]


def test_pages_of_other_sites_are_refused(client: TestClient) -> None:
    assert client.get("/v1/files", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/v1/files", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/v1/files", headers={"origin": BASE}).status_code == 200


def test_without_the_key_nothing_is_told(tiny_model: Path) -> None:
    server = make_server(tiny_model, [], key="secret")
    client = TestClient(server.application, base_url="http://anywhere")
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code == 200
    for path in ("/v1/models", "/v1/files", "/metrics", "/nothing"):
        assert client.get(path).json()["error"]["code"] == "invalid_api_key"
        assert client.get(path, headers={"authorization": "Bearer secreT"}).status_code == 401
    told = client.get("/v1/files", headers={"authorization": "Bearer secret"})
    assert told.status_code == 200


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--on-overflow", "map-reduce"], "--on-overflow"),
        (["nowhere.txt"], "nowhere.txt"),
    ],
)
def test_the_command_refuses_what_it_cannot_serve(run_here: Run, arguments: list[str], told: str) -> None:
    code, out, err = run_here("serve", *arguments)
    assert (code, out) == (2, "")
    assert told in err


def test_the_command_names_the_packages_that_are_missing(
    run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamas_cli.commands import extras

    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    for command in ("serve", "mcp"):
        code, _, err = run_here(command, "book.txt")
        assert code == 2
        assert f"adamas[{command}]" in err


def test_an_answer_that_takes_too_long_is_ended(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    with make_server(tiny_model, [], timeout=0.05) as server:
        server.open(lambda event: None)
        client = TestClient(server.application, base_url=BASE)
        body = ASKED | {"max_tokens": 3000}
        late = client.post("/v1/chat/completions", json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        *_, last = streamed(client, "/v1/chat/completions", **body)
        assert last["error"]["code"] == "timeout"
        *_, last = streamed(client, "/v1/responses", input="Why?", max_output_tokens=3000)
        assert (last["type"], last["code"]) == ("error", "timeout")


def test_counts_are_told(client: TestClient) -> None:
    chat(client, QUESTION)
    text = client.get("/metrics").text
    assert 'adamas_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert 'adamas_tokens_total{kind="generated"}' in text
    assert "adamas_answers_active 0.0" in text


def test_the_page_asks_nobody_else(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_an_upload_is_known_after_a_restart_and_not_read_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    file = ""
    for again in (False, True):
        with make_server(tiny_model, []) as server:
            server.open(lambda event: None)
            client = TestClient(server.application, base_url=BASE)
            file = file or upload(client, "fable.txt", FABLE.encode() * 4).json()["id"]
            assert [entry["id"] for entry in client.get("/v1/files").json()["data"]] == [file]
            usage = chat(client, QUESTION, files=[file], max_tokens=2)["usage"]
            server.worker.call(server.answering.close)
        assert (usage["prompt_tokens_details"]["cached_tokens"] > 0) == again


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_when_its_client_leaves(server: Server, stream: bool) -> None:
    body = json.dumps(
        {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 1500, "stream": stream}
    )
    headers = {"host": "localhost", "content-type": "application/json"}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    arrived = iter([{"type": "http.request", "body": body.encode()}])

    async def receive() -> Any:
        if (message := next(arrived, None)) is not None:
            return message
        while not server.worker.active:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    async def scene() -> None:
        await server.application(scope, receive, send)
        while server.worker.active:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(scene(), 30))


def beside(server: Server, use: Callable[[str], None]) -> None:
    """Serve over a real socket while a client uses it from a thread; then end as by Ctrl-C."""
    failed: list[BaseException] = []

    def run(address: str) -> None:
        try:
            use(address)
        except BaseException as error:
            failed.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    threads: list[threading.Thread] = []

    def begin(address: str) -> None:
        threads.append(threading.Thread(target=run, args=(address,)))
        threads[0].start()

    server.run("127.0.0.1", 0, begin)
    threads[0].join()
    if failed:
        raise failed[0]


def test_the_real_client_over_a_real_socket_and_a_stop_that_is_no_failure(
    tiny_model: Path, fable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai = pytest.importorskip("openai")
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    seen: dict[str, Any] = {}

    def use(address: str) -> None:
        with openai.OpenAI(base_url=f"{address}v1", api_key="secret", max_retries=0) as client:
            (model,) = client.models.list()
            messages = [{"role": "user", "content": QUESTION}]
            whole = client.chat.completions.create(model=model.id, messages=messages, logprobs=True)
            seen["whole"] = whole.choices[0].message.content
            assert whole.choices[0].logprobs.content[0].logprob < 0
            with client.chat.completions.create(model=model.id, messages=messages, stream=True) as chunks:
                seen["chunks"] = "".join(c.choices[0].delta.content or "" for c in chunks).rstrip()
            seen["response"] = client.responses.create(model=model.id, input=QUESTION).output_text
            with client.responses.create(model=model.id, input=QUESTION, stream=True) as events:
                seen["events"] = "".join(e.delta for e in events if "text.delta" in e.type).rstrip()
            file = client.files.create(file=("crow.txt", b"A crow."), purpose="user_data")
            seen["content"] = client.files.content(file.id).text
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="another", messages=messages)
            with pytest.raises(openai.BadRequestError, match="no parameter 'zeal'") as refused:
                client.chat.completions.create(model=model.id, messages=messages, extra_body={"zeal": 1})
            assert refused.value.param == "zeal"

    before = signal.getsignal(signal.SIGINT)
    with make_server(tiny_model, [fable], key="secret") as server:
        server.open(lambda event: None)
        beside(server, use)
    assert signal.getsignal(signal.SIGINT) is before
    assert seen["whole"] == seen["chunks"] == seen["response"] == seen["events"]
    assert seen["content"] == "A crow."


def test_the_client_llm_asks_in_a_stream_and_goes_on(
    tiny_model: Path, fable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = pytest.importorskip("llm.cli")
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))

    def use(address: str) -> None:
        entry = {"model_id": "documents", "model_name": "tiny-llama0"}
        models = [entry | {"api_base": f"{address}v1", "api_key_name": "documents"}]
        (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
        (tmp_path / "keys.json").write_text(json.dumps({"documents": "secret"}))
        runner = CliRunner()
        answers = [
            runner.invoke(cli.cli, words, catch_exceptions=False).stdout
            for words in (["-m", "documents", QUESTION], ["-c", "And then?"])
        ]
        first = expected(address, QUESTION)
        assert answers == [f"{first}\n", f"{expected(address, QUESTION, first, 'And then?')}\n"]

    def expected(address: str, *said: str) -> str:
        with httpx2.Client(base_url=address, headers={"authorization": "Bearer secret"}) as client:
            return text_of(chat(cast("TestClient", client), *said))

    with make_server(tiny_model, [fable], key="secret") as server:
        server.open(lambda event: None)
        beside(server, use)


def test_one_reading_of_a_document_does_for_answers_that_begin_meanwhile(
    client: TestClient, server: Server
) -> None:
    file = upload(client, "owl.txt", b"An owl slept by day.\n" * 9).json()["id"]
    answering = server.answering
    asked = Asked((Message("user", "Who?"),), Sampling(), files=(file,), max_tokens=2)
    prepared = answering.prepare(asked)

    def begin_together() -> tuple[list[Told], list[Told]]:
        first, second = answering.answer(prepared), answering.answer(prepared)
        begun = next(first)
        assert isinstance(begun[0], Prefill)
        assert next(second) == []
        steps = [(begun, []), *zip_longest(first, second, fillvalue=[])]
        one, other = zip(*steps, strict=True)
        return [*chain.from_iterable(one)], [*chain.from_iterable(other)]

    one, other = server.worker.call(begin_together)
    assert [event.id for event in one if isinstance(event, Token)] == [
        event.id for event in other if isinstance(event, Token)
    ]
    assert isinstance(other[-1], Done)
    documents = prepared.prompt.ids[: prepared.documents]
    lanes = [lane for lane in answering._lanes._lanes if np.array_equal(lane.documents, documents)]
    assert len(lanes) == 2
    assert lanes[0].base is lanes[1].base is not None  # the document is in memory once
