"""What reading documents apart from each other (`ask --apart`) costs in answers about one of them.

    python docs/measure_apart.py [--model NAME ...] [--besides BOOK.txt] [--tokens 1000] [--threads N]

The texts that docs/examples/questions.jsonl asks about are divided into documents of about `--tokens` tokens,
in two sets: the novel's chapters, and the README with docs/scripting.md. They are read together, one after
another, and apart from each other; with full attention, so that nothing else differs. Right answers contain a
known one. KL: of the next token's distribution from that of documents read together, in nats, over the answer
given then. Known answer: the mean negative log-likelihood of its tokens as the whole reply, in nats. A third
set is the first with as many documents from the beginning of another book. Prints a Markdown table; with
`--show`, also each answer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import adamas_cli
from adamas_cli.cache.mode import READING
from adamas_cli.documents import Selection, collect
from adamas_cli.engine.events import Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.eval.squad import contains
from adamas_cli.progress import Silent
from adamas_cli.prompt.template import DEFAULT_TEMPLATE
from adamas_cli.session.documents import OpenDocuments, count, longest_question
from adamas_cli.session.runtime import Runtime
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


def after(timeline: Timeline, question: np.ndarray, reply: np.ndarray) -> torch.Tensor:
    """The log-probabilities of each next token of a reply, [n, vocabulary], in one pass."""
    mark, fed = timeline.cache.mark(), np.concatenate([question, reply])[:-1].astype(np.int64)
    logits = timeline.model.forward(torch.from_numpy(fed), timeline.cache, READING, every=True)
    timeline.cache.rewind(mark)
    return logits[-len(reply) :].float().log_softmax(-1)


def asked(
    runtime: Runtime, files: Sequence[Path], entries: Sequence[dict], first: Sequence[Asked] | None
) -> tuple[int, list[Asked]]:
    """The tokens of these documents, and the answers about them. first: those of the first reading, None if
    this is it.
    """
    tokenizer, around = runtime.tokenizer, runtime.frame(DEFAULT_TEMPLATE)
    questions = [entry["question"] for entry in entries]
    found = collect(list(map(str, files)), Selection(), stdin=None, progress=Silent()).documents
    layout = count(runtime, around, found, longest_question(runtime, around, questions))
    answers = []
    with OpenDocuments(runtime, around, layout, questions) as opened:
        timeline = opened._session.timeline
        for index, events in enumerate(opened.ask_all(questions, Sampling())):
            tokens = np.array([event.id for event in events if isinstance(event, Token)], np.int32)
            text = b"".join(map(tokenizer.token_bytes, tokens.tolist())).decode(errors="replace").strip()
            known, question = entries[index]["answers"], opened._question(questions[index])
            one = tokenizer.encode(known[0])
            nats = -after(timeline, question, one)[range(len(one)), one.tolist()].mean().item()
            said = tokens if first is None else first[index].tokens
            logs = after(timeline, question, said)
            answers.append(Asked(text, tokens, contains(text, known), logs, nats))
    return layout.total, answers


def row(kind: str, answers: Sequence[Asked], first: Sequence[Asked]) -> str:
    """A row of the table."""
    known = sum(one.known for one in answers) / len(answers)
    pairs = zip(first, answers, strict=True)
    each = torch.cat([(one.logs.exp() * (one.logs - other.logs)).sum(-1) for one, other in pairs])
    right = f"{sum(one.right for one in answers):.0f} / {len(answers)}"
    return f"{kind} | {right} | {each.mean().item():.3f} | {known:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=["qwen2.5-coder-0.5b"])
    parser.add_argument("--besides", type=Path)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    entries = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    novel = [entry for entry in entries if entry["document"] == NOVEL.name]
    others = [entry for entry in entries if entry["document"] != NOVEL.name]
    readme = (HERE.parent / "README.md").read_text()
    print(
        "| model | documents | tokens | read | right | KL | known answer |\n|---|---|---:|---|---:|---:|---:|"
    )
    for name in options.model:
        chosen = {"attn": "full", "read": "dense", "max_tokens": ANSWER_TOKENS, "threads": options.threads}
        model = adamas_cli.load(name, store=StoreSettings(off=True), **chosen)
        together = model._runtime
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
                for way, reader in (("together", together), ("apart", replace(together, apart=True))):
                    begun = time.perf_counter()
                    tokens, answers = asked(reader, files, questions, first or None)
                    first = first or answers
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
