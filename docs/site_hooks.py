"""What mkdocs adds to the pages of docs/: README.md as the first page, and a page of every command's help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md")  # linked by README.md, but not pages of the site


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are outside of docs/ or generated."""
    files.append(File.generated(config, "index.md", content=front_page()))
    files.append(File.generated(config, "commands.md", content=command_page()))
    return files


def front_page() -> str:
    """README.md with links relative to docs/; files that are not pages are named without a link."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(rf"\[([^]]*)\]\((?:{'|'.join(map(re.escape, ELSEWHERE))})\)", r"\1", text)
    return re.sub(r"(\]\(|src=\"|srcset=\")docs/", r"\1", text)


def command_page() -> str:
    """Each command with its flags, as the program defines them."""
    lines = ["# Commands\n"]
    for path, command in leaves():
        lines += [f"## adamas {path}\n", f"{plain(command.help or '')}\n"]
        panels: dict[str, list[Any]] = {}
        for parameter in command.params:
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(parameter)
        for panel, parameters in panels.items():
            rows = [row for parameter in parameters if (row := row_of(parameter))]
            if rows:
                lines += [f"**{panel}**\n", "| flag | | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def leaves() -> Iterator[tuple[str, Any]]:
    """Every command that runs something, with its name."""
    from adamas_cli.commands.table import SUMMARIES, build

    waiting = [(name, build(name)) for name in reversed(SUMMARIES)]
    while waiting:
        path, command = waiting.pop()
        below = getattr(command, "commands", None)
        if below is None:
            yield path, command
        else:
            waiting += [(f"{path} {name}", below[name]) for name in reversed(below)]


def row_of(parameter: Any) -> str:
    """A flag's row of the table; empty for other parameters."""
    if not parameter.opts[0].startswith("-"):
        return ""
    flags = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
    shown = parameter.show_default and parameter.default not in (None, False, "", ())
    default = f"`{parameter.default}`" if shown else ""
    return f"| {flags} | {plain(parameter.help or '')} | {default} |"


def plain(text: str) -> str:
    """Help as a single paragraph."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
