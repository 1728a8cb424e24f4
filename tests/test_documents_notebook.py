"""Notebooks become Markdown; anything else stays as it is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adamas_cli.documents import Selection, collect
from adamas_cli.documents.formats.notebook import Notebook
from adamas_cli.documents.formats.trouble import UnreadableError
from adamas_cli.progress import Silent

PYTHON = {"language_info": {"name": "python"}}


def markdown(*cells: object, metadata: object = PYTHON) -> str:
    notebook = Notebook(json.dumps({"nbformat": 4, "metadata": metadata, "cells": list(cells)}))
    return "\n\n".join(notebook.blocks())


def code(source: object, *outputs: object) -> dict[str, object]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def test_prose_code_and_outputs_in_order() -> None:
    shown = markdown(
        {"cell_type": "markdown", "source": ["# Title\n", "Some *prose*."]},
        code(
            ["x = 1\n", "x"],
            {"output_type": "stream", "name": "stdout", "text": ["hello\n"]},
            {"output_type": "execute_result", "data": {"text/plain": "1", "text/html": "<b>1</b>"}},
        ),
    )
    assert shown == (
        "# Title\nSome *prose*.\n\n```python\nx = 1\nx\n```\n\nOutput:\n\n```text\nhello\n1\n```"
    )


def test_pictures_are_counted() -> None:
    shown = markdown(
        {
            "cell_type": "markdown",
            "source": "![a](data:image/png;base64,QUJD+/=) ![b](b.png)",
            "attachments": {},
        },
        code("plot()", {"output_type": "display_data", "data": {"image/png": "SECRETBASE64"}}),
    )
    assert shown == "![a](image) ![b](b.png)\n\n```python\nplot()\n```\n\nOutput:\n\n[picture]"


def test_a_traceback_loses_its_colours() -> None:
    error = {
        "output_type": "error",
        "ename": "E",
        "evalue": "v",
        "traceback": ["\x1b[0;31mE\x1b[0m: v", "end"],
    }
    assert "```text\nE: v\nend\n```" in markdown(code("f()", error))


def test_a_fence_inside_a_cell_does_not_end_it() -> None:
    shown = markdown(code('"""\n````\nnested\n````\n"""'))
    assert shown.startswith("`````python\n")
    assert shown.rstrip().endswith("\n`````")


def test_empty_cells_vanish_and_the_language_is_the_kernels() -> None:
    assert markdown(code(""), {"cell_type": "markdown", "source": " \n"}) == ""
    assert markdown(code("1"), metadata={"kernelspec": {"language": "julia"}}) == "```julia\n1\n```"
    assert markdown(code("1"), metadata=None) == "```\n1\n```"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"cells": 3}', '{"worksheets": []}', "[" * 100_000])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        Notebook(text)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
cells = st.fixed_dictionaries(
    {},
    optional={
        "cell_type": st.sampled_from(["code", "markdown", "raw"]) | values,
        "source": st.lists(st.text()) | values,
        "outputs": st.lists(
            st.fixed_dictionaries(
                {"output_type": st.sampled_from(["stream", "error", "display_data"]) | values},
                optional={"text": values, "data": st.dictionaries(st.just("text/plain"), values)},
            )
        )
        | values,
    },
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(cells | values, max_size=5), values)
def test_strange_cells_never_raise(strange: list[object], metadata: object) -> None:
    markdown(*strange, metadata=metadata)


def read(tmp_path: Path, name: str, content: bytes) -> tuple[str, list[str]]:
    (tmp_path / name).write_bytes(content)
    found = collect(
        [str(tmp_path / name)], Selection(), stdin=io.BytesIO(), progress=Silent(), keep_converted=False
    )
    return "".join(found.documents[0].pieces()), found.note_lines()


def test_a_malformed_notebook_is_read_as_text(tmp_path: Path) -> None:
    text, notes = read(tmp_path, "broken.ipynb", b'{"cells": [\r\n<<<<<<< HEAD\r\n')
    assert text == '{"cells": [\n<<<<<<< HEAD\n'
    assert notes == [f"{tmp_path}/broken.ipynb: damaged, so its source is read"]


def test_output_that_has_no_plain_text() -> None:
    table = "<table><tr><th>city</th><th>pop</th></tr><tr><td>Ulm</td><td>126000</td></tr></table>"
    frame = {"text/plain": "  city     pop\n0  Ulm  126000", "text/html": f"<style>x</style>{table}"}
    for data in (
        {"text/html": table},
        frame,
        {"text/plain": "<IPython.core.display.HTML object>", "text/html": table},
    ):
        shown = markdown(code("df", {"output_type": "display_data", "data": data}))
        assert shown.endswith("Output:\n\n| city | pop |\n| --- | --- |\n| Ulm | 126000 |")
    latex = markdown(code("m", {"output_type": "display_data", "data": {"text/latex": ["$E=", "mc^2$"]}}))
    assert latex.endswith("Output:\n\n$E=mc^2$")
    found = markdown(code("m", {"output_type": "display_data", "data": {"application/json": {"answer": 42}}}))
    assert found.endswith('```json\n{"answer": 42}\n```')
    drawing = {
        "image/svg+xml": "<svg><text>bar</text></svg>",
        "text/plain": "<Figure size 640x480 with 1 Axes>",
    }
    assert markdown(code("m", {"output_type": "display_data", "data": drawing})).endswith("[picture: bar]")
    object_only = {"text/plain": "<matplotlib.lines.Line2D at 0x7f>", "text/html": ""}
    assert "Line2D" in markdown(code("m", {"output_type": "execute_result", "data": object_only}))


def test_a_notebook_of_nbformat_3(tmp_path: Path) -> None:
    outputs = [
        {"output_type": "stream", "stream": "stdout", "text": ["4711\n"]},
        {"output_type": "display_data", "png": "QUJD" * 1000},
        {"output_type": "pyout", "text": ["<object>"], "html": "<table><tr><th>a<th>b<tr><td>1<td>2</table>"},
        {"output_type": "pyerr", "ename": "E", "evalue": "v", "traceback": []},
    ]
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Title"]},
        {"cell_type": "code", "language": "python", "input": ["print(4711)"], "outputs": outputs},
        {"cell_type": "markdown", "source": ["The code is 4711."]},
    ]
    old = {"nbformat": 3, "metadata": {"name": ""}, "worksheets": [{"cells": cells}]}
    text, notes = read(tmp_path, "old.ipynb", json.dumps(old).encode())
    assert text == (
        "## Title\n\n```python\nprint(4711)\n```\n\nOutput:\n\n```text\n4711\n```\n\n[picture]\n\n"
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n\n```text\nE: v\n```\n\nThe code is 4711.\n"
    )
    assert notes == [f"{tmp_path}/old.ipynb: left out: pictures (1)"]


def test_progress_bars_and_attachments() -> None:
    bar = "".join(f"\r{n}%|####    | {n}/100" for n in range(101)) + "\ndone\n"
    shown = markdown(code("train()", {"output_type": "stream", "name": "stderr", "text": bar}))
    assert shown.endswith("```text\n100%|####    | 100/100 [after 100 earlier states]\ndone\n```")
    notebook = Notebook(
        json.dumps(
            {
                "cells": [
                    {
                        "cell_type": "markdown",
                        "source": "![x](attachment:x.png)",
                        "attachments": {"x.png": {}},
                    }
                ]
            }
        )
    )
    assert list(notebook.blocks()) == ["![x](attachment:x.png)"]
    assert notebook.left_out["pictures"] == 1


@pytest.mark.parametrize("name", ["stdin", "notes", "notes.json"])
def test_a_notebook_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    content = json.dumps({"cells": [{"cell_type": "markdown", "source": "# Hello"}], "nbformat": 4}).encode()
    text, _ = read(tmp_path, name, content)
    assert text == "# Hello\n"
    other, _ = read(tmp_path, "data.json", b'{"cells": [1, 2], "metadata": 3}')
    assert other.startswith("{")
