"""Jupyter notebooks as Markdown: prose, fenced code and text outputs, without images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_BYTES = 64 * 1024 * 1024  # a notebook is parsed as a whole, unlike everything else
_PIECE = 1024 * 1024

_ESCAPE_CODE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_INLINE_IMAGE = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=\s]+")
_BACKTICKS = re.compile(r"^ {0,3}(`{3,})", re.MULTILINE)


class NotANotebookError(ValueError):
    """The text is not JSON, or not a notebook of nbformat 4."""


def notebook_pieces(text: str) -> Iterator[str]:
    """Markdown of the notebook `text` (JSON, nbformat 4), in pieces of at most 1 MiB.

    Raises NotANotebookError before the first piece when `text` is anything else.
    """
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotANotebookError(str(error)) from error
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise NotANotebookError("a notebook is an object with a list of cells")
    language = _language(notebook.get("metadata"))
    for cell in notebook["cells"]:
        if isinstance(cell, dict):
            for block in _cell_blocks(cell, language):
                for start in range(0, len(block), _PIECE):
                    yield block[start : start + _PIECE]
                yield "\n\n"


def _language(metadata: Any) -> str:
    """The name of the kernel's language, for the fences; empty when the notebook does not say."""
    for key, name in (("language_info", "name"), ("kernelspec", "language")):
        section = metadata.get(key) if isinstance(metadata, dict) else None
        value = section.get(name) if isinstance(section, dict) else None
        if isinstance(value, str) and value.isprintable() and "`" not in value:
            return value
    return ""


def _cell_blocks(cell: dict[str, Any], language: str) -> Iterator[str]:
    source = _text(cell.get("source")).strip("\n")
    if cell.get("cell_type") != "code":
        source = _INLINE_IMAGE.sub("image", source)
        if source.strip():
            yield source
        return
    if source.strip():
        yield _fenced(source, language)
    outputs = cell.get("outputs")
    texts = [_output_text(output) for output in outputs] if isinstance(outputs, list) else []
    output = _ESCAPE_CODE.sub("", "".join(texts)).strip("\n")
    if output.strip():
        yield "Output:\n\n" + _fenced(output, "text")


def _output_text(output: Any) -> str:
    """The text of one output, ending a line; empty for images, HTML and widgets that have no text form."""
    if not isinstance(output, dict):
        return ""
    kind = output.get("output_type")
    if kind == "stream":
        return _text(output.get("text"))
    if kind == "error":
        trace = output.get("traceback")
        lines = [line for line in trace if isinstance(line, str)] if isinstance(trace, list) else []
        return "\n".join(lines) + "\n" if lines else f"{output.get('ename')}: {output.get('evalue')}\n"
    data = output.get("data")
    if not isinstance(data, dict):
        return ""
    text = _text(data.get("text/plain")) or _text(data.get("text/markdown"))
    return text + "\n" if text else ""


def _text(value: Any) -> str:
    """nbformat's multiline string: one string or a list of lines."""
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _fenced(body: str, language: str) -> str:
    """`body` in a fence longer than any fence inside it."""
    longest = max((len(ticks) for ticks in _BACKTICKS.findall(body)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{body}\n{fence}"
