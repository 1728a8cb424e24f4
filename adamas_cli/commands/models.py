"""`adamas models`: models, their size on disk, and the default one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamas_cli.commands.shared import AsJson, Yes, confirm_removal, megabytes, print_json, told
from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.models.aliases import Alias, aliases
from adamas_cli.models.default import default_name, write_default
from adamas_cli.models.inventory import OnDisk, find, on_disk, remove, shape
from adamas_cli.models.quantizations import gigabytes
from adamas_cli.models.stores import HUB_CACHE, LLAMA_CPP, LM_STUDIO, OLLAMA

if TYPE_CHECKING:
    from adamas_cli.models.recommended import Recommended
    from adamas_cli.planning.fitting import Fit
    from adamas_cli.terminal.display import Display

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="List, fetch and remove models.",
)

_STORES = {
    HUB_CACHE: "Hugging Face's cache, which other programs share: use `hf cache rm`",
    OLLAMA: "ollama's store: use `ollama rm`",
    LM_STUDIO: "LM Studio's folder: remove it there",
    LLAMA_CPP: "llama.cpp's cache: remove it there",
}

Name = Annotated[str, typer.Argument(metavar="NAME", help="Short name or Hugging Face ID.")]


@app.command("ls")
def list_models(as_json: AsJson = False) -> None:
    """List the short names and all models on this machine."""
    default = default_name()
    _tell_freed()
    entries = on_disk()
    if as_json:
        print_json([_as_json(entry, default) for entry in entries])
        return
    rows = [("NAME", "ON DISK", "MODEL")]
    for entry in entries:
        mark = " (default)" if entry.name == default else ""
        rows.append(
            (entry.name + mark, _state(entry), entry.alias.title if entry.alias else entry.program or "")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, state, title in rows:
        print(f"{name:{widths[0]}}  {state:>{widths[1]}}  {title}".rstrip())


@app.command("recommended")
def list_recommended(as_json: AsJson = False) -> None:
    """List good models for long documents, and the context that fits this machine."""
    from adamas_cli.models.recommended import as_of, recommended
    from adamas_cli.planning.fitting import recommended_fits

    models = list(zip(recommended(), recommended_fits(), strict=True))
    if as_json:
        print_json([_recommended_as_json(model, fit) for model, fit in models])
        return
    rows = [("FOR", "SIZE", "CONTEXT", "FITS HERE", "LICENCE", "NAME")]
    for model, fit in models:
        size = gigabytes(model.bytes)
        rows.append((model.memory, size, f"{model.context:,}", told(fit), model.license, model.name))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[5]}")
    print(f"\nAs of {as_of()}. Fetch one with `adamas models pull NAME`, and ask it with -m NAME.")


@app.command("pull")
def pull(name: Name) -> None:
    """Fetch a model; one that is here is checked, and fetched again if damaged."""
    from adamas_cli.models.fetch import fetch, local_file, verify
    from adamas_cli.models.hub import download

    alias = aliases().get(name)
    with _display() as progress:
        if alias is not None:
            if not verify(alias, progress):
                fetch(alias, offline=False, progress=progress)
            path = local_file(alias)
        elif Path(name).expanduser().exists():
            raise UsageError(f"{name} is already on this machine: pass its name to -m.")
        else:
            repository, _, tag = name.partition(":")
            path = download(repository, progress, tag)
    print(path)


@app.command("rm")
def remove_model(name: Name, yes: Yes = False) -> None:
    """Remove a model's file and settings from this tool's cache."""
    entry = _require(name)
    if not entry.paths:
        raise ModelUnavailableError(f"{name} is not on this machine: nothing to remove.")
    if entry.program is not None:
        raise UsageError(f"{name} is in {_STORES.get(entry.program, entry.program)}.")
    if not yes:
        confirm_removal(name, f"Remove {name} ({megabytes(entry.bytes)})?")
    with _display() as progress:
        remove(entry, progress)
    print(f"removed {name}, {megabytes(entry.bytes)}")


@app.command("show")
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a model's source, hash, sizes and licence, and its shape once it was used."""
    facts = _facts(_require(name))
    if as_json:
        print_json(facts)
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{key.replace('_', ' '):{width}}  {shown}")


@app.command("default")
def default(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The model to use from now on.")
    ] = None,
) -> None:
    """Print or set the default model."""
    if name is not None:
        write_default(name)
    print(default_name())


def _require(name: str) -> OnDisk:
    entry = find(name)
    if entry is None:
        raise ModelUnavailableError(f"unknown model {name}; `adamas models ls` lists the models.")
    return entry


def _facts(entry: OnDisk) -> dict[str, Any]:
    alias = entry.alias
    facts: dict[str, Any] = {"name": entry.name}
    if alias is not None:
        facts |= {"title": alias.title, "license": alias.license, "source": _sources(alias)}
        facts |= {"file_bytes": alias.bytes, "sha256": alias.sha256, "context": alias.context}
    facts |= shape(entry)
    return facts | {"bytes_on_disk": entry.bytes, "paths": [str(path) for path in entry.paths]}


def _sources(alias: Alias) -> list[str]:
    sources = [f"Hugging Face hub: {alias.hub}/{alias.file}"] if alias.hub else []
    if alias.wheels is not None:
        last = alias.wheels.requirement(alias.wheels.parts)
        through = f" to {last}" if alias.wheels.parts > 1 else ""
        sources.append(f"wheels: {alias.wheels.requirement(1)}{through}")
    return sources


def _as_json(entry: OnDisk, default: str) -> dict[str, Any]:
    return {
        "name": entry.name,
        "title": entry.alias.title if entry.alias else None,
        "default": entry.name == default,
        "program": entry.program,
        "fetched": entry.file is not None or (entry.alias is None and bool(entry.settings)),
        "bytes_on_disk": entry.bytes,
        "paths": [str(path) for path in entry.paths],
    }


def _recommended_as_json(model: Recommended, fit: Fit) -> dict[str, Any]:
    return {
        "name": model.name,
        "title": model.title,
        "for": model.memory,
        "license": model.license,
        "bytes": model.bytes,
        "context": model.context,
        "fetched": fit.present,
        "fitting_tokens": fit.largest,
    }


def _state(entry: OnDisk) -> str:
    if not entry.paths:
        return "-"
    incomplete = entry.partial is not None and entry.file is None and not entry.settings
    return megabytes(entry.bytes) + (" (partial)" if incomplete else "")


def _tell_freed() -> None:
    from adamas_cli.models.earlier import remove_earlier

    with _display() as progress:
        remove_earlier(progress)


def _display() -> Display:
    from adamas_cli.terminal.display import Display

    return Display(answers=None, notes=sys.stderr)
