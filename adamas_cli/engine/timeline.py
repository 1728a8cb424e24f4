"""A timeline: one sequence of tokens over a model, read once, then answered from any number of times.

A model serves many timelines, token by token in turn: each has its own cache, and no step leaves anything in
the model that the next one reads.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from adamas_kernels.contract import LARGEST_STEP, Backend
from adamas_kernels.reading import ReadSettings
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.formats import formats_of
from adamas_cli.cache.mode import Mode, Sparse
from adamas_cli.cache.names import STREAMS
from adamas_cli.cache.placement import Paged, fork_pages, placement_on, shares_memory
from adamas_cli.engine.attention import AttentionSettings, decide_for
from adamas_cli.engine.batch import Batch
from adamas_cli.engine.checking import Checked, CheckedAhead
from adamas_cli.engine.compiling import Announcing
from adamas_cli.engine.decoding import Alone, OneByOne, Passes, Saying
from adamas_cli.engine.drafts import CAPTURE, GPU_COSTS, Costs, Drafter
from adamas_cli.engine.events import Done, Event, Prefill, Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.peak import peak_memory
from adamas_cli.engine.placing import host_placement
from adamas_cli.engine.reading import Reader, Stored
from adamas_cli.engine.sampler import Sampler, require_finite
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.steps.aside import Aside
from adamas_cli.engine.steps.describe import SPLIT
from adamas_cli.engine.steps.stepper import READ_IN_STEPS, Stepper
from adamas_cli.errors import UsageError
from adamas_cli.planning.decision import cache_format
from adamas_cli.ranks.mirror import Arguments, Mirrored, created, mirrored, mirrored_events
from adamas_cli.settings import DraftKind

if TYPE_CHECKING:
    from adamas_cli.models import LoadedModel

REHEARSED_FROM = 2048  # tokens of a document
MEMORY_EVERY = 16  # tokens: asking a GPU for its memory takes a while
RECENT = 2  # states of the last answers to return to: before the last question, and before its answer

log = logging.getLogger(__name__)

Steer = Callable[[int], Sequence[int]]
"""Told each token of an answer once it is reported; tokens that it returns are said next, whatever the model
would say."""

SparseFrom = Literal["question", "answer", "never"]
"""The first token that attends sparsely, where the timeline is to decode sparsely at all."""


E = TypeVar("E")
R = TypeVar("R")


def _for_others(arguments: Arguments) -> Arguments:
    """What ranks other than the first are told: they draw no tokens, report nothing and share no steps."""
    own = {"sampling": Sampling()} if "sampling" in arguments else {}
    return {name: value for name, value in arguments.items() if name not in ("announce", "batch")} | own


class State(NamedTuple):
    """A state to return to: the number of tokens, and the cache's `mark`."""

    tokens: int
    mark: Any


