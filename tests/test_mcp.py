"""The documents as tools of another program, called by the official client."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from mcp import Client, ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from test_serve import QUESTION, make_server

import adamas_cli
from adamas_cli.engine.sampling import Sampling
from adamas_cli.serve.tools import Tools, mcp_server
from adamas_cli.store.settings import StoreSettings

FABLE = "A fox saw grapes that hung too high. It jumped and jumped. At last it said that they were sour.\n"


def test_the_tools_answer_about_the_documents(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    fable = tmp_path / "fable.txt"
    fable.write_text(FABLE * 4)
    settings = {"device": "cpu", "attn": "adamas", "budget": 64, "max_tokens": 12}
    alone = adamas_cli.load(str(tiny_model), store=StoreSettings(off=True), **settings)
    with alone.open(fable) as book:
        expected = book.ask(QUESTION).text

    async def scene(opened: object) -> None:
        tools = Tools(opened, Sampling(), lambda: opened.open(lambda event: None))  # type: ignore[attr-defined]
        async with Client(mcp_server(tools, [str(fable)])) as client:
            listed = await client.list_tools()
            assert [tool.name for tool in listed.tools] == ["ask", "find_passages", "summarize"]
            answer = await client.call_tool("ask", {"question": QUESTION})
            assert answer.content[0].text == expected.strip()
            found = await client.call_tool("find_passages", {"question": QUESTION, "count": 2})
            passages = found.structured_content["result"]
            assert 1 <= len(passages) <= 2
            assert all(passage["path"] == str(fable) for passage in passages)
            assert not (await client.call_tool("summarize", {"focus": "the fox"})).is_error
            assert (await client.call_tool("ask", {"question": " "})).is_error

    with make_server(tiny_model, [fable]) as opened:
        asyncio.run(asyncio.wait_for(scene(opened), 60))


def test_the_official_client_starts_the_command_and_talks_to_it_over_pipes(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "fable.txt").write_text(FABLE)
    words = ["-m", "adamas_cli", "mcp", "fable.txt", "-m", str(tiny_model), "--device", "cpu", "-n", "4"]
    program = StdioServerParameters(
        command=sys.executable,
        args=words,
        cwd=tmp_path,
        env={**os.environ, "ADAMAS_CACHE_DIR": str(tmp_path)},
    )

    async def scene() -> None:
        with open(tmp_path / "err.txt", "w") as err:
            async with stdio_client(program, err) as (read, write), ClientSession(read, write) as session:
                about = await session.initialize()
                assert "fable.txt" in (about.instructions or "")
                assert "ask" in [tool.name for tool in (await session.list_tools()).tools]
                answer = await session.call_tool("ask", {"question": QUESTION})
                assert not answer.is_error
                assert answer.content[0].text  # type: ignore[union-attr]
                assert (await session.call_tool("ask", {"question": ""})).is_error
                assert (await session.call_tool("ask", {"question": "x" * 5000})).is_error
        assert "Traceback" not in (tmp_path / "err.txt").read_text()

    asyncio.run(asyncio.wait_for(scene(), 120))
