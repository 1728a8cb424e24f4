"""A plan as lines of text, for a terminal of any width or for a file."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator

from adamas_cli.forecast.plan import Plan
from adamas_cli.forecast.tree import Branch, draw
from adamas_cli.sanitize import one_line
from adamas_cli.terminal.lines import duration, size

LARGEST = 20  # documents or branches of a folder shown one by one
LEAST_SHARE = 0.01  # minimum share of all tokens for a branch to be shown
_LABEL = 9
_NARROWEST = 20  # minimum columns of text on a narrow terminal


def shown(plan: Plan, tree: Branch | None, width: int | None) -> Iterator[str]:
    """The lines; width: columns of the terminal, None to cut nothing."""
    counted = plan.counted
    rows = list(_tree(tree) if tree is not None else _largest(plan))
    figures = max(len(tokens) for tokens, _, _ in rows)
    for tokens, share, name in rows:
        line = f"{tokens:>{figures}}  {share:>5}  "
        yield line + (name if width is None else _cut(name, width - len(line)))
    yield ""
    facts = [
        ("prompt", _prompt(plan)),
        ("context", _context(plan)),
        ("kept", f"{plan.kept:,} tokens are kept and not read again" if plan.kept else "nothing of it yet"),
        ("memory", _memory(plan)),
        ("time", _time(plan)),
    ]
    if plan.decision.positions:
        facts.insert(2, ("rotary", plan.decision.positions))
    if not counted.fits:
        facts = [fact for fact in facts if fact[0] != "kept"]
    for label, text in facts:
        first, rest = f"{label:{_LABEL}}", " " * _LABEL
        if width is None:
            yield first + text
        else:
            room = max(width, _LABEL + _NARROWEST)
            yield from textwrap.wrap(text, room, initial_indent=first, subsequent_indent=rest)


def _largest(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """The largest documents and one line for all others: tokens, share, name."""
    whole = plan.counted.in_documents
    documents = sorted(plan.counted.documents, key=lambda document: (-document.tokens, document.path))
    yield "TOKENS", "SHARE", "DOCUMENT"
    many = len(documents) > LARGEST + 1
    for document in documents[: LARGEST if many else None]:
        yield f"{document.tokens:,}", _share(document.tokens, whole), one_line(document.path)
    if many:
        rest = documents[LARGEST:]
        tokens = sum(document.tokens for document in rest)
        yield f"{tokens:,}", _share(tokens, whole), f"{len(rest):,} smaller ones"


def _tree(tree: Branch) -> Iterator[tuple[str, str, str]]:
    yield "TOKENS", "SHARE", "DOCUMENT"
    yield f"{tree.tokens:,}", _share(tree.tokens, tree.tokens), one_line(tree.name) + ("/" * bool(tree.below))
    for line in draw(tree, LARGEST, math.ceil(tree.tokens * LEAST_SHARE)):
        yield f"{line.tokens:,}", _share(line.tokens, tree.tokens), line.indent + one_line(line.name)


def _share(tokens: int, whole: int) -> str:
    return f"{100 * tokens / max(1, whole):.0f} %"


def _cut(name: str, room: int) -> str:
    """The end of a name that is too long, which says more than its beginning."""
    return name if len(name) <= max(room, 2) else "…" + name[len(name) - max(room, 2) + 1 :]


def _prompt(plan: Plan) -> str:
    counted = plan.counted
    number = len(counted.documents)
    documents = "1 document" if number == 1 else f"{number:,} documents"
    documents += " read apart from each other (approximate)" if counted.apart and number > 1 else ""
    return (
        f"{counted.prompt:,} tokens: {counted.in_documents:,} in {documents}, "
        f"{counted.around:,} around them with the question; up to {counted.answer:,} more for the answer"
    )


def _context(plan: Plan) -> str:
    counted = plan.counted
    told = f"{counted.context:,} tokens of {plan.model}: "
    subject = "the longest document" if counted.apart else "it"
    if counted.fits:
        return f"{told}{subject} fits, and {counted.context - counted.positions:,} are left"
    over = f"{told}{subject} does not fit, by {counted.positions - counted.context:,}. "
    if counted.apart:
        return f"{over}Divide it, lower -n, or leave out --apart for --on-overflow map-reduce"
    if counted.parts is None:
        return f"{over}The answer alone does not fit: lower -n, or use a model with a longer context"
    return (
        f"{over}It would take {counted.parts:,} parts: --on-overflow map-reduce; "
        "--on-overflow truncate leaves out the middle"
    )


def _memory(plan: Plan) -> str:
    needs = plan.decision.bytes
    parts = {"weights": needs.weights, "cache": needs.cache, "codes": needs.codes, "program": needs.work}
    told = " + ".join(f"{size(part)} {name}" for name, part in parts.items() if part)
    hosted = f"; {size(needs.host)} cache in host memory" if needs.host else ""
    each = f" on each of {plan.decision.gpus} GPUs" if plan.decision.gpus > 1 else ""
    short = "" if needs.total <= plan.available else "; NOT ENOUGH"
    if plan.decision.smaller is not None:
        short += f", but enough with --cache-dtype {plan.decision.smaller}"
    return (
        f"about {size(needs.total)}{each}: {told}{'' if needs.exact else ' at most'}; "
        f"{size(plan.available)} available{short}{hosted}"
    )


def _time(plan: Plan) -> str:
    times = plan.times
    if times is None:
        return "unknown until the first question on this machine"
    told = "" if plan.counted.fits else "for as much as fits: "
    reading = "reading sparsely" if plan.decision.attention.read == "sparse" else "reading"
    return (
        f"{told}{reading} {duration(times.reading)}, then {times.tokens_per_s:,.0f} tokens/s with "
        f"{plan.decision.attention.kind} attention, at most {duration(times.answer)}; by {times.source} on "
        "this machine"
    )
