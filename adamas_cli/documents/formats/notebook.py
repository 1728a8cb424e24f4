"""Jupyter notebooks as Markdown: prose, fenced code and text outputs; pictures are counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adamas_cli.documents.decoding import characters
from adamas_cli.documents.encodings import Encoding
from adamas_cli.documents.formats.markup import headed, markdown
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark
from adamas_cli.documents.simplifying import simplified

MAX_BYTES = 64 * 2**20  # a notebook is parsed as a whole

_INLINE_IMAGE = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=]+(?:\s+[A-Za-z0-9+/=]{40,})*")
_BACKTICKS = re.compile(r"^ {0,3}(`{3,})", re.MULTILINE)
# IPython's plain text for an object whose output is really in another form.
_PLACEHOLDER = re.compile(
    r"<[\w.]+(?: object(?: at 0x[0-9a-f]+)?| size [^>]*)>|Figure\([^)]*\)|\w+\(children=.*", re.DOTALL
)
_INTERACTIVE = re.compile(r"widget-view|plotly|bokeh|vega")
_PLAIN, _JSON, _SVG = "text/plain", "application/json", "image/svg+xml"
_OLD_KEYS = {
    "text": _PLAIN,
    "html": "text/html",
    "latex": "text/latex",
    "markdown": "text/markdown",
    "json": _JSON,
}
_OLD_PICTURES = {"png": "image/png", "jpeg": "image/jpeg", "svg": _SVG, "pdf": "application/pdf"}
_DRAWN_TEXT = re.compile(r"<(?:text|tspan|title|desc)\b[^>]*>([^<]+)", re.IGNORECASE)


def read(path: str, encoding: str | None = None) -> Iterator[Part | Remark]:
    """Markdown, with a section for each heading. encoding: the codec. Raises UnreadableError if the file is
    not a notebook.
    """
    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise UnreadableError(Trouble.TOO_LARGE)
    known = Encoding(encoding) if encoding else None
    written = Notebook("".join(characters([file.read_bytes()], known)).removeprefix("\ufeff"))
    yield from headed("\n\n".join(written.blocks()))
    for kind, count in (+written.left_out).items():
        yield Remark(kind, count)


class Notebook:
    """The notebook in `text` (JSON, nbformat 3 or 4), and counts of what `blocks` omitted, by kind.

    Raises UnreadableError if `text` is anything else.
    """

    def __init__(self, text: str) -> None:
        try:
            notebook = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UnreadableError(Trouble.DAMAGED, str(error)) from error
        self._cells = _cells(notebook)
        self._language = _language(notebook.get("metadata"))
        self.left_out: Counter[str] = Counter()

    def blocks(self) -> Iterator[str]:
        """The cells as Markdown."""
        for cell in self._cells:
            if isinstance(cell, dict):
                yield from self._cell(cell)

    def _cell(self, cell: dict[str, Any]) -> Iterator[str]:
        kind = cell.get("cell_type")
        source = _text(cell.get("source", cell.get("input"))).strip("\n")
        if kind != "code":
            if kind == "heading":  # nbformat 3
                level = cell.get("level")
                source = "#" * (level if isinstance(level, int) and 1 <= level <= 6 else 1) + " " + source
            source, images = _INLINE_IMAGE.subn("image", source)
            attachments = cell.get("attachments")
            self.left_out["pictures"] += images + (len(attachments) if isinstance(attachments, dict) else 0)
            if source.strip():
                yield source
            return
        if source.strip():
            language = cell.get("language")
            yield fenced(
                source, _language({"kernelspec": cell}) if isinstance(language, str) else self._language
            )
        yield from self._outputs(cell.get("outputs"))

    def _outputs(self, outputs: Any) -> Iterator[str]:
        """A cell's outputs: consecutive plain text in one fence, other forms as Markdown."""
        plain: list[str] = []
        titled = False
        for output in outputs if isinstance(outputs, list) else []:
            text, is_plain = self._output(output)
            if is_plain:
                plain.append(text)
                continue
            for block in (_plain_block(plain), text.strip("\n")):
                if block:
                    yield block if titled else f"Output:\n\n{block}"
                    titled = True
            plain = []
        if block := _plain_block(plain):
            yield block if titled else f"Output:\n\n{block}"

    def _output(self, output: Any) -> tuple[str, bool]:
        """The text of one output, and whether it is plain text."""
        if not isinstance(output, dict):
            return "", True
        kind = output.get("output_type")
        if kind == "stream":
            return _text(output.get("text")), True
        if kind in ("error", "pyerr"):
            trace = output.get("traceback")
            lines = [line for line in trace if isinstance(line, str)] if isinstance(trace, list) else []
            return "\n".join(
                lines
            ) + "\n" if lines else f"{output.get('ename')}: {output.get('evalue')}\n", True
        data = output.get("data")
        return self._shown(data if isinstance(data, dict) else _old_data(output))

    def _shown(self, data: dict[str, Any]) -> tuple[str, bool]:
        """The most readable form of an object: plain text, unless that only names the object."""
        plain = _text(data.get(_PLAIN))
        html = _text(data.get("text/html"))
        bare = plain.strip()
        empty = not bare or _PLACEHOLDER.fullmatch(bare) is not None
        for name in ("text/markdown", "text/latex"):
            if text := _text(data.get(name)):
                return text, False
        if html and (empty or "<table" in html.lower()) and (text := markdown(html)):
            return text, False
        if not empty:
            self._count_pictures(data)
            return plain + "\n", True
        if isinstance(data.get(_JSON), dict | list | str | int | float):
            found = data[_JSON]
            text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
            return fenced(text, "json"), False
        pictures = self._count_pictures(data)
        drawn = " ".join(" ".join(_DRAWN_TEXT.findall(_text(data.get(_SVG)))).split())
        if pictures or drawn:
            return f"[picture{': ' + drawn if drawn else ''}]", False
        return (plain + "\n", True) if bare else ("", True)

    def _count_pictures(self, data: dict[str, Any]) -> bool:
        found = any(isinstance(kind, str) and kind.startswith(("image/", "application/pdf")) for kind in data)
        self.left_out["pictures"] += found
        self.left_out["interactive outputs"] += any(
            _INTERACTIVE.search(str(kind)) is not None for kind in data
        )
        return found


