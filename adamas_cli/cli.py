"""The command line: the root command, and the one place where exceptions become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from adamas_cli import __version__
from adamas_cli.commands import completion
from adamas_cli.commands.examples import attach
from adamas_cli.commands.failures import InterruptedByUserError, abandon_stdout, report
from adamas_cli.commands.options import setting_names, with_defaults
from adamas_cli.commands.table import Commands
from adamas_cli.config import config_path, read_config
from adamas_cli.errors import INTERRUPTED, RankLostError, UsageError, as_user_error
from adamas_cli.heap import collect_seldom
from adamas_cli.lost_interrupts import deliver_lost_interrupts

# typer's exception for a wrong command line; the base class of its public BadParameter has no public name.
_PARSE_ERROR: Any = typer.BadParameter.__bases__[0]

# Commands that report on the configuration file whatever it holds, or do not need it.
_WITHOUT_CONFIGURATION = {"completion", "config", "doctor", "env"}

app = typer.Typer(
    name="adamas",
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"adamas {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def adamas(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Ask questions about books, reports and code with a language model on your own machine."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        return
    if ctx.invoked_subcommand in _WITHOUT_CONFIGURATION:
        return
    ctx.default_map = {ctx.invoked_subcommand: read_config(setting_names())}


attach(app)


def run(arguments: Sequence[str] | None = None, closed: Sequence[str] = ()) -> int:
    """Run one command line and return its exit code; nothing is raised.

    arguments: None for the process's own, which then exits here if it is interrupted. closed: standard
    streams that lead nowhere because the caller has closed them.
    """
    owns_process = arguments is None
    if owns_process:
        deliver_lost_interrupts()
        collect_seldom()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    if "stdout" in closed and not any(word.startswith(("-o", "--output")) for word in arguments):
        print(
            "stdout is closed, so what is printed there is lost; -o writes an answer to a file",
            file=sys.stderr,
        )
    if os.environ.get("COLUMNS") in ("0", "1"):  # a terminal that has not reported its size, not a narrow one
        del os.environ["COLUMNS"]
    as_json = "--json" in arguments
    try:
        code = _run_typer(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        return abandon_stdout()
    except KeyboardInterrupt:
        code = report(InterruptedByUserError("interrupted"), as_json=as_json)
        if owns_process:
            # An orderly shutdown of torch can take longer than the second that Ctrl-C may take.
            _end_at_once(code)
    except Exception as error:  # the last line of defence: users see a traceback only on request
        shown = as_user_error(error)
        if shown is not error:
            shown.__cause__ = error
        code = report(shown, as_json=as_json)
        if owns_process and isinstance(shown, RankLostError):
            # Threads that still wait for the lost GPU would abort an orderly shutdown.
            _end_at_once(code)
        return code
    return code


def _end_at_once(code: int) -> NoReturn:
    """End this process without what libraries do at the end."""
    sys.stdout.flush()
    os._exit(code)


def _run_typer(arguments: list[str]) -> int:
    """The exit code; typer's own ways to exit are turned back into Python's exceptions."""
    completion.prepare(os.environ)
    try:
        result = app(with_defaults(arguments), prog_name="adamas", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        raise
    except _PARSE_ERROR as error:
        if not error.format_message():  # a group without a command has printed its help
            return UsageError.exit_code
        raise UsageError(_usage_message(error, arguments)) from None
    if result == INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _usage_message(error: Any, arguments: list[str]) -> str:
    message = error.format_message().replace("Value error, ", "")
    if arguments and os.path.exists(arguments[0]):
        return f'{message}\nto ask about a file: adamas ask {arguments[0]} "your question"'
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is not None and parameter is not None:
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name == "DEFAULT_MAP":
            wrong = " ".join(getattr(error, "message", message).replace("Value error, ", "").split())
            return f"the configuration file {config_path()} sets {parameter.name} to a wrong value: {wrong}"
    command = context.command_path if context is not None else "adamas"
    return f"{' '.join(message.split())}\ntry: {command} --help"
