"""Measures answers with and without drafts from the text, for docs/performance.md.

    python docs/measure_drafts.py TEXT [MODEL] [PASSAGES]

Asks about a short passage of a text, again and again, with and without drafts in turn: for copies of a
paragraph, for the passage with a name changed, and for a summary. Prints a Markdown row for each kind of
question: tokens of passes, the seconds of answers without drafts over those with them, each the least of
TURNS, as what else runs on a machine only adds to them, and whether all answers were equal.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import adamas_cli

TURNS, PASSAGE, MOST = 3, 1600, 96  # repeats of each answer, characters, tokens of an answer
QUESTIONS = {
    "copy a paragraph": "Copy the second paragraph of the text word for word.",
    "change a name": "Repeat the text word for word, but write Smith instead of every family name.",
    "summary": "Summarize the text in your own words.",
}


def seconds(answer: Any) -> float:
    """Seconds of decoding."""
    return float(answer.done.decode_seconds)


def compare(opened: dict[str, Any], question: str) -> dict[str, Any]:
    """One question, answered with and without drafts in turn, after one answer each to compile."""
    answers: dict[str, list[Any]] = {draft: [] for draft in opened}
    for _ in range(1 + TURNS):
        for draft, documents in opened.items():
            answers[draft].append(documents.ask(question))
    times = {draft: min(map(seconds, said[1:])) for draft, said in answers.items()}
    drafted = answers["auto"][-1].done.drafted
    return {
        "ratio": times["off"] / times["auto"],
        "tokens": 1 + drafted.accepted / max(1, drafted.passes),
        "kept": drafted.accepted / max(1, drafted.proposed),
        "equal": len({answer.text for said in answers.values() for answer in said}) == 1,
    }


def main(text: str, model: str | None = None, passages: str = "3") -> None:
    """Print the table."""
    whole, count = Path(text).read_text(encoding="utf-8"), int(passages)
    models = {
        draft: adamas_cli.load(model, device="cpu", max_tokens=MOST, draft=draft) for draft in ("off", "auto")
    }
    models["auto"]._runtime._loaded = models["off"]._runtime.load()  # the same weights
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in QUESTIONS}
    for number in range(count):
        start = whole.index("\n\n", (2 * number + 1) * len(whole) // (2 * count + 1)) + 2
        passage = whole[start : whole.index("\n\n", start + PASSAGE)]
        opened = {draft: model.open(text=passage) for draft, model in models.items()}
        for kind, question in QUESTIONS.items():
            one = compare(opened, question)
            found[kind].append(one)
            print(kind, one, file=sys.stderr, flush=True)
    print("| question | tokens a pass | of drafts accepted | without / with, median (least) | equal |")
    print("|---|---:|---:|---:|---|")
    for kind, rows in found.items():
        mean = {name: statistics.mean(row[name] for row in rows) for name in ("tokens", "kept")}
        ratios = [row["ratio"] for row in rows]
        equal = sum(row["equal"] for row in rows)
        print(
            f"| {kind} | {mean['tokens']:.2f} | {mean['kept']:.0%} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}) | {equal} of {len(rows)} |"
        )


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
