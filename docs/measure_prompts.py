"""Which prompt template gets the most questions with known answers right, and what `generate` makes of the
best one.

    python docs/measure_prompts.py [--model NAME ...] [--questions docs/examples/questions.jsonl] TEMPLATE ...

A template is a name or a file, as for `adamas ask --template`. Every document is read once for each distinct
text before it. An answer is right if it contains one of the known answers. Prints a Markdown table; with
`--show`, also each answer.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedTokenizerFast

from adamas_cli.documents import Selection, collect
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models import load, resolve
from adamas_cli.progress import Silent
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.template import frame, load_template
from adamas_cli.prompt.tokens import Tokenizer

ANSWER_TOKENS = 80
QUESTION_ROOM = 400


class Model:
    """A loaded model with its tokenizer, answering from one document at a time."""

    def __init__(self, name: str) -> None:
        files = resolve(name, offline=False, progress=Silent())
        self.loaded = load(files, progress=Silent())
        self.chat = PreTrainedTokenizerFast.from_pretrained(files.directory)
        self.tokenizer = Tokenizer.from_directory(files.directory)
        self._read: tuple[str, str] | None = None
        self._generated: tuple[str, str] | None = None

    def answer(self, document: str, question: str, template: str) -> str:
        """The greedy answer through the engine with full attention."""
        framed = frame(load_template(template), self.chat)
        if self._read != (document, framed.head):
            self._read = (document, framed.head)
            ids = self.document_ids(document, template)
            self.timeline = Timeline(
                self.loaded, AttentionSettings("full"), context=len(ids) + QUESTION_ROOM + ANSWER_TOKENS
            )
            for _ in self.timeline.read(ids):
                pass
        ids = question_ids(self.tokenizer, framed, question)
        events = self.timeline.answer(ids, Sampling(), ANSWER_TOKENS, self.loaded.stop_ids)
        return self.text([event.id for event in events if isinstance(event, Token)])

    def generate(self, document: str, question: str, template: str) -> str:
        """The greedy answer of transformers' own `generate` to the same prompt, from its own cache."""
        framed = frame(load_template(template), self.chat)
        if self._generated != (document, framed.head):
            self._generated = (document, framed.head)
            self._document = torch.from_numpy(
                self.document_ids(document, template).astype(np.int64)
            ).unsqueeze(0)
            self._prefix = DynamicCache(config=self.loaded.model.config)
            with torch.no_grad():
                self.loaded.model(self._document, past_key_values=self._prefix, logits_to_keep=1)
        asked = torch.from_numpy(question_ids(self.tokenizer, framed, question).astype(np.int64)).unsqueeze(0)
        prompt = torch.cat([self._document, asked], 1)
        out = self.loaded.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=copy.deepcopy(self._prefix),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            eos_token_id=list(self.loaded.stop_ids),
            pad_token_id=0,
        )
        stops = set(self.loaded.stop_ids)
        return self.text([token for token in out[0, prompt.shape[1] :].tolist() if token not in stops])

    def document_ids(self, document: str, template: str) -> np.ndarray:
        """The prompt up to the end of the document."""
        limit = self.loaded.context_length
        layout = Layout(self.tokenizer, frame(load_template(template), self.chat), limit)
        for found in collect([document], Selection(), stdin=None, progress=Silent()).documents:
            layout.add(found)
        return layout.fit(0, 0, limit)

    def text(self, ids: list[int]) -> str:
        """Token ids as text."""
        return b"".join(self.tokenizer.token_bytes(token) for token in ids).decode(errors="replace").strip()


def is_right(answer: str, known: list[str]) -> bool:
    """Whether the answer contains one of the known ones; numbers must be separate words."""
    words = answer.lower().replace("*", "").replace("`", "")
    return any(
        f" {k.lower()} " in f" {words.replace('.', ' ')} " if k.isdigit() else k.lower() in words
        for k in known
    )


def run(
    names: list[str], templates: list[str], questions: list[dict], show: bool
) -> Iterator[tuple[str, str, str]]:
    """Rows of model, template and score; the last row of a model is `generate` with its best template."""
    for name in names:
        model = Model(name)
        scores: dict[str, int] = defaultdict(int)
        heads = {template: frame(load_template(template), model.chat).head for template in templates}
        for document in sorted({entry["document"] for entry in questions}):
            asked = [entry for entry in questions if entry["document"] == document]
            for template in sorted(templates, key=heads.__getitem__):
                for entry in asked:
                    answer = model.answer(document, entry["question"], template)
                    right = is_right(answer, entry["answers"])
                    scores[template] += right
                    if show:
                        print(
                            "+-"[not right], name, template, entry["question"], "=>", repr(answer), flush=True
                        )
        for template in templates:
            yield name, template, f"{scores[template]} / {len(questions)}"
        best = max(scores, key=lambda t: scores[t])
        right = sum(
            is_right(model.generate(entry["document"], entry["question"], best), entry["answers"])
            for entry in sorted(questions, key=lambda entry: entry["document"])
        )
        yield name, f"{best}, by `transformers.generate`", f"{right} / {len(questions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("templates", nargs="+")
    parser.add_argument("--model", action="append", dest="models")
    parser.add_argument("--questions", type=Path, default=Path("docs/examples/questions.jsonl"))
    parser.add_argument("--show", action="store_true", help="print every answer")
    options = parser.parse_args()
    questions = [json.loads(line) for line in options.questions.read_text("utf-8").splitlines()]
    for entry in questions:  # as paths from here, as `ask` would be called
        entry["document"] = os.path.normpath(options.questions.parent / entry["document"])
    models = options.models or ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    rows = list(run(models, options.templates, questions, options.show))
    print("| model | template | right |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
