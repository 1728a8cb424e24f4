"""Notebooks become Markdown; what is no notebook stays the text it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adamas_cli.documents.document import Document, File
from adamas_cli.documents.formats.notebook import NotANotebookError, notebook_pieces

PYTHON = {"language_info": {"name": "python"}}


def markdown(*cells: object, metadata: object = PYTHON) -> str:
    return "".join(notebook_pieces(json.dumps({"nbformat": 4, "metadata": metadata, "cells": list(cells)})))


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
        "# Title\nSome *prose*.\n\n```python\nx = 1\nx\n```\n\nOutput:\n\n```text\nhello\n1\n```\n\n"
    )


def test_images_are_left_out() -> None:
    shown = markdown(
        {
            "cell_type": "markdown",
            "source": "![a](data:image/png;base64,QUJD+/=) ![b](b.png)",
            "attachments": {},
        },
        code("plot()", {"output_type": "display_data", "data": {"image/png": "SECRETBASE64"}}),
    )
    assert shown == "![a](image) ![b](b.png)\n\n```python\nplot()\n```\n\n"


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
    assert markdown(code("1"), metadata={"kernelspec": {"language": "julia"}}) == "```julia\n1\n```\n\n"
    assert markdown(code("1"), metadata=None) == "```\n1\n```\n\n"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"cells": 3}', '{"worksheets": []}', "[" * 100_000])
def test_anything_else_is_refused_before_the_first_piece(text: str) -> None:
    with pytest.raises(NotANotebookError):
        next(notebook_pieces(text))


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


def test_a_large_output_comes_in_bounded_pieces() -> None:
    notebook = json.dumps({"cells": [code("1", {"output_type": "stream", "text": "a" * 3_000_000})]})
    assert max(map(len, notebook_pieces(notebook))) <= 1024 * 1024


def test_a_malformed_notebook_is_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    path.write_text('{"cells": [\r\n<<<<<<< HEAD\r\n', newline="")
    size = path.stat().st_size
    document = Document("broken.ipynb", size, File(str(path), size), is_notebook=True)
    assert "".join(document.pieces()) == '{"cells": [\n<<<<<<< HEAD\n'
