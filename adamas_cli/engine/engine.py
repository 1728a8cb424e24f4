"""Chunked prefill and decode, as generators of events. Knows token ids and tensors, no text."""

from __future__ import annotations

import inspect
import logging
import resource
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from adamas_kernels.contract import LARGEST_STEP, SparseSettings
from adamas_kernels.dispatch import load, obstacle
from torch import Tensor

from adamas_cli.engine.attention import AttentionSettings, adamas_attention, refusal, unsupported_reason
from adamas_cli.engine.cache import AdamasCache, PlainCache
from adamas_cli.engine.choice import OTHER_CHUNK, PREFILL_CHUNK
from adamas_cli.engine.compiling import announced_compiling
from adamas_cli.engine.eta import PrefillCost
from adamas_cli.engine.events import Done, Event, Prefill, Token
from adamas_cli.engine.fused import Fused
from adamas_cli.engine.graph import GraphedSteps, graph_obstacle
from adamas_cli.engine.heads import head_dim, token_bytes
from adamas_cli.engine.layers import SparseDecoding, Steps
from adamas_cli.engine.mapped import mapped_bytes
from adamas_cli.engine.native import NativeDecoder, native_obstacle
from adamas_cli.engine.reader import TokenReader
from adamas_cli.engine.sampling import Sampler, Sampling
from adamas_cli.errors import OutOfMemoryError

if TYPE_CHECKING:
    from adamas_cli.models import LoadedModel

SMALLEST_CHUNK = 64
REHEARSED_FROM = 2048  # tokens of a document

log = logging.getLogger(__name__)

SparseFrom = Literal["question", "answer", "never"]
"""The first token that attends sparsely, where the engine is to decode sparsely at all."""


class Stored(Protocol):
    """A document that was read before, wholly or in part, or that is to be kept."""

    block: int  # tokens that are stored together
    alters: bool  # whether `keep` changes what is in the cache

    def restore(self, cache: AdamasCache) -> int:
        """Fill an empty cache with the document's first tokens; how many."""
        ...

    def keep(self, cache: AdamasCache, start: int, end: int) -> None:
        """Keep tokens [start, end), which were read last."""
        ...

    def restore_codes(self, cache: AdamasCache) -> bool:
        """Fill in the codes of the whole document; whether they were there."""
        ...

    def keep_codes(self, cache: AdamasCache) -> None:
        """Keep the codes of the whole document."""
        ...


