"""`adamas chat`: a conversation about documents."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.commands.failures import report
from adamas_cli.commands.options import grouped
from adamas_cli.commands.reading import Sources, collect_documents, require_sources
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import UsageError
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import DecodingSettings, InputSettings, ModelSettings, OutputSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

if TYPE_CHECKING:
    from adamas_cli.chat.chat import Chat
    from adamas_cli.documents import Document
    from adamas_cli.terminal.editor import LineEditor, Words

EXAMPLE = "adamas chat book.txt"
HISTORY = "chat_history"


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
    output: OutputSettings,
) -> None:
    """Talk about documents: adamas chat book.txt

    They are read once. /help lists what else a line can be than a question. Without a terminal each line of
    stdin is one; -o keeps the transcript as Markdown, --json prints an object a line for each turn.
    """
    prepare_libraries(verbose=output.verbose, offline=model.offline)
    require_sources(sources, selection, EXAMPLE)
    on_terminal = _asks_on_terminal(sources or [], selection.files_from)
    file = _transcript(output.output)

    from adamas_cli.terminal.display import Display

    with Display(
        answers=None if output.json else sys.stdout,
        notes=sys.stderr,
        quiet=output.quiet,
        usage=output.usage,
        reasoning=not output.hide_reasoning,
    ) as display:

        def find(paths: Sequence[str]) -> list[Document]:
            chosen = replace(selection, files_from=None)
            return collect_documents(
                list(paths), chosen, display, verbose=output.verbose, keep=store.writes, offline=model.offline
            )

        documents = collect_documents(
            sources or [],
            selection,
            display,
            verbose=output.verbose,
            keep=store.writes,
            offline=model.offline,
        )
        from adamas_cli.chat.chat import Chat
        from adamas_cli.chat.loop import converse, follow, lines_of_stdin
        from adamas_cli.session.conversation import Conversation
        from adamas_cli.session.runtime import Runtime

        runtime = Runtime.resolve(model, attention, prompt, store, display)
        with Conversation(runtime, documents) as conversation:
            records = sys.stdout if output.json else None
            chat = Chat(conversation, display, sampling, find, records, file)
            if on_terminal:
                converse(chat, _editor(chat), report)
            else:
                follow(chat, lines_of_stdin())


def _asks_on_terminal(sources: list[str], files_from: str | None) -> bool:
    """Whether questions are typed. Raises UsageError if stdin holds a document and there is no terminal."""
    if not sys.stderr.isatty():
        if "-" in sources or files_from == "-":
            raise UsageError(
                "stdin holds a document, so questions need a terminal; give the document as a file"
            )
        return False
    return sys.stdin.isatty() or "-" in sources or files_from == "-"


def _transcript(path: Path | None) -> Path | None:
    if path is None or str(path) == "-":
        return None
    if not path.resolve().parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")
    return path


def _editor(chat: Chat) -> LineEditor:
    from adamas_cli.chat.commands import COMMANDS
    from adamas_cli.folders import state_directory
    from adamas_cli.terminal.editor import LineEditor

    completions: dict[str, Words | None] = {
        f"/{name}": None if command.argument else list for name, command in COMMANDS.items()
    }
    completions["/drop"] = lambda: [document.path for document in chat.conversation.documents]
    return LineEditor(completions, state_directory() / HISTORY)
