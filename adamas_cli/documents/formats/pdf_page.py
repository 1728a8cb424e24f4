"""The lines of one PDF page, in the order in which they are read."""

from __future__ import annotations

from typing import Any

from adamas_cli.documents.formats.pdf_characters import Characters
from adamas_cli.documents.formats.pdf_layout import read_order
from adamas_cli.documents.formats.pdf_repeated import PageLines
from adamas_cli.documents.formats.pdf_rules import Rules, turned_box
from adamas_cli.documents.formats.pdf_runs import Run, plain_lines, runs_by_turn
from adamas_cli.documents.formats.pdf_tables import ruled


def page_lines(page: Any) -> PageLines:
    """The lines of an open page; text in another direction than most of it comes last."""
    characters = Characters(page)
    edges = page.get_bbox()
    plain = plain_lines(characters)
    if plain is not None:
        return PageLines(plain, edges[1], edges[3])
    rules = Rules(page)
    lines: list[Run] = []
    turned = runs_by_turn(characters, rules)
    turns = sorted(turned, key=lambda turn: -sum(len(run.text) for run in turned[turn]))
    for turn in turns:
        tables, rest = ruled(turned[turn], *rules.turned(turn))
        lines += read_order([*tables, *rest])
    _, low, _, high = turned_box(edges, turns[0] if turns else 0)
    return PageLines(lines, low, high)
