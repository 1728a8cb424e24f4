"""Shared by commands that read documents: finding the documents, and the destination of the answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    from adamas_cli.documents import Collection, Document, Selection
    from adamas_cli.settings import InputSettings
    from adamas_cli.terminal.display import Display


Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCES...", help="Files, folders, addresses or `-` (stdin).", show_default=False
    ),
]


def require_sources(sources: list[str] | None, chosen: InputSettings, example: str) -> None:
    """Raises UsageError, with an example, if no document is named."""
    if not sources and chosen.files_from is None:
        raise UsageError(f"give documents, as in: {example}\n`-` reads one from stdin")


def collect_documents(
    sources: list[str], chosen: InputSettings, display: Display, *, verbose: int, **how: Any
) -> list[Document]:
    """The documents in the user's sources; skipped files are counted on stderr, with examples if `verbose`.

    how: as in `collect_all`.
    Raises UsageError, NothingReadableError, AdamasError for sources that cannot be fetched.
    """
    return collect_all(sources, chosen, display, verbose=verbose, **how).documents


def collect_all(
    sources: list[str],
    chosen: InputSettings,
    display: Display,
    *,
    verbose: int,
    keep: bool = True,
    offline: bool = False,
    ocr_sample: bool = False,
) -> Collection:
    """The same documents, with details about everything skipped. keep: keep texts of converted documents for
    later runs. offline: fetch nothing. ocr_sample: read one page of each document by OCR, as an estimate.
    """
    from adamas_cli.documents import collect

    collection = collect(
        with_file_list(sources, chosen),
        selection_of(chosen, ocr_sample=ocr_sample),
        stdin=sys.stdin.buffer,
        progress=display,
        keep_converted=keep,
        offline=offline,
    )
    for note in collection.note_lines():
        display.note(note)
    tell_skipped(collection, display, verbose=verbose)
    return collection


def with_file_list(sources: list[str], chosen: InputSettings) -> list[str]:
    """The sources and those that `--files-from` lists. Raises UsageError."""
    from adamas_cli.documents import read_file_list

    if chosen.files_from is None:
        return sources
    if chosen.files_from == "-":
        return sources + read_file_list(sys.stdin.buffer, chosen.null)
    try:
        with open(chosen.files_from, "rb") as stream:
            return sources + read_file_list(stream, chosen.null)
    except OSError as error:
        raise UsageError(f"cannot read --files-from {chosen.files_from}: {error.strerror}") from error


def selection_of(chosen: InputSettings, *, ocr_sample: bool = False) -> Selection:
    """The part of the settings that says what is taken from files and folders."""
    from adamas_cli.documents import DEFAULT_MAX_FILE_SIZE, Selection

    return Selection(
        include=tuple(chosen.include or ()),
        exclude=tuple(chosen.exclude or ()),
        gitignore=not chosen.no_gitignore,
        hidden=chosen.hidden,
        secrets=chosen.secrets,
        max_file_size=DEFAULT_MAX_FILE_SIZE if chosen.max_file_size is None else chosen.max_file_size or None,
        generated=chosen.generated,
        tree=not chosen.no_tree,
        line_numbers=chosen.line_numbers,
        whole_pages=chosen.whole_pages,
        ocr=chosen.ocr,
        ocr_language=chosen.ocr_language,
        ocr_sample=ocr_sample,
        encoding=chosen.encoding,
        text=chosen.text,
    )


def tell_skipped(collection: Collection, display: Display, *, verbose: int) -> None:
    """Say how many files were left out, and with `verbose` which, for example."""
    skipped = collection.skipped_line()
    if skipped is not None:
        display.note(skipped)
        if verbose:
            for reason, paths in collection.examples.items():
                display.note(f"  {reason}: {', '.join(paths)}")


@contextmanager
def destination(path: Path | None) -> Iterator[TextIO]:
    """The stream for the answer: stdout, or a file that is written completely or not at all."""
    if path is None or str(path) == "-":
        yield sys.stdout
        return
    from adamas_cli.output import replacing

    with replacing(path) as stream:
        yield stream
