"""`adamas mcp`: documents as tools of another program."""

from __future__ import annotations

import sys

from adamas_cli.commands.extras import require_extra
from adamas_cli.commands.options import grouped
from adamas_cli.commands.reading import Sources, collect_documents, require_sources
from adamas_cli.engine.sampling import Sampling
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import (
    DEFAULT_SOURCES,
    DecodingSettings,
    InputSettings,
    ModelSettings,
    OriginSettings,
    PromptSettings,
)
from adamas_cli.store.settings import StoreSettings

EXAMPLE = "adamas mcp book.txt"
LISTED = 20  # documents listed by name


@grouped
def command(
    sources: Sources = None,
    *,
    model: ModelSettings,
    attention: DecodingSettings,
    sampling: Sampling,
    selection: InputSettings,
    prompt: PromptSettings,
    store: StoreSettings,
) -> None:
    """Offer documents to another program as tools, over stdin and stdout: adamas mcp book.txt"""
    require_extra("mcp", "mcp")
    prepare_libraries(verbose=0, offline=model.offline)
    require_sources(sources, selection, EXAMPLE)

    from adamas_cli.serve.opening import Limits, Opened
    from adamas_cli.serve.tools import Tools, mcp_server
    from adamas_cli.session.runtime import Runtime
    from adamas_cli.terminal.display import Display

    with Display(answers=None, notes=sys.stderr) as display:
        found = collect_documents(
            sources or [], selection, display, verbose=0, keep=store.writes, offline=model.offline
        )
        # Passages come from attention weights, which only sparse attention collects.
        origins = OriginSettings(sources=DEFAULT_SOURCES)
        runtime = Runtime.resolve(model, attention, prompt, store, display, origins)
        with Opened(runtime, found, Limits()) as opened:
            tools = Tools(opened, sampling, lambda: opened.open(display.show))
            paths = [document.path for document in found]
            more = [f"and {len(paths) - LISTED:,} more"] if len(paths) > LISTED else []
            mcp_server(tools, [*paths[:LISTED], *more]).run("stdio")
