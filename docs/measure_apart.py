"""What reading documents apart from each other (`ask --apart`) costs in answers about one of them.

    python docs/measure_apart.py [--model NAME ...] [--besides BOOK.txt] [--tokens 1000]

The texts that docs/examples/questions.jsonl asks about are divided into documents of about `--tokens` tokens,
in two sets: the novel's chapters, and the README with docs/scripting.md. They are read together, one after
another, and apart from each other; with full attention, so that nothing else differs. Right answers contain a
known one. KL: of the next token's distribution from that of documents read together, in nats, over the answer
given then. Perplexity: of a known answer's tokens as the reply. A third set is the first with as many
documents from the beginning of another book. Prints a Markdown table; with `--show`, also each answer.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import adamas_cli
from adamas_cli.engine.events import Token
from adamas_cli.lab.eval.squad import contains
from adamas_cli.store.settings import StoreSettings

HERE = Path(__file__).parent
QUESTIONS = HERE / "examples" / "questions.jsonl"
NOVEL, MANUAL = HERE / "examples" / "pride-and-prejudice-1-4.txt", HERE / "scripting.md"
ANSWER_TOKENS = 60


@dataclass(frozen=True)
class Asked:
    """An answer. tokens: of the answer; right: 1 or 0; logs: log-probabilities of each next token of the
    first reading's answer, [n, vocabulary]; known: mean nats of a known answer's tokens.
    """

    text: str
    tokens: np.ndarray
    right: float
    logs: torch.Tensor
    known: float


def divided(model: adamas_cli.Model, text: str, tokens: int) -> Iterator[str]:
    """Parts of whole paragraphs, each of about this many tokens."""
    tokenizer = model._runtime.tokenizer
    part, size = "", 0
    for paragraph in text.split("\n\n"):
        count = len(tokenizer.encode(f"{paragraph}\n\n"))
        if size and size + count > tokens:
            yield part
            part, size = "", 0
        part, size = f"{part}{paragraph}\n\n", size + count
    if part.strip():
        yield part


def asked(
    model: adamas_cli.Model, files: Sequence[Path], entries: Sequence[dict], first: Sequence[Asked] | None
) -> Iterator[Asked]:
    """The answers about these documents. first: those of the first reading, None if this is it."""
    tokenizer = model._runtime.tokenizer
    with model.open(*files) as books:
        for index, entry in enumerate(entries):
            events = list(books.stream(entry["question"]))
            tokens = np.array([event.id for event in events if isinstance(event, Token)], np.int32)
            text = b"".join(map(tokenizer.token_bytes, tokens.tolist())).decode(errors="replace").strip()
            question = books._opened._question(entry["question"])
            timeline = books._opened._session.timeline

            def logs(reply: np.ndarray, question=question, timeline=timeline) -> torch.Tensor:
                fed = np.concatenate([question, reply])[:-1]
                return timeline.score(fed, sparse=False)[-len(reply) :].float().log_softmax(-1)

            known = tokenizer.encode(entry["answers"][0])
            nats = -logs(known)[range(len(known)), known.tolist()].mean().item()
            said = tokens if first is None else first[index].tokens
            yield Asked(text, tokens, contains(text, entry["answers"]), logs(said), nats)


def row(kind: str, answers: Sequence[Asked], first: Sequence[Asked]) -> str:
    """A row of the table."""
    known = math.exp(sum(one.known for one in answers) / len(answers))
    pairs = zip(first, answers, strict=True)
    each = torch.cat([(one.logs.exp() * (one.logs - other.logs)).sum(-1) for one, other in pairs])
    right = f"{sum(one.right for one in answers):.0f} / {len(answers)}"
    return f"{kind} | {right} | {each.mean().item():.3f} | {known:.1f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=["qwen2.5-coder-0.5b"])
    parser.add_argument("--besides", type=Path)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    entries = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    novel = [entry for entry in entries if entry["document"] == NOVEL.name]
    others = [entry for entry in entries if entry["document"] != NOVEL.name]
    readme = (HERE.parent / "README.md").read_text()
    print(
        "| model | documents | tokens | read | right | KL | perplexity |\n|---|---|---:|---|---:|---:|---:|"
    )
    for name in options.model:
        model = adamas_cli.load(
            name, attn="full", read="dense", max_tokens=ANSWER_TOKENS, store=StoreSettings(off=True)
        )
        apart = adamas_cli.Model(replace(model._runtime, apart=True))
        chapters = list(divided(model, NOVEL.read_text(), options.tokens))
        manual = [*divided(model, readme, options.tokens)]
        manual += divided(model, MANUAL.read_text(), options.tokens)
        sets = [("novel", chapters, novel), ("manual", manual, others)]
        if options.besides is not None:
            besides = list(
                divided(model, options.besides.read_text()[: len(NOVEL.read_text())], options.tokens)
            )
            sets.append(("novel, and another", [*chapters, *besides[: len(chapters)]], novel))
        for kind, texts, questions in sets:
            with tempfile.TemporaryDirectory() as folder:
                files = [Path(folder) / f"part-{number:02}.txt" for number in range(1, len(texts) + 1)]
                for file, text in zip(files, texts, strict=True):
                    file.write_text(text)
                first: list[Asked] = []
                for way, reader in (("together", model), ("apart", apart)):
                    begun = time.perf_counter()
                    answers = list(asked(reader, files, questions, first or None))
                    first = first or answers
                    with reader.open(*files) as books:
                        tokens = sum(books.tokens.values())
                    documents = f"{kind}: {len(files)}"
                    print(f"| {name} | {documents} | {tokens:,} | {row(way, answers, first)}", flush=True)
                    if options.show:
                        print(f"{time.perf_counter() - begun:.0f} s")
                        for one, entry in zip(answers, questions, strict=True):
                            print(
                                "+" if one.right else "-", entry["question"], "=>", repr(one.text), flush=True
                            )


if __name__ == "__main__":
    main()
