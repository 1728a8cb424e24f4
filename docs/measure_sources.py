"""How often the passages that `--sources` names hold what was asked for, beside chance and word overlap.

    python docs/measure_sources.py TEXT [--model NAME] [--len 8k,16k,30k] [--questions 200] [-o ROWS.jsonl]

Facts are hidden between the sentences of the text. Each document holds several, and each question asks for
one, in the fact's words or paraphrased. Among correctly answered questions, counts those whose fact is in the
first passage, and in the first three. For comparison: BM25 over the document's lines, with as many lines
around each as a passage has at most, and random passages of the same length.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from adamas_kernels.contract import SparseSettings
from transformers import PreTrainedTokenizerFast

from adamas_cli.commands.options import parse_length
from adamas_cli.documents.parts import Part
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.eval.haystack import Haystack, Needle, fit
from adamas_cli.lab.eval.tasks import ADJECTIVES, NOUNS
from adamas_cli.models import load, resolve
from adamas_cli.progress import Silent
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.template import DEFAULT_TEMPLATE, frame, load_template
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.sources.passages import LONGEST_PASSAGE, find_sources

FACTS_PER_DOCUMENT = 10
ANSWER = 40  # tokens
ROOM = 160  # tokens of question, answer and frame
PASSAGES = 3
# A fact and a paraphrased question for it; {} is what is asked for.
OTHER_WORDS = (
    ("Old Marguerite keeps her savings beneath the {}.", "Where does the elderly lady hide her money?"),
    ("The surgeon paid for his new carriage with a {}.", "What did the doctor give to buy his vehicle?"),
    ("On Thursdays the miller feeds geese inside the {}.", "Where do the birds of him who grinds corn eat?"),
    ("The smuggler buried the stolen jewels close to the {}.", "Near what did the thief conceal the gems?"),
    ("Young Tobias carved a ship out of the {}.", "From what did the boy make his little boat?"),
    ("The widow's only inheritance was a {}.", "What did the woman get when her husband died?"),
    ("Our gardener fell asleep leaning on the {}.", "Against what did the man who tends the flowers nap?"),
    ("The choir rehearses behind the {}.", "Where do the singers practise?"),
    ("A lightning bolt split the {} last winter.", "What was destroyed by the storm?"),
    ("The schoolmaster locks every letter into his {}.", "Where does the teacher store his mail?"),
    ("The innkeeper traded two horses for a {}.", "What did the landlord receive for his animals?"),
    ("The blind fisherman finds his way home by the {}.", "What guides the sightless man who catches fish?"),
)  # fmt: skip
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Asked:
    """A question, what a right answer contains, the fact, and whether the question has its words."""

    text: str
    expected: str
    fact: str
    same_words: bool


class Text:
    """A document."""

    path = "book.txt"

    def __init__(self, text: str) -> None:
        self.text, self.size = text, len(text)

    def parts(self):
        """The whole text."""
        yield Part(self.text, None)


def draw(random: Random, same_words: bool) -> list[Asked]:
    """The facts of one document."""
    things = random.sample([f"{a} {b}" for a in ADJECTIVES for b in NOUNS], FACTS_PER_DOCUMENT)
    if same_words:
        numbers = [str(random.randrange(10**6, 10**7)) for _ in things]
        return [
            Asked(f"What is the secret number of the {thing}?", number,
                  f"The secret number of the {thing} is {number}.", True)
            for thing, number in zip(things, numbers, strict=True)
        ]  # fmt: skip
    chosen = random.sample(OTHER_WORDS, FACTS_PER_DOCUMENT)
    return [
        Asked(question, thing, fact.format(thing), False)
        for (fact, question), thing in zip(chosen, things, strict=True)
    ]


def bm25(question: str, lines: list[str], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """The score of each line for a question (Robertson and Zaragoza, 2009, section 3.4)."""
    bags = [Counter(_WORD.findall(line.lower())) for line in lines]
    lengths = np.array([sum(bag.values()) for bag in bags])
    score = np.zeros(len(lines))
    for word in set(_WORD.findall(question.lower())):
        times = np.array([bag[word] for bag in bags])
        found = int((times > 0).sum())
        idf = math.log(1 + (len(lines) - found + 0.5) / (found + 0.5))
        score += idf * times * (k1 + 1) / (times + k1 * (1 - b + b * lengths / lengths.mean()))
    return score


def around(score: np.ndarray) -> list[tuple[int, int]]:
    """The range of lines, from 1, around each of the best ones."""
    left, found = score.copy(), []
    for _ in range(PASSAGES):
        best = int(left.argmax())
        first, last = max(0, best - LONGEST_PASSAGE // 2), best + LONGEST_PASSAGE // 2
        left[first : last + 1] = -1
        found.append((first + 1, last + 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--len", default="8k,16k,24k,30k")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    lengths = [parse_length(length) for length in options.len.split(",")]
    files = resolve(options.model, offline=False, progress=Silent())
    loaded = load(files, device=options.device, progress=Silent())
    tokenizer = Tokenizer.from_directory(files.directory)
    wrapped = frame(load_template(DEFAULT_TEMPLATE), PreTrainedTokenizerFast.from_pretrained(files.directory))
    haystack = Haystack(options.text.read_text("utf-8"), lambda text: len(tokenizer.encode(text)))
    rows: list[dict[str, object]] = []
    for number in range(math.ceil(options.questions / FACTS_PER_DOCUMENT)):
        random = Random(number)
        length = lengths[number // 2 % len(lengths)]
        facts = draw(random, same_words=number % 2 == 0)
        hidden = [Needle(random.uniform(1, 99), fact.fact) for fact in facts]
        start = random.randrange(len(haystack.sentences))
        size = fit(
            lambda n, start=start, hidden=hidden: len(tokenizer.encode(haystack.excerpt(start, n, hidden))),
            length - ROOM,
            len(haystack.text),
        )
        assert size is not None
        text = haystack.excerpt(start, size, hidden)
        layout = Layout(tokenizer, wrapped)
        layout.add(Text(text))  # type: ignore[arg-type]
        ids = layout.fit(0, 0, layout.total)
        settings = AttentionSettings("adamas", SparseSettings(), budget_by_context=True)
        timeline = Timeline(loaded, settings, context=len(ids) + ROOM, counts=True)
        begun = time.perf_counter()
        list(timeline.read(ids))
        lines = text.split("\n")
        for fact in facts:
            asked = question_ids(tokenizer, wrapped, fact.text)
            decoder, said = tokenizer.decoder(), ""
            for event in timeline.answer(asked, Sampling(), ANSWER, loaded.stop_ids):
                said += decoder.feed(event.id) if isinstance(event, Token) else ""
            weights = timeline.attended()
            assert weights is not None
            passages = find_sources(weights, layout.locate, ids, tokenizer, PASSAGES).passages
            line = text[: text.index(fact.expected)].count("\n") + 1
            spans = [(passage.first_line, passage.last_line) for passage in passages]
            by_words = around(bm25(fact.text, lines))
            taken = sum(last - first + 1 for first, last in spans)
            rows.append(
                {
                    "length": length,
                    "same_words": fact.same_words,
                    "question": fact.text,
                    "answer": said,
                    "right": fact.expected.casefold() in said.casefold(),
                    "rank": next((i for i, (a, b) in enumerate(spans, 1) if a <= line <= b), None),
                    "bm25_rank": next((i for i, (a, b) in enumerate(by_words, 1) if a <= line <= b), None),
                    "chance": min(1.0, taken / len(lines)),
                    "lines": taken / max(1, len(spans)),
                    "share": passages[0].share if passages else 0.0,
                }
            )
        right = sum(bool(row["right"]) for row in rows[-len(facts) :])
        seconds = time.perf_counter() - begun
        print(f"{number + 1}: {length:,} tokens, {right} of {len(facts)} right, {seconds:.0f} s", flush=True)
        if options.output is not None:
            options.output.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    print(f"\n{files.name}, {loaded.device}, {loaded.dtype}\n")
    print(
        "| questions | context | asked | right | fact in the first passage | in the first three "
        "| BM25, first | first three | chance, three | lines of a passage |"
    )
    print("|" + "---:|" * 10)
    groups = [("all", None, None)]
    groups += [("in its words" if same else "in other words", None, same) for same in (True, False)]
    groups += [("all", length, None) for length in lengths]
    for name, length, same in groups:
        chosen = [
            row
            for row in rows
            if length in (None, row["length"]) and (same is None or same == row["same_words"])
        ]
        right = [row for row in chosen if row["right"]]
        if not right:
            continue
        cells = [
            sum(row[key] is not None and row[key] <= most for row in right) / len(right)  # type: ignore[operator]
            for key in ("rank", "bm25_rank")
            for most in (1, PASSAGES)
        ]
        chance, width = (statistics.mean(float(row[key]) for row in right) for key in ("chance", "lines"))  # type: ignore[arg-type]
        told = " | ".join(f"{cell:.0%}" for cell in cells)
        context = "all" if length is None else f"{length:,}"
        print(f"| {name} | {context} | {len(chosen)} | {len(right)} | {told} | {chance:.1%} | {width:.1f} |")


if __name__ == "__main__":
    main()
