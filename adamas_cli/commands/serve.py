"""`adamas serve`: answers about documents over HTTP."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from adamas_cli.commands.extras import require_extra
from adamas_cli.commands.options import grouped, parse_length
from adamas_cli.commands.reading import collect_documents
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import UsageError
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import DecodingSettings, InputSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

_option = partial(typer.Option, rich_help_panel="Server")


@grouped
def command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCES...",
            help="Files, folders or addresses that questions are about, unless they name others.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, _option("--host", help="Address to bind to; one that others can reach needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, _option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        _option("--api-key", envvar="ADAMAS_API_KEY", metavar="KEY", help="Key that clients must send."),
    ] = None,
    parallel: Annotated[
        int,
        _option(
            "--parallel", min=1, metavar="N", help="Answers computed at the same time, a token each in turn."
        ),
    ] = 4,
    waiting: Annotated[
        int, _option("--waiting", min=0, metavar="N", help="Requests that may wait; more are refused.")
    ] = 32,
    timeout: Annotated[
        float, _option("--timeout", min=1, metavar="SECONDS", help="Time limit of a request, in seconds.")
    ] = 600,
    max_upload: Annotated[
        int, _option("--max-upload", parser=parse_length, metavar="LENGTH", help="Largest upload, in bytes.")
    ] = 32 << 20,
    verbose: Annotated[
        int, _option("-v", "--verbose", count=True, help="Log requests; -vv adds tracebacks.")
    ] = 0,
    *,
    model: ModelSettings,
    attention: DecodingSettings,
    sampling: Sampling,
    selection: InputSettings,
    prompt: PromptSettings,
    store: StoreSettings,
) -> None:
    """Answer programs (OpenAI's interface) and browsers: adamas serve book.txt"""
    require_extra("serve", "starlette", "uvicorn", "python_multipart", "prometheus_client")
    prepare_libraries(verbose=verbose, offline=model.offline)

    from adamas_cli.serve.guard import is_local
    from adamas_cli.serve.opening import Limits
    from adamas_cli.serve.running import Server
    from adamas_cli.session.runtime import Runtime
    from adamas_cli.terminal.display import Display

    if not (is_local(host) or api_key):
        raise UsageError(f"to serve on {host}, which others can reach, give --api-key, or set ADAMAS_API_KEY")
    if prompt.on_overflow == "map-reduce":
        raise UsageError("a server does not read documents part by part: leave out `on_overflow` map-reduce")
    limits = Limits(parallel, waiting, timeout, upload=max_upload)
    with Display(answers=None, notes=sys.stderr) as display:
        found = []
        if sources or selection.files_from:
            found = collect_documents(
                sources or [],
                selection,
                display,
                verbose=verbose,
                keep=store.writes,
                offline=model.offline,
            )
        runtime = Runtime.resolve(model, attention, prompt, store, display)
        with Server(runtime, found, sampling, limits, api_key or None) as server:
            server.open(display.show)
            server.run(host, port, lambda address: display.note(f"serving on {address}"))
