"""The lines of one PDF page in reading order."""

from __future__ import annotations

from typing import Any

from adamas_cli.documents.formats.pdf.annotations import Annotation, annotations_of
from adamas_cli.documents.formats.pdf.characters import Characters
from adamas_cli.documents.formats.pdf.layout import read_order
from adamas_cli.documents.formats.pdf.plain import drawn_lines, is_right_to_left, plain_lines
from adamas_cli.documents.formats.pdf.repeated import PageLines
from adamas_cli.documents.formats.pdf.rules import Rules, may_hold_grid, turned_box
from adamas_cli.documents.formats.pdf.runs import Run, around
from adamas_cli.documents.formats.pdf.tables import ruled

MAX_RUNS = 10_000  # of a page that gets a layout: with more, it is a drawing made of letters
_TOUCH = 5.0  # points by which a field may overlap its label


def page_lines(page: Any) -> PageLines:
    """The lines of an open page. Text in another direction than most comes last, followed by notes.

    Values of form fields and text boxes are placed among the lines, by their position on the page.
    """
    characters = Characters(page)
    edges = page.get_bbox()
    beside = annotations_of(page)
    placed = [annotation for annotation in beside if not annotation.note]
    if is_right_to_left(characters.text):
        plain: list[Run] | None = drawn_lines(characters) + [
            Run(value.text, *value.box, order) for order, value in enumerate(placed)
        ]
    elif placed or may_hold_grid(page):
        plain = None
    else:
        plain = plain_lines(characters)
    if plain is not None:
        return PageLines(plain + _notes(beside), edges[1], edges[3])
    from adamas_cli.documents.formats.pdf.turned import runs_by_turn  # imports numpy, which books don't need

    rules = Rules(page)
    lines: list[Run] = []
    turned = runs_by_turn(characters, rules)
    if sum(map(len, turned.values())) > MAX_RUNS:
        return PageLines(drawn_lines(characters) + _notes(beside), edges[1], edges[3])
    turns = sorted(turned, key=lambda turn: -sum(len(run.text) for run in turned[turn])) or [0]
    for turn in turns:
        tables, rest = ruled(turned.get(turn, []), *rules.turned(turn))
        if turn == turns[0]:
            for value in placed:
                _place(Run(value.text, *turned_box(value.box, turn), len(characters.text)), rest)
        lines += read_order([*tables, *rest])
    _, low, _, high = turned_box(edges, turns[0])
    return PageLines(lines + _notes(beside), low, high)


def _place(value: Run, runs: list[Run]) -> None:
    """Insert the value of a field into the runs: after its label, if there is one."""
    before = [
        at
        for at, run in enumerate(runs)
        if run.low < value.middle < run.high and run.right <= value.left + _TOUCH
    ]
    nearest = max(before, key=lambda at: runs[at].right, default=None)
    if nearest is not None and runs[nearest].text.endswith((":", "]")):
        runs[nearest] = around([runs[nearest], value], f"{runs[nearest].text} {value.text}")
    else:
        runs.append(value)


def _notes(beside: list[Annotation]) -> list[Run]:
    """Notes as lines without a position, so that they are not taken for running heads."""
    notes = [annotation.text for annotation in beside if annotation.note]
    return [Run(text, 0.0, 0.0, 0.0, 0.0, order, table=True) for order, text in enumerate(notes)]