def _cells(notebook: Any) -> list[Any]:
    """The cells of nbformat 4, or of the worksheets of nbformat 3. Raises UnreadableError."""
    if isinstance(notebook, dict):
        cells, sheets = notebook.get("cells"), notebook.get("worksheets")
        if isinstance(cells, list):
            return cells
        if isinstance(sheets, list) and sheets:
            inside = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)]
            return [cell for cells in inside if isinstance(cells, list) for cell in cells]
    raise UnreadableError(Trouble.DAMAGED, "a notebook is an object with a list of cells")


def _old_data(output: dict[str, Any]) -> dict[str, Any]:
    """The forms of an nbformat 3 output, which are stored beside its type, by MIME type."""
    return {name: output[key] for key, name in (_OLD_KEYS | _OLD_PICTURES).items() if key in output}


def _language(metadata: Any) -> str:
    """The name of the kernel's language, for the fences; empty if the notebook does not say."""
    for key, name in (("language_info", "name"), ("kernelspec", "language")):
        section = metadata.get(key) if isinstance(metadata, dict) else None
        value = section.get(name) if isinstance(section, dict) else None
        if isinstance(value, str) and value.isprintable() and "`" not in value:
            return value
    return ""


def _plain_block(texts: list[str]) -> str:
    """Plain outputs in a fence, without text that a terminal would have overwritten."""
    text = "".join(simplified(["".join(texts)])).strip("\n")
    return fenced(text, "text") if text.strip() else ""


def _text(value: Any) -> str:
    """nbformat's multiline string: one string or a list of lines."""
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def fenced(body: str, language: str) -> str:
    """`body` in a fence longer than any fence inside it."""
    longest = max((len(ticks) for ticks in _BACKTICKS.findall(body)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{body}\n{fence}"