class Engine:
    """One model with one cache: reads documents once, then answers any number of questions about them.

    context: the tokens that will be in the cache, by which `auto` chooses between sparse and full attention;
    the cache is allocated for so many, and may grow to `limit` without being copied. announce: told before a
    backend compiles for seconds. graphs: replay steps on a GPU as CUDA graphs, where that can be. counts:
    keep a tally of what answers attend to. Raises ModelUnavailableError if Adamas is asked for and does not
    serve the model, and UsageError if a backend is and does not run.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        attention: AttentionSettings,
        *,
        context: int,
        limit: int = 0,
        prefill_chunk: int | None = None,
        announce: Callable[[str], None] | None = None,
        graphs: bool = True,
        counts: bool = False,
    ) -> None:
        self.model = loaded.model
        self._announce = announce or log.info
        self._said: set[str] = set()
        self.attention = attention
        self.chunk = prefill_chunk or PREFILL_CHUNK.get(self.model.device.type, OTHER_CHUNK)
        config = self.model.config.get_text_config()
        unsupported = unsupported_reason(config)
        if unsupported and attention.kind == "adamas":
            raise refusal(unsupported)
        self.sparse: SparseDecoding | None = None
        self.backend_reason: str | None = None
        if not unsupported:
            self.sparse, self.backend_reason = attention.resolve(
                context, token_bytes(config, self.model.dtype), self.model.device, announce
            )
        self._cache: AdamasCache | PlainCache
        if unsupported:
            self._cache = PlainCache(config=config)
        else:
            steps = Steps(torch.zeros(1, dtype=torch.int32, device=self.model.device))
            if obstacle("triton", self.model.device) is None:
                steps.dense = load("triton")
            self._cache = AdamasCache.for_model(config, self.sparse, attention.dense_layers, steps)
            self._cache.reserve(context, limit)
            if counts:
                self._cache.count_attention()
        self.answered: list[int] = []  # tokens of the last answer, with the stop token that ended it
        self._native: NativeDecoder | None = None
        self._graphs: GraphedSteps | None = None
        self._greedy: Tensor | None = None
        self._fused: Fused | None = None
        self.step_reason = self._prepare_steps(graphs)
        self._last_only = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self._attention_share = _attention_share(self.model)

    def _prepare_steps(self, graphs: bool) -> str | None:
        """Choose how steps of one token run; one line about why not in the fastest way."""
        if self.model.device.type != "cuda":
            reason = native_obstacle(self.model, self._cache)
            if reason is None:
                self._native = NativeDecoder(self.model)
            return reason and f"each token goes through transformers' forward ({reason})"
        if obstacle("triton", self.model.device) is None:
            self._fused = Fused(self.model)
        reason = graph_obstacle(self.model, self._cache, self.sparse)
        if reason is None and graphs:
            assert isinstance(self._cache, AdamasCache)
            self._graphs = GraphedSteps(self._cache, self._forward_at)
        return reason and f"no CUDA graph: {reason}"

    @property
    def attention_kind(self) -> str:
        """`adamas` where answer tokens attend sparsely, else `full`."""
        return "full" if self.sparse is None else "adamas"

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cache.get_seq_length()

    @property
    def keeps_documents(self) -> bool:
        """Whether what it reads can be stored and restored."""
        return isinstance(self._cache, AdamasCache)

    def read(self, ids: np.ndarray, stored: Stored | None = None) -> Iterator[Prefill]:
        """Read tokens, int [n], into the cache, behind what is there.

        stored: the tokens of the whole cache in a store. What is there is not read again, if nothing was read
        yet, and what is read goes there. Interrupted, it leaves a whole number of chunks.
        """
        start = time.perf_counter()
        with self._attending():
            known = 0
            if stored is not None and self.length == 0:
                known = self._restore(stored)
            encode = stored is None or not stored.alters
            yield from self._prefill(ids[known:], start, stored, encode=encode)
            self._encode(stored, whole=known == len(ids) == self.length)
            if len(ids):
                self._rehearse(int(ids[-1]))
        self._wait()

    def answer(
        self,
        ids: np.ndarray,
        sampling: Sampling,
        max_tokens: int,
        stop_ids: Collection[int],
        *,
        sparse_from: SparseFrom = "answer",
        keep: bool = False,
    ) -> Generator[Event]:
        """Read the question's tokens, int [n] with n >= 1, with full attention; then decode until a stop
        token.

        The stop token is not reported. Afterwards, also when the caller leaves early, the cache is where it
        was. sparse_from: `question` feeds the question's tokens one by one, as if they were an answer's;
        `never` decodes with full attention. keep: afterwards the question's tokens are in the cache and,
        behind them, those of `answered` that the model was fed; an interruption within a step forgets the
        answer's.
        """
        start = time.perf_counter()
        reused = self.length
        mark = None if keep else self._cache.mark()
        self.answered = []
        try:
            with self._attending():
                if sparse_from == "question":
                    self._feed(ids)
                else:
                    yield from self._prefill(ids, start, encode=sparse_from != "never")
                if keep:
                    mark = self._cache.mark()
                prefilled = time.perf_counter()
                self._cache.start_decoding(sparse=sparse_from != "never")
                sparse = self.sparse is not None and sparse_from != "never"
                yield from self._decode(sampling, max_tokens, stop_ids, start, prefilled, reused, sparse)
                mark = None if keep else mark
        except GeneratorExit:  # between two steps
            mark = None if keep else mark
            raise
        finally:
            self._cache.stop_decoding()
            if mark is not None:
                self._cache.rewind(mark)

    def mark(self) -> Any:
        """The present state of the cache, for `rewind`."""
        return self._cache.mark()

    def rewind(self, mark: Any) -> None:
        """Forget every token since `mark`, which stays good for another time."""
        self._cache.rewind(mark)

    def score(self, ids: np.ndarray, *, sparse: bool) -> Tensor:
        """Feed tokens, int [n], and return the logits behind each of them, [n, vocabulary].

        sparse: every token attends as an answer's tokens do. Afterwards the cache is where it was.
        """
        tokens = self._on_device(ids)
        mark = self._cache.mark()
        if sparse:
            self._cache.start_decoding()
        else:
            self._cache.stop_decoding()
        try:
            with self._attending():
                if self._native and self._compiled_steps:
                    return torch.stack([self._step(token).clone() for token in tokens.split(1)])
                return torch.cat([self._forward(part, every=True) for part in tokens.split(LARGEST_STEP)])
        finally:
            self._cache.rewind(mark)

    def attended(self) -> np.ndarray | None:
        """The softmax weight that the last answer gave to each token in the cache, float32 [S], added up over
        its tokens, the sparse layers and their heads. None where nothing was counted: with full attention, or
        without `counts`.
        """
        weights = self._cache.attended() if isinstance(self._cache, AdamasCache) else None
        return None if weights is None else weights.cpu().numpy().copy()

    def encode_again(self) -> None:
        """Encode the keys of the cache anew, after the settings of `sparse` have changed."""
        if isinstance(self._cache, AdamasCache):
            self._cache.encode_again()

    def _restore(self, stored: Stored) -> int:
        """Fill the empty cache with what is stored; the tokens."""
        assert isinstance(self._cache, AdamasCache)
        mark = self._cache.mark()
        try:
            return stored.restore(self._cache)
        except BaseException:  # an interruption may have left some layers empty
            self._cache.rewind(mark)
            raise

    def _encode(self, stored: Stored | None, *, whole: bool) -> None:
        """Codes of the document that was just read, where its last chunk did not bring them: from the store
        where all of it came from there.
        """
        if stored is None or not isinstance(self._cache, AdamasCache):
            self._cache.encode()
        elif not (whole and stored.restore_codes(self._cache)):
            self._cache.encode()
            stored.keep_codes(self._cache)

    def _rehearse(self, token: int) -> None:
        """Take a step and forget it, so that the first of an answer finds it captured."""
        if self._graphs is None or self.sparse is None or self.length < REHEARSED_FROM:
            return
        assert isinstance(self._cache, AdamasCache)
        mark = self._cache.mark()
        self._cache.start_decoding()
        try:
            self._step(torch.tensor([token], device=self.model.device))
        finally:
            self._cache.stop_decoding()
            self._cache.rewind(mark)

    def _feed(self, ids: np.ndarray) -> None:
        """Tokens that attend as an answer's do; leaves the logits behind the last one in `self._logits`."""
        self._cache.start_decoding()
        tokens = self._on_device(ids)
        for token in tokens.split(1):
            self._logits = self._step(token)

    def _prefill(
        self, ids: np.ndarray, start: float, stored: Stored | None = None, *, encode: bool
    ) -> Iterator[Prefill]:
        """Chunks of `self.chunk` tokens, none of which reaches into two blocks of `stored`; leaves the logits
        behind the last one in `self._logits`.

        encode: make the codes in the pass of the last chunk, layer by layer. There all keys are known that a
        codebook is to be fitted to, and while the device computes, the host has time for it.
        """
        tokens = self._on_device(ids)
        base, total, done = self.length, len(tokens), 0
        cost = PrefillCost(self._attention_share)
        self._cache.stop_decoding()
        while True:
            remaining = cost.remaining(base + done, base + total)
            seconds = time.perf_counter() - start
            yield Prefill(base + done, base + total, base, seconds, remaining, self.chunk)
            if done == total:
                return
            step = time.perf_counter()
            size = self.chunk
            if stored is not None:
                size = min(size, stored.block - (base + done) % stored.block)
            size = self._read_chunk(tokens[done:], size, encode)
            cost.add(base + done, base + done + size, time.perf_counter() - step)
            done += size
            end = base + done
            if stored is not None and (done == total or end % stored.block == 0):
                assert isinstance(self._cache, AdamasCache)
                stored.keep(self._cache, (end - 1) // stored.block * stored.block, end)

    def _read_chunk(self, rest: Tensor, size: int, encode: bool) -> int:
        """Read the first of the tokens that are left, at most so many, fewer if memory runs out, and return
        how many; none where it raises. encode: see `_prefill`.
        """
        while True:
            tokens = rest[:size]
            mark = self._cache.mark()
            try:
                with self._cache.encoding(encode and len(tokens) == len(rest)):
                    self._logits = self._forward(tokens)
                self._wait()
                return len(tokens)
            except BaseException as error:  # an interruption leaves some layers longer than others
                if not _is_out_of_memory(error):
                    self._cache.rewind(mark)
                    raise
            # Outside the handler, so that the traceback no longer holds the step's tensors.
            self._cache.rewind(mark)
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(tokens) <= SMALLEST_CHUNK:
                raise OutOfMemoryError(
                    f"out of memory on {self.model.device} with {self.length:,} tokens in the cache. "
                    "Use a smaller model, --dtype bfloat16, or fewer documents.",
                    n_cached_tokens=self.length,
                )
            size = self.chunk = max(SMALLEST_CHUNK, len(tokens) // 2)

    def _decode(
        self,
        sampling: Sampling,
        max_tokens: int,
        stop_ids: Collection[int],
        start: float,
        prefilled: float,
        reused: int,
        sparse: bool,
    ) -> Iterator[Event]:
        sampler, reader = Sampler(sampling, self.model.device), TokenReader(self.model.device)
        prompt = self.length
        budget = self.sparse.settings.budget if self.sparse and sparse else prompt + max_tokens
        # A GPU gets the next step before the host knows the token that it starts from, and so one too many
        # at the end; a CPU would lose that step's time.
        ahead = self.model.device.type == "cuda"
        count, reason = 0, "length"
        first = last = prefilled
        token = sampler.next(self._logits)
        while count < max_tokens:
            reader.send(token)
            more = count + 1 < max_tokens
            early = more and ahead and count > 0  # nothing, compiling least of all, delays the first token
            if early:
                token = self._next(token, sampler)
            value = reader.receive()
            self.answered.append(value)
            last = time.perf_counter()
            if value in stop_ids:
                reason = "stop"
                break
            first = last if count == 0 else first
            context = prompt + count
            attended = context if count == 0 else min(budget, context)
            yield Token(value, count, context, attended, last - first, peak_memory(self.model.device))
            count += 1
            if more and not early:
                token = self._next(token, sampler)
        yield Done(
            reason,
            prompt,
            reused,
            count,
            prefilled - start,
            first - start,
            last - first,
            peak_memory(self.model.device),
        )

    def _next(self, token: Tensor, sampler: Sampler) -> Tensor:
        """The token behind a token, int64 [1], which is appended."""
        self._logits = self._step(token)
        return self._greedy if sampler.greedy and self._greedy is not None else sampler.next(self._logits)

    def _step(self, token: Tensor) -> Tensor:
        """One token, int64 [1], behind those in the cache, as an answer's tokens attend: the logits behind
        it, [vocabulary], valid until the next step. Leaves the greedy token in `self._greedy` where the step
        told it.
        """
        self._greedy = None
        if self._native is not None and (self._compiled_steps or self._cache.decodes_fully):
            assert isinstance(self._cache, AdamasCache)
            settings = self.sparse.settings if self.sparse else SparseSettings()
            self._cache.make_room(1)  # before the tally is taken, which may move with it
            tally = self.sparse.tally if self.sparse and not self._cache.decodes_fully else None
            logits = self._native.step(int(token), self._cache, settings, tally)
            self._cache.advance(1)
            return logits
        if self._graphs is not None:
            try:
                logits, self._greedy = self._graphs.step(token)
                return logits
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._graphs = None
                self.step_reason = f"no CUDA graph: {str(error).partition(chr(10))[0]}"
                self._announce(self.step_reason)
        return self._forward(token)

    @property
    def _compiled_steps(self) -> bool:
        """Whether sparse steps, if there are any, are those that a compiled decoder has."""
        return self.sparse is None or self.sparse.backend.name == "cpu"

    @torch.no_grad()
    def _forward(self, tokens: Tensor, *, every: bool = False, positions: Tensor | None = None) -> Tensor:
        """One step of the model over new tokens [n]: the logits of the last position, [vocabulary], or of
        every one, [n, vocabulary]. positions: [1, n], where they are not to come from the host.
        """
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._last_only and not every else {}
        if isinstance(self._cache, AdamasCache):
            extra["adamas_cache"] = self._cache
        if positions is not None:
            extra["position_ids"] = positions
        output = self.model(tokens.unsqueeze(0), past_key_values=self._cache, use_cache=True, **extra)
        self._cache.advance(len(tokens))
        return output.logits[0] if every else output.logits[0, -1]

    def _forward_at(self, token: Tensor, position: Tensor) -> Tensor:
        """The same for one token at a position that lies on the device, [1, 1]."""
        return self._forward(token, positions=position)

    def _on_device(self, ids: np.ndarray) -> Tensor:
        """Token ids, int [n], as the model takes them: int64 [n]."""
        return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(self.model.device)

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._announce(line)

    def _wait(self) -> None:
        """Until the device has done what it was told."""
        if self.model.device.type == "cuda":
            torch.cuda.current_stream(self.model.device).synchronize()

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """The scope in which the model attends through the cache of this engine, with fused kernels."""
        with ExitStack() as scope:
            if self._fused is not None:
                scope.enter_context(announced_compiling(self._say_once))
                scope.enter_context(self._fused.applied())
            if isinstance(self._cache, AdamasCache):
                scope.enter_context(adamas_attention(self.model))
            yield


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of what was allocated on a GPU, of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) + mapped_bytes(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _attention_share(model: Any) -> float:
    """Arithmetic of one query-key pair over that of one token's matrix products: 4 L H D / 2 parameters."""
    config = model.config.get_text_config()
    pair = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim(config)
    embedding = config.vocab_size * config.hidden_size
    return pair / (2 * max(1, _parameters(model) - embedding))


def _parameters(model: Any) -> int:
    """Numbers in a model's weights, those of packed layers included."""
    packed = [module for module in model.modules() if hasattr(module, "packed")]
    return sum(x.numel() for x in model.parameters()) + sum(m.in_features * m.out_features for m in packed)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether this is one of the ways in which torch says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