class Timeline(Mirrored):
    """One cache with the tokens in it.

    ids: those tokens, int32 [n]. logits: after the last token read or fed, [vocabulary]; those of a step are
    valid until the next one. answered: tokens of the last answer, including the stop token that ended it.

    context: the final token count, by which `auto` chooses between sparse and full attention; the cache is
    allocated for it, and may grow to `limit` without being copied. reach: the length that sets how positions
    rotate, if less than the context at first. announce: called before a backend compiles for seconds. graphs:
    replay steps on a GPU as CUDA graphs, if possible. counts: keep a tally of what answers attend to. drafts:
    see `DecodingSettings.draft`. batch: answers take their steps with it, if they can. forks: keep tokens
    where forks share them, if possible. Raises ModelUnavailableError if Adamas is requested but does not
    serve the model, and UsageError if a requested backend does not run.

    A timeline can return only to known states: empty, after each `sync`, or around the last kept answer.
    Layers with a sliding window have forgotten all others.
    """

    logits: Tensor

    @created(_for_others)
    def __init__(
        self,
        loaded: LoadedModel,
        attention: AttentionSettings,
        *,
        context: int,
        limit: int = 0,
        reach: int | None = None,
        prefill_chunk: int | None = None,
        announce: Callable[[str], None] | None = None,
        graphs: bool = True,
        counts: bool = False,
        drafts: DraftKind = "off",
        batch: Batch | None = None,
        forks: bool = False,
    ) -> None:
        self.model = Model.of(loaded)
        self.batch = batch
        self.drafts = drafts
        self.attention = attention
        self._announce = announce or log.info
        self._said: set[str] = set()
        self._captures = graphs
        decided = decide_for(
            self.model.shape,
            loaded.model.dtype,
            self.model.device,
            attention.asked(prefill_chunk),
            context,
            self.model.unserved,
        )
        self.cache_dtype = cache_format(attention.cache_dtype, in_bytes=loaded.in_bytes)
        self.backend_reason = decided.reason
        self.sparse = attention.resolve(decided, announce)
        self._costs = self._known_costs() if self.model.device.type == "cuda" else Costs()
        self._reads_sparsely = decided.read == "sparse"
        self.cache = KVCache.for_model(
            self.model.config,
            served=self.model.unserved is None,
            sparse=self.sparse,
            dense_layers=attention.dense_layers,
            placement=placement_on(self.model.device, forks=True) if forks else self.model.placement,
            device=self.model.device,
            reads=self._reads_sparsely,
            formats=formats_of(self.cache_dtype, loaded.model.dtype),
            hosted=host_placement(self.model, attention.asked(prefill_chunk), decided, context),
        )
        self.cache.reserve(context, limit)
        self.cache.extent.reach = self.model.rotation.reach(context if reach is None else reach) or 0
        if counts:
            self.cache.count_attention()
        self.answered: list[int] = []
        self._whole = True  # whether the last answer's steps are all in the cache and consistent
        self.ids = np.empty(0, np.int32)
        self._states = [State(0, self.cache.mark())]
        self._recent: deque[State] = deque(maxlen=RECENT)
        self._attach(decided.chunk)

    def _attach(self, chunk: int) -> None:
        """Set up what reads into the cache and steps with it."""
        self._reader = Reader(self.model, self.cache, chunk, self.reading)
        self._stepper = Stepper(
            self.model, self.cache, self.sparse, captures=self._captures, announce=self._announce
        )

    @property
    def attention_kind(self) -> str:
        """`adamas` where answer tokens attend sparsely, else `full`."""
        return "full" if self.sparse is None else "adamas"

    @property
    def kv(self) -> str:
        """Where keys and values are, see `Decision.kv`."""
        return "gpu" if self.model.device.type == "cuda" and not self.cache.staged else "host"

    @property
    def reading(self) -> ReadSettings | None:
        """What sparse reading skips; None if documents are read densely."""
        return self.attention.reading if self._reads_sparsely else None

    @property
    def read_kind(self) -> str:
        """`sparse` if tokens in the cache were read sparsely, or a document would be; else `dense`."""
        known = self.cache.dense_tokens == self.length > 0
        return "dense" if known or not self._reads_sparsely else "sparse"

    @property
    def computed(self) -> float | None:
        """The share of attention blocks that sparse reading computed; None without any."""
        return self._reader.computed

    @property
    def chunk(self) -> int:
        """Tokens read at once: fewer after memory ran out."""
        return self._reader.chunk

    @property
    def step_reason(self) -> str | None:
        """Why steps do not run in the fastest way, in one line; None where they do."""
        return self._stepper.reason

    @property
    def draft_reason(self) -> str | None:
        """Why there are no drafts, in one line; None if there are, or none are requested."""
        obstacle = self._draft_obstacle(self._answering(sparse=True))
        return None if self.drafts == "off" or obstacle is None else f"no drafts: {obstacle}"

    @property
    def batch_reason(self) -> str | None:
        """Why answers do not share steps with others, in one line; None where they can."""
        return self.obstacle_together("answer")

    def obstacle_together(self, sparse_from: SparseFrom) -> str | None:
        """The same for answers that attend in this way."""
        obstacle = self._stepper.batch_obstacle(self._answering(sparse=sparse_from != "never"))
        return None if obstacle is None else f"answers decode one after the other: {obstacle}"

    @property
    def forks_share(self) -> bool:
        """Whether forks take memory only for their own tokens, and their answers decode together."""
        return shares_memory(self.cache.placement) and self.batch_reason is None

    @property
    def keeps_documents(self) -> bool:
        """Whether its tokens can be stored and restored."""
        return self.cache.storable

    @property
    def turned(self) -> int | None:
        """The length that sets how positions rotate, see `LengthScaling.reach`; None if length does not
        matter.
        """
        return self.cache.extent.reach if self.model.rotation.scalings else None

    @mirrored
    def reach(self, tokens: int) -> bool:
        """Rotate positions as in a text of this length, if it is longer than the current reach. Then all
        tokens are forgotten, and this returns True.
        """
        if not self.outgrows(tokens):
            return False
        self.rewind(self._states[0])
        self.cache.extent.reach = self.model.rotation.reach(tokens) or 0
        self.cache.extent.version += 1
        return True

    def outgrows(self, tokens: int) -> bool:
        """Whether positions rotate differently in a text of this length, so that all must be read again."""
        return (self.model.rotation.reach(tokens) or 0) > self.cache.extent.reach

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.cache.get_seq_length()

    def mark(self) -> State:
        """The current state, for `rewind`."""
        return State(self.length, self.cache.mark())

    def rewind(self, state: State) -> None:
        """Forget every token since `mark` returned this state, which stays valid. Ranks do so within their
        calls only.
        """
        assert self.team is None or self.team.under_way, "other ranks do not know this state"
        self._forget_states(state.tokens)
        self.cache.rewind(state.mark)
        self.ids = self.ids[: state.tokens]  # last, so that an interrupted rewind can be repeated

    @mirrored
    def truncate(self, tokens: int) -> None:
        """Forget all but the first tokens, without a mark; see `FullLayer.truncate` for what remains.

        Raises ValueError if some layer has forgotten what was there.
        """
        if not self.cache.can_truncate(tokens):
            raise ValueError(f"this cache cannot return to {tokens:,} of {self.length:,} tokens")
        self._forget_states(tokens)
        self.cache.truncate(tokens)
        self.ids = self.ids[:tokens]

    def _forget_states(self, tokens: int) -> None:
        """Drop states of more than this many tokens."""
        self._states = [known for known in self._states if known.tokens <= tokens]
        self._recent = deque((known for known in self._recent if known.tokens <= tokens), RECENT)

    def fork_bytes(self, tokens: int, more: int) -> int:
        """Bytes of a fork at this many tokens that continues for this many more."""
        placement = self.cache.placement
        own = more if shares_memory(placement) else tokens + more
        shape, item = self.model.shape, self.model.module.dtype.itemsize
        coded = own if isinstance(placement, Paged) else tokens + more  # pages of codes lie across tokens
        codes = 0 if self.sparse is None else shape.code_bytes(coded, self.attention.dense_layers)
        pages = len(STREAMS) * len(self.cache.kept) * fork_pages(placement)
        return shape.cache_bytes(own, item) + shape.state_bytes(item) + codes + pages

    @mirrored
    def fork(self) -> Timeline:
        """A timeline with the same tokens that continues independently. Tokens it shares with this one, if
        made for that, must stay here as long as it lives; only later ones may be forgotten.
        """
        other = copy.copy(self)
        other.cache = self.cache.fork()
        other.answered = []
        other._states, other._recent = list(self._states), self._recent.copy()
        other._attach(self.chunk)
        return other

    def reusable(self, ids: np.ndarray) -> int:
        """How many tokens at the beginning of a prompt, int [n], need not be read."""
        shared = common_prefix(self.ids, ids)
        if shared == len(self.ids):
            return shared
        return max(state.tokens for state in self._known() if state.tokens <= shared)

    @mirrored
    def return_to(self, ids: np.ndarray) -> int:
        """Forget everything that is not a prefix of a prompt, int [n]; returns how many of its tokens are
        cached.
        """
        tokens = self.reusable(ids)
        if tokens < len(self.ids):
            self.rewind(next(state for state in self._known() if state.tokens == tokens))
        return tokens

    def _known(self) -> list[State]:
        return [*self._states, *self._recent]

    @mirrored_events()
    def read(self, ids: np.ndarray, stored: Stored | None = None) -> Generator[Prefill]:
        """Read tokens, int [n], after the existing ones, sparsely if decided.

        stored: the tokens of the whole cache in a store. Into an empty cache, stored tokens are restored
        instead of read; newly read ones are stored. An interruption leaves a whole number of chunks. Raises
        NotFiniteError.
        """
        start = time.perf_counter()
        whole, known = np.concatenate([self.ids, np.asarray(ids, np.int32)]), 0
        try:
            if stored is not None and self.length == 0:
                known = self._restore(stored)
            encode = stored is None or not stored.alters
            tokens = self._on_device(ids[known:])
            reading = self._reader.read(tokens, start, stored, encode=encode, sparsely=True)
            yield from self._announced(reading)
            if len(tokens):
                self.logits = self._reader.logits
                require_finite(self.logits)
            with self._compiling_announced():
                self._encode(stored, whole=known == len(ids) == self.length)
                if len(ids):
                    self._rehearse(int(ids[-1]))
            self._reader.wait()
        finally:
            self.ids = whole[: self.length]

    @mirrored_events()
    def sync(self, ids: np.ndarray, stored: Stored | None = None) -> Generator[Prefill]:
        """Make the cache hold exactly a prompt, int [n]; only new tokens are read. stored: the prompt in a
        store.
        """
        known = self.return_to(ids)
        yield from self.read(ids[known:], stored)
        self._states.append(self.mark())

    @property
    def unjoinable(self) -> str | None:
        """Why it cannot `join` others, in a few words; None if it can."""
        if self.model.ranks is not None:
            return SPLIT
        if not self.model.takes_positions:
            return "it counts positions itself"
        return self.cache.unjoinable

    def join(self, other: Timeline, start: int) -> None:
        """Append the tokens of another timeline over the same model from `start` on, as it has read them: its
        tokens and those of earlier ones know nothing of each other. Both must begin with the same `start`
        tokens, unless this one is empty. Only if not `unjoinable`; `end_joining` comes before an answer.
        """
        mark = self.cache.mark()
        try:
            self.cache.join(other.cache, start)
        except BaseException:  # an interruption may have left some layers longer than others
            self.cache.rewind(mark)
            raise
        self.ids = np.concatenate([self.ids, other.ids[start:]])

    def end_joining(self) -> None:
        """Prepare what was joined for answers, which return to this state."""
        with self._compiling_announced():
            self.cache.encode()
            self._rehearse(int(self.ids[-1]))
        self._states.append(self.mark())

    def _restore(self, stored: Stored) -> int:
        """Fill the empty cache from the store; returns the token count."""
        mark = self.cache.mark()
        try:
            tokens = stored.restore(self.cache)
        except BaseException:  # an interruption may have left some layers empty
            self.cache.rewind(mark)
            raise
        ranks = self.model.ranks
        if ranks is not None and any(len(set(ranks.each(n))) > 1 for n in (tokens, self.cache.dense_tokens)):
            self.cache.rewind(mark)  # each rank has a store of its own
            return 0
        return tokens

    def _encode(self, stored: Stored | None, *, whole: bool) -> None:
        """Make the codes of the document just read, unless its last chunk did; restore them if the whole
        document came from the store.
        """
        if stored is None:
            self.cache.encode()
        elif not (whole and stored.restore_codes(self.cache)):
            self.cache.encode()
            stored.keep_codes(self.cache)

    def _rehearse(self, token: int) -> None:
        """Take a step and forget it, so that an answer's first step is already captured."""
        if not self._stepper.captures or self.sparse is None or self.length < REHEARSED_FROM:
            return
        mark, mode = self.cache.mark(), self._answering(sparse=True)
        self.cache.begin_answer(mode)
        if self.batch is not None and self._stepper.batch_obstacle(mode) is None:
            self.batch.prepare(self.cache, mode)
            return
        try:
            self._stepper.step(torch.tensor([token], device=self.model.device), mode)
        finally:
            self.cache.rewind(mark)

    @mirrored_events(_for_others)
    def answer(
        self,
        ids: np.ndarray,
        sampling: Sampling,
        max_tokens: int,
        stop_ids: Collection[int],
        *,
        sparse_from: SparseFrom = "answer",
        keep: bool = False,
        steer: Steer | None = None,
    ) -> Generator[Event]:
        """Read the question's tokens, int [n] with n >= 1, with full attention; then decode until a stop
        token.

        The stop token is not reported. Afterwards, even if the caller leaves early, the cache is as before.
        sparse_from: `question` feeds the question's tokens one by one, like an answer's; `never` decodes with
        full attention. keep: afterwards the cache keeps the question's tokens and those of `answered` that
        the model was fed; an interruption within a step drops the answer's. steer: see `Steer`.
        """
        start = time.perf_counter()
        reused = self.length
        mode = self._answering(sparse=sparse_from != "never")
        before = self.mark()
        if keep:
            self._recent.append(before)
        back = None if keep else before.mark
        prompt = np.concatenate([self.ids, np.asarray(ids, np.int32)])
        self.answered, self._whole, has_read = [], True, None
        try:
            if sparse_from == "question":
                self._feed(ids, mode)
            elif self._reads_in_steps(len(ids), mode):
                has_read = yield from self._announced(self._read_in_steps(ids, mode, start))
                if keep:
                    self._recent.append(self.mark())
                    back = self._recent[-1].mark
            else:
                tokens = self._on_device(ids)
                for event in self._announced(self._reader.read(tokens, start, encode=sparse_from != "never")):
                    if keep and event.done == event.total:
                        self._recent.append(self.mark())
                    yield event
                self.logits = self._reader.logits
            if keep and back is None:
                back = self.cache.mark()
            prefilled = time.perf_counter()
            with self._compiling_announced():
                self.cache.begin_answer(mode)
            times = start, prefilled, reused
            decoding = self._decode(prompt, mode, sampling, max_tokens, stop_ids, steer, has_read, *times)
            yield from self._announced(decoding)
            back = None if keep else back
        except GeneratorExit:  # between two steps
            back = None if keep and self._whole else back
            raise
        finally:
            if back is not None:
                self.cache.rewind(back)
            self.ids = np.concatenate([prompt, np.array(self.answered, np.int32)])[: self.length]

    @mirrored_events(_for_others)
    def go_on(
        self,
        ids: np.ndarray,
        sampling: Sampling,
        max_tokens: int,
        stop_ids: Collection[int],
        *,
        keep: bool = True,
        steer: Steer | None = None,
    ) -> Generator[Event]:
        """Answer a whole prompt, int [n] with n >= 1, reading only its new tokens; see `answer`."""
        self.reach(self.cache.extent.position(len(ids) + max_tokens))
        known = self.return_to(ids[:-1])
        yield from self.answer(ids[known:], sampling, max_tokens, stop_ids, keep=keep, steer=steer)

    @mirrored
    def score(self, ids: np.ndarray, *, sparse: bool) -> Tensor:
        """Feed tokens, int [n], and return the logits after each, [n, vocabulary].

        sparse: every token attends as an answer's tokens do. Afterwards the cache is as before.
        """
        tokens = self._on_device(ids)
        mark = self.cache.mark()
        # Many tokens with full attention at once are reading; a single one, in compiled steps, is a step.
        mode = self._answering(sparse=True) if sparse else Mode()
        if sparse:
            self.cache.begin_answer(mode)
        try:
            with self._compiling_announced():
                if self._stepper.runs_compiled(mode):
                    return torch.stack([self._stepper.step(one, mode)[0].clone() for one in tokens.split(1)])
                parts = tokens.split(LARGEST_STEP)
                return torch.cat([self.model.forward(x, self.cache, mode, every=True) for x in parts])
        finally:
            self.cache.rewind(mark)

    @mirrored
    def attended(self) -> np.ndarray | None:
        """The softmax weight that the last answer gave to each token in the cache, float32 [S], summed over
        its tokens, the sparse layers and their heads. None if nothing was counted: with full attention, or
        without `counts`.
        """
        if self.cache.tally is None:
            return None
        weights = self.cache.tally.weights(self.length)
        if self.model.ranks is not None:
            weights = self.model.ranks.sum(weights.clone())
        return weights.cpu().numpy().copy()

    def use(self, sparse: Sparse) -> None:
        """Choose tokens with these settings from now on; the cached keys are encoded again."""
        self._require_whole()
        self.sparse = sparse
        self.cache.encode_again(sparse)

    def read_by(self, backend: Backend) -> None:
        """Have sparse reading computed by this backend from now on."""
        self._require_whole()
        self._reader.read_by(backend)

    def _require_whole(self) -> None:
        """Raises UsageError for a model that is split over ranks, which are not told of backends."""
        if self.model.ranks is not None:
            raise UsageError("this measures a model on one GPU: leave out `gpus`.")

    def _answering(self, *, sparse: bool) -> Mode:
        """How an answer's tokens attend."""
        chosen = self.sparse if sparse else None
        tally = None if chosen is None else self.cache.tally
        return Mode(answers=True, sparse=chosen, dense=self.model.dense, tally=tally)

    def _feed(self, ids: np.ndarray, mode: Mode) -> None:
        """Feed tokens that attend as an answer's do."""
        self.cache.begin_answer(mode)
        for token in self._on_device(ids).split(1):
            self.logits, _ = self._stepper.step(token, mode)

    def _reads_in_steps(self, tokens: int, mode: Mode) -> bool:
        """Whether a question of this many tokens is read as an answer's tokens are computed, which is full
        attention too.
        """
        if self.sparse is not None or self.model.ranks is not None:
            return False
        return self._stepper.reads(tokens, mode, again=self._shares_steps(mode))

    def _read_in_steps(self, ids: np.ndarray, mode: Mode, start: float) -> Generator[Prefill, None, Prefill]:
        """Read a short question's tokens, int [n], and return what tells that they are read; beside a step of
        other answers, if there are any. start: when the clock began.
        """
        base, total = self.length, self.length + len(ids)

        def read(done: int) -> Prefill:
            return Prefill(done, total, base, time.perf_counter() - start, None, LARGEST_STEP, False)

        self.cache.begin_answer(mode)
        tokens = self._on_device(ids)
        if self.model.device.type != "cuda" or not self._others_decode(mode):
            self.logits = self._stepper.read(tokens, mode)
            return read(total)
        aside = Aside.of(self.model)
        self.cache.make_room(READ_IN_STEPS)
        try:
            with aside.run():
                self.logits = self._stepper.read(tokens, mode)
            yield read(base)
        finally:
            aside.join()
        return read(total)

    def _decode(
        self,
        tokens: np.ndarray,
        mode: Mode,
        sampling: Sampling,
        max_tokens: int,
        stop_ids: Collection[int],
        steer: Steer | None,
        has_read: Prefill | None,
        start: float,
        prefilled: float,
        reused: int,
    ) -> Generator[Prefill | Token | Done]:
        """See `answer`. has_read: an event to begin with, during which other answers take their turns."""
        prompt = self.length
        budget = mode.sparse.settings.budget if mode.sparse else prompt + max_tokens
        count, reason, memory = 0, "length", 0
        first = last = prefilled
        forced: deque[int] = deque()
        passes, sampler = self._passes(mode), Sampler(sampling, self.model.device)
        try:
            saying = self._saying(tokens, mode, passes, sampler)
            if has_read is not None:
                saying.offer(max_tokens)
                yield has_read
            while count < max_tokens:
                value = saying.next(max_tokens - count)
                self.answered.append(value)
                last = time.perf_counter()
                if value in stop_ids:
                    reason = "stop"
                    break
                first = last if count == 0 else first
                context = prompt + count
                attended = context if count == 0 else min(budget, context)
                if count + 1 < max_tokens:
                    saying.feed(max_tokens - count - 1)
                try:
                    if count % MEMORY_EVERY == 0:
                        memory = peak_memory(self.model.device)
                    yield Token(value, count, context, attended, last - first, memory, sampler.likelihood())
                except GeneratorExit:
                    saying.end(prompt + count)
                    raise
                count += 1
                if steer is not None:
                    forced.extend(steer(value))
                if forced:
                    saying.say(forced.popleft())
                    sampler.replace()
            saying.end(prompt + count)
        finally:
            self._whole = passes.whole
            passes.leave()
        self.logits = saying.logits
        yield Done(
            reason,
            prompt,
            reused,
            count,
            prefilled - start,
            first - start,
            last - first,
            peak_memory(self.model.device),
            saying.drafted,
        )

    def _draft_obstacle(self, mode: Mode) -> str | None:
        """Why drafts of answers in this mode are not checked, in a few words; None if they can be."""
        if self._stepper.on_gpu and self._shares_steps(mode):
            return "answers that decode together on a GPU take one token a step"
        return self._stepper.check_obstacle(mode)

    def _shares_steps(self, mode: Mode) -> bool:
        """Whether answers in this mode take their steps with others."""
        return self.batch is not None and self._stepper.batch_obstacle(mode) is None

    def _others_decode(self, mode: Mode) -> bool:
        """Whether there are answers in progress, among them perhaps some with which an answer in this mode
        will take its steps.
        """
        return self.batch is not None and self.batch.seated > 0 and self._shares_steps(mode)

    def _passes(self, mode: Mode) -> Passes:
        """The steps of an answer, shared with other answers if possible."""
        if self.batch is not None and self._shares_steps(mode):
            return self.batch.seat(self.cache, mode)
        return Alone(self._stepper, mode)

    def _saying(self, ids: np.ndarray, mode: Mode, passes: Passes, sampler: Sampler) -> Saying:
        """The tokens of an answer after a prompt, int [n]."""
        if self.drafts == "off" or self._draft_obstacle(mode) is not None:
            return OneByOne(passes, sampler, self.logits, self.model.ranks)
        if self._stepper.on_gpu:
            self._costs.setup = lambda size: 0.0 if self._stepper.captured(mode, size) else CAPTURE
        drafter = Drafter(ids, self._costs, always=self.drafts == "text")
        checked = CheckedAhead if self._stepper.on_gpu else Checked
        return checked(passes, self.cache, mode, sampler, drafter, self.logits)

    def _known_costs(self) -> Costs:
        """What passes on a GPU cost: their graphs serve all documents of a model, and so does what is known
        of them.
        """
        found = self.model.shared.setdefault((Costs, self.sparse is None), Costs(GPU_COSTS))
        assert isinstance(found, Costs)
        return found

    def _on_device(self, ids: np.ndarray) -> Tensor:
        """Token ids, int [n], as the model takes them: int64 [n]."""
        # A few come from any memory without waiting for the GPU.
        return torch.from_numpy(np.array(ids, np.int64)).to(self.model.device, non_blocking=True)

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._announce(line)

    def _announced(self, events: Generator[E, None, R]) -> Generator[E, None, R]:
        """The same events and result; compiling is announced while waiting for one, but not between two:
        other timelines may run there.
        """
        with closing(events):
            while True:
                with self._compiling_announced():
                    try:
                        event = next(events)
                    except StopIteration as end:
                        result: R = end.value
                        return result
                yield event

    def _compiling_announced(self) -> AbstractContextManager[None]:
        """A scope in which compiling is announced, if kernels are Triton's."""
        return Announcing(self._say_once) if self.model.is_fused else nullcontext()


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """How many leading tokens two prompts, int [n] and int [m], share."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter
