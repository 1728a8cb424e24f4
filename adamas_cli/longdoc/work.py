"""Reads documents part by part and merges the findings, as a generator of events."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from adamas_cli.engine.batch import Batch
from adamas_cli.engine.events import Done, Drafted, Prefill, Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.peak import free_memory
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import AdamasError, OverContextError
from adamas_cli.longdoc.events import Finished, Planned, Started, Step, Working
from adamas_cli.longdoc.findings import Finding, grouped, label, merged_passages
from adamas_cli.longdoc.notes import as_notes
from adamas_cli.longdoc.parts import Excerpt, Measure, Part, Passage, cut
from adamas_cli.longdoc.resume import Partials
from adamas_cli.planning.together import answers_at_once
from adamas_cli.prompt.layout import question_ids
from adamas_cli.session.answer import Text, Told, without_answer
from adamas_cli.session.documents import OpenDocuments
from adamas_cli.session.turns import Turns
from adamas_cli.settings import OriginSettings

if TYPE_CHECKING:
    from adamas_cli.documents import Document
    from adamas_cli.longdoc.job import Job
    from adamas_cli.prompt.layout import Layout
    from adamas_cli.prompt.template import Frame
    from adamas_cli.session.runtime import Runtime

# Maximum answer of a part or an intermediate merge: some 280 words, as for a page of notes on a chapter. Less
# in a small context, so that several of them fit one merge.
PART_TOKENS = 384
_LEAST_MERGED = 3  # minimum number of answers that must fit one merge
_Answering = Generator[Step, None, list[str]]
_UNKNOWN = "None of the {} parts says anything about this."


@dataclass(frozen=True)
class _Prompt:
    """The prompt of one answer; the text of a part may be gone once it has been read."""

    label: str
    passages: tuple[Passage, ...]
    tokens: int
    keys: tuple[str, ...]  # of the answer to each question
    kept: tuple[str | None, ...]  # the answers of an earlier run


class Work:
    """One reading of documents in parts, for all questions of a job.

    `read` must be exhausted first; then each question has its `answer`.
    max_tokens: of the final answers. Raises OverContextError if the context leaves no room to merge.
    """

    def __init__(
        self,
        runtime: Runtime,
        documents: Sequence[Document],
        job: Job,
        sampling: Sampling,
        max_tokens: int,
    ) -> None:
        self._runtime = replace(runtime, origins=OriginSettings())  # origins are of documents, not of parts
        self._documents = documents
        self._job = job
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._part, self._merge = runtime.frame(job.part), runtime.frame(job.merge)
        self._measure = Measure(runtime.tokenizer)
        self._context = runtime.context
        self._batch = Batch(Model.of(runtime.load()))
        self._bound = min(PART_TOKENS, self._context // 8)
        self._partials = _partials(runtime, sampling, self._bound)
        self._findings: list[list[Finding]] = [[] for _ in job.questions]  # of the parts, for each question
        self._levels = [0] * len(job.questions)  # of merges
        self._spent: list[list[Done]] = [[] for _ in job.questions]
        self._about: dict[str, object] = {"model": runtime.files.name, "attention": None, "read": None}
        final = min(self._room(self._merge, text, max_tokens) for text in job.finals)
        if final < _LEAST_MERGED * self._bound:
            raise OverContextError(
                f"an answer of {max_tokens:,} tokens leaves no room to merge parts in a context of "
                f"{self._context:,}: lower `max_tokens` or raise `ctx_size`",
                n_answer_tokens=max_tokens,
                n_ctx=self._context,
            )

    def read(self) -> Iterator[Step]:
        """Ask every part every question; parts answered in an earlier run are not read."""
        room = min(self._room(self._part, text, self._bound) for text in self._job.questions)
        with self._runtime.progress.task("cutting into parts", None, "parts") as advance:
            prompts = []
            for part in cut(self._documents, self._measure, room, self._job.folder):
                excerpts = part.excerpts()
                prompts.append(
                    self._prompt(self._part, self._job.questions, excerpts, part.passages, part.tokens)
                )
                advance(1)
        yield self._planned(0, prompts)
        # Cut again, because the parts of a long text are not all kept in memory.
        parts = cut(self._documents, self._measure, room, self._job.folder)
        every = range(len(self._job.questions))
        begin = [
            partial(self._answers, index, self._part, partial(_next_part, parts, prompt), prompt, every)
            for index, prompt in enumerate(prompts)
        ]
        for prompt, answers in zip(prompts, (yield from self._in_turns(begin)), strict=True):
            for number, answer in enumerate(answers):
                self._findings[number].append(self._finding(prompt, answer))

    def answer(self, number: int) -> Iterator[Told]:
        """Merge the parts' answers to one question; ends with Done, whose figures cover all the work."""
        findings = [finding for finding in self._findings[number] if finding.knows]
        question = self._job.finals[number]
        room = self._room(self._merge, question, self._max_tokens)
        while len(findings) > 1 and sum(map(self._size, findings)) > room:
            findings = yield from self._merged(number, findings)
        if self._job.may_know_nothing and len(findings) <= 1:
            # A single finding needs no merge, which could only lose some of it.
            unknown = _UNKNOWN.format(len(self._findings[number]))
            yield Text(findings[0].answer if findings else unknown, reasoning=False)
            yield self._total(number, Done("stop", 0, 0, 0, 0.0, 0.0, 0.0, 0))
            return
        self._levels[number] += 1
        layout = self._layout(self._merge, [_excerpt(finding) for finding in findings])
        with self._opened(self._merge, layout, [question], self._max_tokens) as opened:
            for event in opened.ask(question, self._sampling):
                yield self._total(number, event) if isinstance(event, Done) else event

    def sources(self, number: int) -> list[str]:
        """The passages of the parts that held information."""
        return [label(finding.passages) for finding in self._findings[number] if finding.knows]

    def as_json(self, number: int) -> dict[str, object]:
        """The fields of the JSON record besides the answer."""
        parts = [finding.as_json() for finding in self._findings[number]]
        return self._about | {"parts": parts, "levels": self._levels[number]}

    def _merged(self, number: int, findings: Sequence[Finding]) -> Generator[Step, None, list[Finding]]:
        """One level of merges: fewer findings, each merged from several that fit the context together."""
        question = self._job.questions[number]
        sizes = [self._size(finding) for finding in findings]
        groups = grouped(sizes, self._room(self._merge, question, self._bound))
        if len(groups) == len(findings):
            raise OverContextError(
                f"no two partial answers fit a context of {self._context:,} tokens: raise `ctx_size`",
                n_ctx=self._context,
            )
        self._levels[number] += 1
        members = [[findings[index] for index in group] for group in groups]
        # A single one is passed up unchanged.
        merges = [several for several in members if len(several) > 1]
        prompts = []
        for several in merges:
            size = sum(map(self._size, several))
            passages = merged_passages(several)
            prompts.append(self._prompt(self._merge, [question], _excerpts(several), passages, size))
        yield self._planned(self._levels[number], prompts)
        only = range(number, number + 1)
        begin = [
            partial(self._answers, index, self._merge, partial(_excerpts, several), prompt, only)
            for index, (several, prompt) in enumerate(zip(merges, prompts, strict=True))
        ]
        answers = yield from self._in_turns(begin)
        merged = [
            replace(self._finding(prompt, answer), knows=True)
            for prompt, (answer,) in zip(prompts, answers, strict=True)
        ]
        return merged + [alone[0] for alone in members if len(alone) == 1]

    def _in_turns(self, begin: Sequence[Callable[[], _Answering]]) -> Generator[Step, None, list[list[str]]]:
        """The events of parts being answered, in the order of the parts; several may be in progress at once
        if that is faster. Returns their answers.
        """
        found: dict[int, list[str]] = {}

        def keeping(index: int) -> Iterator[Step]:
            found[index] = yield from begin[index]()

        turns = Turns([partial(keeping, index) for index in range(len(begin))], self._at_once)
        try:
            for events in turns.streams():
                yield from events
        finally:
            turns.close()
        return [found[index] for index in range(len(begin))]

    @property
    def _at_once(self) -> int:
        """The number of parts in progress at once, each with its own cache."""
        if self._batch.reason is not None:
            return 1
        model = Model.of(self._runtime.load())
        size = model.shape.cache_bytes(self._context, model.module.dtype.itemsize)
        return answers_at_once(size, free_memory(model.device))

    def _answers(
        self,
        index: int,
        frame: Frame,
        excerpts: Callable[[], Sequence[Excerpt]],
        prompt: _Prompt,
        numbers: range,
    ) -> _Answering:
        """The answers to the questions of these numbers, reused if an earlier run has them. excerpts: called
        once, in the order of the prompts.
        """
        read = excerpts()
        open_questions = [number for number, kept in zip(numbers, prompt.kept, strict=True) if kept is None]
        if not open_questions:
            return [kept for kept in prompt.kept if kept is not None]
        yield Started(index)
        texts = [self._job.questions[number] for number in open_questions]
        said: dict[int, str] = {}
        ended: list[Done] = []
        with self._opened(frame, self._layout(frame, read), texts, self._bound) as opened:
            streams = opened.ask_all(texts, self._sampling)
            for number, events in zip(open_questions, streams, strict=True):
                pieces: list[str] = []
                thought = False
                for event in events:
                    if isinstance(event, (Prefill, Token)):
                        yield Working(event)
                    elif isinstance(event, Done):
                        self._spent[number].append(event)
                        ended.append(event)
                    elif isinstance(event, Text) and not event.reasoning:
                        pieces.append(event.text)
                    elif isinstance(event, Text):
                        thought = True
                if thought and not pieces:
                    self._runtime.note_once(f"{prompt.label}: {without_answer(ended[-1])}")
                said[number] = as_notes("".join(pieces), cut=ended[-1].finish_reason == "length")
                self._partials.keep(prompt.keys[numbers.index(number)], said[number])
        yield Finished(
            index,
            any(self._job.knows(answer) for answer in said.values()),
            min(prompt.tokens, ended[0].reused_tokens),  # without the tokens before them
            sum(done.completion_tokens for done in ended),
            sum(done.prefill_seconds for done in ended),
            sum(done.decode_seconds for done in ended),
        )
        return [said[n] if kept is None else kept for n, kept in zip(numbers, prompt.kept, strict=True)]

    def _prompt(
        self,
        frame: Frame,
        questions: Sequence[str],
        excerpts: Sequence[Excerpt],
        passages: tuple[Passage, ...],
        tokens: int,
    ) -> _Prompt:
        layout = self._layout(frame, excerpts)
        ids = layout.fit(0, 0, layout.total)
        asked = [question_ids(self._runtime.tokenizer, frame, text) for text in questions]
        keys = tuple(self._partials.key((ids, question)) for question in asked)
        kept = tuple(self._partials.find(key) for key in keys)
        return _Prompt(label(passages), passages, tokens, keys, kept)

    def _planned(self, level: int, prompts: Sequence[_Prompt]) -> Planned:
        resumed = frozenset(index for index, prompt in enumerate(prompts) if None not in prompt.kept)
        if resumed:
            things = "parts" if level == 0 else "merges"
            self._runtime.progress.note(f"resumed {len(resumed):,} of {len(prompts):,} {things}")
        labels = tuple(prompt.label for prompt in prompts)
        return Planned(level, labels, tuple(prompt.tokens for prompt in prompts), resumed)

    def _finding(self, prompt: _Prompt, answer: str) -> Finding:
        resumed = None not in prompt.kept
        return Finding(prompt.passages, prompt.tokens, answer, self._job.knows(answer), resumed)

    def _layout(self, frame: Frame, excerpts: Sequence[Excerpt]) -> Layout:
        layout = self._runtime.layout(frame)
        for excerpt in excerpts:
            layout.add(excerpt)
        return layout

    def _opened(self, frame: Frame, layout: Layout, questions: Sequence[str], answer: int) -> OpenDocuments:
        opened = OpenDocuments(
            self._runtime,
            frame,
            layout,
            questions,
            max_tokens=answer,
            announces=False,
            batch=self._batch,
        )
        about = opened.as_json()
        self._about = {name: about[name] for name in ("model", "attention", "read")}
        return opened

    def _room(self, frame: Frame, question: str, answer: int) -> int:
        """The number of document tokens that fit beside everything else."""
        around = self._runtime.layout(frame).total
        return self._context - around - len(question_ids(self._runtime.tokenizer, frame, question)) - answer

    def _size(self, finding: Finding) -> int:
        excerpt = _excerpt(finding)
        return self._measure.excerpt(excerpt.path, excerpt.text)

    def _total(self, number: int, last: Done) -> Done:
        """The Done of the last answer, with the figures of all work for the question."""
        spent = [*self._spent[number], last]
        before = sum(done.prefill_seconds + done.decode_seconds for done in spent[:-1])
        return Done(
            last.finish_reason,
            sum(done.prompt_tokens for done in spent),
            sum(done.reused_tokens for done in spent),
            sum(done.completion_tokens for done in spent),
            sum(done.prefill_seconds for done in spent),
            before + last.first_token_seconds,
            sum(done.decode_seconds for done in spent),
            max(done.peak_memory_bytes for done in spent),
            sum((done.drafted for done in spent), Drafted()),
        )


def _next_part(parts: Iterator[Part], prompt: _Prompt) -> Sequence[Excerpt]:
    """The text of the next part, which must be this prompt's."""
    part = next(parts, None)
    if part is None or part.passages != prompt.passages:
        raise AdamasError(f"{prompt.label} changed while it was read; run the command again.")
    return part.excerpts()


def _excerpts(findings: Sequence[Finding]) -> list[Excerpt]:
    return [_excerpt(finding) for finding in findings]


def _excerpt(finding: Finding) -> Excerpt:
    return Excerpt.of(label(finding.passages), finding.answer)


def _partials(runtime: Runtime, sampling: Sampling, answer: int) -> Partials:
    """The store of answers; sampled ones are kept only with a seed, which makes them repeatable."""
    loading = {name: value for name, value in runtime.model.loading.items() if name != "threads"}
    facts = {
        "weights": runtime.files.fingerprint,
        "loading": loading,
        "attention": vars(runtime.attention),
        "sampling": vars(sampling),
        "answer": answer,
        "think_tokens": runtime.prompt.think_tokens,
    }
    repeats = not sampling.temperature or sampling.seed is not None
    store = runtime.store
    return Partials(facts, reads=repeats and not store.off, writes=repeats and store.writes)
