"""Measures answers with and without drafts from the text, for docs/performance.md.

    python docs/measure_drafts.py TEXT [MODEL] [PASSAGES] [--device cpu] [--draft auto] [--tokens 128]

Asks about short passages of a text and about Python functions of the standard library, with and without
drafts in turn: three questions a passage that copy a paragraph, one that quotes a sentence, one that changes
names and one that summarizes, and one a function that renames something. Prints a Markdown row for each kind:
tokens of passes, seconds of all answers without drafts over those with them (of each answer the least of
TURNS, as what else runs on a machine only adds to them) with the least of one answer, and how many answers
were equal.
"""

from __future__ import annotations

import argparse
import collections
import heapq
import inspect
import shutil
import statistics
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import adamas_cli

TURNS, PASSAGE = 1, 1600  # repeats of each answer, characters
WORDS = 6  # of a sentence that a question names
CHANGES = {
    "names": "Repeat the text word for word, but write Smith instead of every family name.",
    "summary": "Summarize the text in your own words.",
}
EDITS: tuple[tuple[Any, str, str], ...] = (
    (textwrap.TextWrapper._wrap_chunks, "chunks", "pieces"),
    (textwrap.dedent, "text", "source"),
    (heapq.merge, "iterables", "streams"),
    (heapq.nlargest, "iterable", "items"),
    (collections.Counter.most_common, "n", "count"),
    (statistics.quantiles, "data", "values"),
    (shutil.which, "cmd", "program"),
    (shutil.copyfileobj, "fsrc", "source"),
)


class Case(NamedTuple):
    """A question of some kind about a text."""

    kind: str
    text: str
    question: str


def cases(whole: str, count: int) -> Iterator[Case]:
    """The questions about `count` passages of a text, and the edits."""
    for number in range(count):
        start = whole.index("\n\n", (2 * number + 1) * len(whole) // (2 * count + 1)) + 2
        passage = whole[start : whole.index("\n\n", start + PASSAGE)]
        for place in ("first", "second", "last"):
            yield Case("copy", passage, f"Copy the {place} paragraph of the text word for word.")
        words = max(passage.split("\n\n"), key=len).split()
        named = " ".join(words[len(words) // 2 :][:WORDS])
        yield Case("quote", passage, f"Quote the sentence that has the words “{named}”.")
        for kind, question in CHANGES.items():
            yield Case(kind, passage, question)
    for function, old, new in EDITS:
        source = textwrap.dedent(inspect.getsource(function))
        yield Case("edit code", source, f"Rename `{old}` to `{new}` in this code. Print all of the new code.")


def compare(models: dict[str, Any], case: Case) -> dict[str, Any]:
    """One question, answered with and without drafts in turn."""
    answers: dict[str, list[Any]] = {draft: [] for draft in models}
    opened = {draft: model.open(text=case.text) for draft, model in models.items()}
    for _ in range(TURNS):
        for draft, documents in opened.items():
            answers[draft].append(documents.ask(case.question))
    (drafting,) = models.keys() - {"off"}
    drafted = answers[drafting][-1].done.drafted
    return {
        "without": min(answer.done.decode_seconds for answer in answers["off"]),
        "with": min(answer.done.decode_seconds for answer in answers[drafting]),
        "tokens": 1 + drafted.accepted / max(1, drafted.passes),
        "kept": drafted.accepted / max(1, drafted.proposed),
        "equal": len({answer.text for said in answers.values() for answer in said}) == 1,
    }


def main(text: str, model: str | None, passages: int, device: str, drafting: str, most: int) -> None:
    """Print the table."""
    models = {
        draft: adamas_cli.load(model, device=device, max_tokens=most, draft=draft)
        for draft in ("off", drafting)
    }
    models[drafting]._runtime._loaded = models["off"]._runtime.load()  # the same weights
    asked = list(cases(Path(text).read_text(encoding="utf-8"), passages))
    compare(models, asked[0])  # compiles
    found: dict[str, list[dict[str, Any]]] = {}
    for case in asked:
        one = compare(models, case)
        found.setdefault(case.kind, []).append(one)
        print(case.kind, case.question, one, file=sys.stderr, flush=True)
    print("| question | tokens a pass | of drafts accepted | without / with (least) | equal |")
    print("|---|---:|---:|---:|---|")
    for kind, rows in found.items():
        tokens, kept = (statistics.mean(row[name] for row in rows) for name in ("tokens", "kept"))
        without, drafted = (sum(row[way] for row in rows) for way in ("without", "with"))
        least = min(row["without"] / row["with"] for row in rows)
        equal = sum(row["equal"] for row in rows)
        print(
            f"| {kind} | {tokens:.2f} | {kept:.0%} | {without / drafted:.2f} ({least:.2f}) "
            f"| {equal} of {len(rows)} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("model", nargs="?")
    parser.add_argument("passages", nargs="?", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--draft", choices=["auto", "text"], default="auto")
    parser.add_argument("--tokens", type=int, default=128, help="most of an answer")
    options = parser.parse_args()
    main(options.text, options.model, options.passages, options.device, options.draft, options.tokens)
