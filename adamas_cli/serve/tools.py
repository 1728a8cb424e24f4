"""Documents as tools of the Model Context Protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import AdamasError
from adamas_cli.serve.errors import ApiError
from adamas_cli.serve.opening import Opened
from adamas_cli.serve.reply import Reply
from adamas_cli.serve.requests import Asked, Message

PASSAGES = 5
PASSAGE_TOKENS = 48  # of the answer whose attention finds passages
SUMMARIZE = "Summarize the text above. Write one short paragraph."


class Tools:
    """The tools, which all ask about the documents named at the start. opening: opens the documents, in a
    thread, while the client already lists the tools.
    """

    def __init__(self, opened: Opened, sampling: Sampling, opening: Callable[[], None]) -> None:
        self._opened, self._sampling = opened, sampling
        with_one = ThreadPoolExecutor(1, "opening")
        self._opening = with_one.submit(opening)
        with_one.shutdown(wait=False)

    async def ask(self, question: str) -> str:
        """Answer a question about the documents, which the answer is drawn from."""
        return (await self._answer(question)).text.strip()

    async def find_passages(self, question: str, count: int = PASSAGES) -> list[dict[str, Any]]:
        """The passages of the documents that an answer to a question attends to most: path, lines, text."""
        reply = await self._answer(question, sources=count, max_tokens=PASSAGE_TOKENS)
        return reply.sources() or []

    async def summarize(self, focus: str | None = None) -> str:
        """Summarize the documents in a short paragraph. focus: what it should tell about above all."""
        about = f" Pay attention above all to this: {focus}" if focus else ""
        return (await self._answer(SUMMARIZE + about)).text.strip()

    async def _answer(self, question: str, **more: Any) -> Reply:
        """Raises ToolError, which the client gets, for anything wrong with a question."""
        if not question.strip():
            raise ToolError("the question is empty")
        await asyncio.wrap_future(self._opening)
        try:
            return await self._followed(question, **more)
        except (AdamasError, ApiError) as error:
            raise ToolError(error.message) from error

    async def _followed(self, question: str, **more: Any) -> Reply:
        answering = self._opened.answering
        asked = Asked((Message("user", question),), self._sampling, **more)
        prepared = await asyncio.to_thread(answering.prepare, asked)
        reply = Reply(prepared)
        job = self._opened.worker.submit(partial(answering.answer, prepared))
        try:
            async for _ in reply.follow(job.events()):
                pass
        finally:
            job.cancel()
        if not reply.text and reply.notes:
            raise AdamasError(reply.notes[-1])
        return reply


def mcp_server(tools: Tools, paths: list[str]) -> MCPServer:
    """A server with these tools. paths: of the documents, reported to the client."""
    about = f"Answers about these documents: {', '.join(paths)}"
    server = MCPServer("adamas", instructions=about, log_level="ERROR")
    for tool in (tools.ask, tools.find_passages, tools.summarize):
        server.tool()(tool)
    return server
