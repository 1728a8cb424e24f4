"""`adamas read`: the text that a model would be given, without a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from adamas_cli.commands.options import Offline, grouped
from adamas_cli.commands.reading import Sources, collect_all, destination, require_sources
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import InputSettings
from adamas_cli.store.settings import StoreSettings
from adamas_cli.terminal.spelling import spelled

if TYPE_CHECKING:
    from adamas_cli.documents import Collection, Document
    from adamas_cli.progress import Progress

EXAMPLE = "adamas read report.pdf"


@grouped
def command(
    context: typer.Context,
    sources: Sources = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Count tokens too, with the tokenizer of the model.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            envvar="ADAMAS_MODEL",
            metavar="NAME",
            help="Count tokens with this model's tokenizer.",
        ),
    ] = None,
    offline: Offline = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the text to a file; `-` is stdout."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: each document's text and what is known of it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show only the text and errors.")] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Show more notes; -vv adds tracebacks.")
    ] = 0,
    *,
    selection: InputSettings,
    store: StoreSettings,
) -> None:
    """Print the text that a model would be given: adamas read report.pdf

    These are the documents of the prompt, as `ask` lays them out. Only counting tokens needs a model.
    """
    prepare_libraries(verbose=verbose, offline=True)
    require_sources(sources, selection, EXAMPLE)
    tokens = tokens or _on_command_line(context, "model")

    from adamas_cli.terminal.display import Display

    with (
        destination(output) as stream,
        Display(answers=None, notes=sys.stderr, quiet=quiet) as display,
    ):
        collection = collect_all(
            sources or [], selection, display, verbose=verbose, keep=store.writes, offline=offline
        )
        documents = collection.documents
        counted = _count(documents, model, display) if tokens else None
        display.settle()
        if as_json:
            record = _record(collection, counted)
            json.dump(record, stream, ensure_ascii=False, indent=2)
            stream.write("\n")
            characters = sum(document["characters"] for document in record["documents"])
        else:
            characters = _print(documents, stream)
        stream.flush()
        display.note(_summary(len(documents), characters, counted))


def _on_command_line(context: typer.Context, name: str) -> bool:
    """Whether the user typed a flag; the environment's and the configuration's values are for answers."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _count(documents: Sequence[Document], name: str | None, progress: Progress) -> list[int]:
    """The tokens of each document, including its wrapper. Raises ModelUnavailableError."""
    from adamas_cli.models import resolve
    from adamas_cli.models.resolve import require_here
    from adamas_cli.prompt.layout import Layout
    from adamas_cli.prompt.template import Frame
    from adamas_cli.prompt.tokens import Tokenizer

    require_here(name)
    files = resolve(name, offline=True, progress=progress)
    layout = Layout(Tokenizer.of(files), Frame("", "", ""))
    with progress.task("counting tokens", None, "tokens") as advance:
        layout.expect(documents)
        for document in documents:
            layout.add(document, advance)
    return [document.tokens for document in layout.documents]


def _print(documents: Sequence[Document], stream: TextIO) -> int:
    """Print the documents as they appear in the prompt; return the number of characters."""
    from adamas_cli.prompt.template import wrapped
    from adamas_cli.sanitize import Sanitizer

    sanitizer = Sanitizer() if stream.isatty() else None  # escape codes in a document must not control it
    characters = 0
    for document in documents:
        for piece in wrapped(document):
            characters += len(piece)
            stream.write(piece if sanitizer is None else sanitizer.feed(piece))
    if sanitizer is not None:
        stream.write(sanitizer.flush())
    return characters


def _record(collection: Collection, counted: Sequence[int] | None) -> dict[str, Any]:
    documents = [_described(document) for document in collection.documents]
    for document, tokens in zip(documents, counted or repeat(None), strict=False):
        document["tokens"] = tokens
    return {
        "documents": documents,
        "skipped": {spelled(reason): count for reason, count in collection.skipped.items()},
        "examples": {spelled(reason): paths for reason, paths in collection.examples.items()},
        "notes": [spelled(note) for note in collection.notes],
    }


def _described(document: Document) -> dict[str, Any]:
    """Everything known about a document, and its text as in the prompt, without the lines around it."""
    from adamas_cli.prompt.template import escaped, without_surrogates

    sections: list[dict[str, object]] = []

    def texts() -> Iterator[str]:
        line = 1
        for text, section in document.parts():
            if section is not None:
                sections.append({"name": section, "line": line})
            line += text.count("\n")
            yield text

    text = without_surrogates("".join(escaped(texts())))
    return {
        "path": document.path,
        "format": document.format,
        "encoding": document.encoding,
        "encoding_by": document.reading.encoding.origin if document.reading is not None else None,
        "bytes": document.size,
        "characters": len(text),
        "sections": sections,
        "left_out": {spelled(kind): count for kind, count in document.left_out.items()},
        "remarks": {remark.kind: remark.count for remark in document.remarks if not remark.left_out},
        "text": text,
    }


def _summary(number: int, characters: int, counted: Sequence[int] | None) -> str:
    line = f"{number:,} document{'s' * (number != 1)}, {characters:,} characters"
    return line if counted is None else f"{line}, {sum(counted):,} tokens"
