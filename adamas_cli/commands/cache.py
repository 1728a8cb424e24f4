"""`adamas cache`: the documents kept on disk, as models have read them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from adamas_cli.commands.options import parse_length
from adamas_cli.commands.shared import AsJson, Yes, confirm_removal, megabytes, print_json
from adamas_cli.errors import AdamasError, UsageError
from adamas_cli.sanitize import one_line
from adamas_cli.store.entries import OnDisk, on_disk, prune, remove, stored_files, total_bytes
from adamas_cli.store.places import block_of, documents_directory

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="List, check and remove documents that were read before.",
)

Which = Annotated[
    str, typer.Argument(metavar="DOCUMENT", help="Its ID, the first characters of it, or its path.")
]

_SHOWN_DOCUMENTS = 3
_AGES = ((86400, "days"), (3600, "hours"), (60, "minutes"))


@app.command("ls")
def list_documents(as_json: AsJson = False) -> None:
    """List documents, most recently used first."""
    from adamas_cli.models.earlier import remove_earlier
    from adamas_cli.terminal.display import Display

    with Display(answers=None, notes=sys.stderr) as progress:
        remove_earlier(progress)
    found = on_disk(documents_directory())
    if as_json:
        print_json([_facts(held) for held in found])
        return
    from adamas_cli.documents.converted import converted_directory, texts_on_disk

    texts = texts_on_disk(converted_directory())
    if texts:
        size = megabytes(sum(bytes for _, bytes in texts))
        print(f"also {size} of text from {len(texts):,} converted files", file=sys.stderr)
    if not found:
        print("no documents are kept yet", file=sys.stderr)
        return
    rows = [("ID", "TOKENS", "READ", "SIZE", "LAST USED", "MODEL", "DOCUMENTS")]
    for held in found:
        entry = held.entry
        used = _age(time.time() - entry.used)
        tokens, names = _tokens(held), _names(entry.documents)
        size, model = megabytes(held.bytes), one_line(entry.model)
        rows.append((entry.id, tokens, entry.read, size, used, model, names))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for id, tokens, read, size, used, model, names in rows:
        left = f"{id:{widths[0]}}  {tokens:>{widths[1]}}  {read:{widths[2]}}  {size:>{widths[3]}}"
        print(f"{left}  {used:{widths[4]}}  {model:{widths[5]}}  {names}")


@app.command("info")
def info(document: Which, as_json: AsJson = False) -> None:
    """Show what is kept of a document."""
    found = [_facts(held) for held in _find(document)]
    if as_json:
        print_json(found[0] if len(found) == 1 else found)
        return
    for number, facts in enumerate(found):
        if number:
            print()
        width = max(len(key) for key in facts)
        for key, value in facts.items():
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            print(f"{key.replace('_', ' '):{width}}  {one_line(shown)}")


@app.command("rm")
def remove_documents(
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="DOCUMENTS...", help="IDs, their first characters, or paths."),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="All documents, the texts of converted files and the answers of parts."),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove documents from the store; the original files stay."""
    root = documents_directory()
    if bool(documents) == everything:
        raise UsageError("name the documents to remove, or pass --all")
    chosen = on_disk(root) if everything else [held for name in documents or () for held in _find(name)]
    if chosen and not yes:
        size = megabytes(sum(held.bytes for held in chosen))
        confirm_removal("documents", f"Remove {len(chosen)} of the documents ({size})?")
    with _writing():
        freed = remove(root, [held.entry.id for held in chosen]) if root.is_dir() else 0
    if everything:
        from adamas_cli.longdoc.resume import remove_partials

        freed += _prune_converted(0) + remove_partials()
    _tell_removed([held.entry.id for held in chosen], freed, as_json)


@app.command("prune")
def prune_documents(
    max_size: Annotated[
        int,
        typer.Option("--max-size", metavar="LENGTH", parser=parse_length, help="Bytes to keep, such as 20g."),
    ],
    as_json: AsJson = False,
) -> None:
    """Remove the least recently used documents until the rest is small enough, and what belongs to none.

    Texts of converted files, which are quickly made again, keep to what room the documents leave.
    """
    with _writing():
        removed, freed = prune(documents_directory(), max_size)
    freed += _prune_converted(max(0, max_size - total_bytes(documents_directory())))
    _tell_removed([entry.id for entry in removed], freed, as_json)


@app.command("verify")
def verify_documents(as_json: AsJson = False) -> None:
    """Read all kept documents and compare their checksums."""
    from adamas_cli.store.blocks import verify

    root = documents_directory()
    problems = {}
    checked = 0
    for file in sorted(stored_files(root)):
        checked += 1
        problem = verify(file, file.stem)
        if problem is not None:
            problems[file.stem] = problem
    names = {key: held.entry.id for held in on_disk(root) for key in held.entry.blocks}
    damaged = [
        {"block": key, "document": names.get(block_of(key)), "problem": problem}
        for key, problem in problems.items()
    ]
    if as_json:
        print_json({"checked": checked, "damaged": damaged})
    else:
        for found in damaged:
            print(f"{found['document'] or 'no document'}: {found['block']}: {found['problem']}")
        print(f"checked {checked:,} files, {len(damaged):,} damaged")
    if damaged:
        raise typer.Exit(AdamasError.exit_code)


@app.command("path")
def path(as_json: AsJson = False) -> None:
    """Print the folder of the store."""
    root = str(documents_directory())
    if as_json:
        print_json({"path": root})
    else:
        print(root)


def _prune_converted(limit: int) -> int:
    """Keep at most `limit` bytes of converted texts; returns the bytes freed."""
    from adamas_cli.documents.converted import converted_directory, prune

    return prune(converted_directory(), limit)


def _find(name: str) -> list[OnDisk]:
    found = [
        held
        for held in on_disk(documents_directory())
        if held.entry.id.startswith(name) or name in held.entry.documents
    ]
    if not found:
        raise UsageError(f"no document {name} is kept; `adamas cache ls` lists those that are.")
    return found


def _facts(held: OnDisk) -> dict[str, Any]:
    entry = held.entry
    return {
        "id": entry.id,
        "documents": entry.documents,
        "model": entry.model,
        "dtype": entry.dtype,
        "device": entry.device,
        "tokens": entry.tokens,
        "tokens_kept": held.tokens,
        "read": entry.read,
        "bytes": held.bytes,
        "blocks": len(entry.blocks),
        "blocks_kept": held.whole,
        "created": _date(entry.created),
        "last_used": _date(entry.used),
    }


def _tell_removed(ids: Sequence[str], freed: int, as_json: bool) -> None:
    if as_json:
        print_json({"removed": list(ids), "bytes": freed})
    else:
        print(f"removed {len(ids)} documents, {megabytes(freed)}")


@contextmanager
def _writing() -> Iterator[None]:
    """Report in one line why the store cannot be changed."""
    try:
        yield
    except OSError as error:
        raise AdamasError(f"cannot write to {documents_directory()}: {error.strerror}") from error


def _tokens(held: OnDisk) -> str:
    if held.tokens == held.entry.tokens:
        return f"{held.tokens:,}"
    return f"{held.tokens:,} of {held.entry.tokens:,}"


def _names(documents: Sequence[str]) -> str:
    shown = ", ".join(map(one_line, documents[:_SHOWN_DOCUMENTS]))
    more = len(documents) - _SHOWN_DOCUMENTS
    return f"{shown} and {more:,} more" if more > 0 else shown


def _age(seconds: float) -> str:
    for size, unit in _AGES:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
