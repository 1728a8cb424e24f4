"""Measures keys and values in host memory beside one GPU, for docs/performance.md.

    python docs/measure_host.py --million [-m FILE] [--tokens 1000000] [--share 0.05] [--chunk 8192]
        [--widened FILE --text TEXT --share 0] [--profile]
    python docs/measure_host.py --small-card FILE [--bytes 12e9] [--tokens 131072]
    python docs/measure_host.py --beside [--lengths 32768,131072] [-m FILE [--text TEXT --share 0]]
    python docs/measure_host.py --loss FILE TEXT [--lengths 16384,30000]
    python docs/measure_host.py --llama FILE [--lengths 4096,8192,16384] [--tokens 131072]

--million: reads random tokens sparsely with 8-bit keys and values in host memory, then decodes at the default
budget and at 128. --small-card: the same with at most this much memory of the GPU, in the model's own number
format. --beside: decoding with keys and values in either memory, and whether the tokens are equal. --loss: KL
of keys and values in fewer bits to those in 16, after a text. --llama: llama.cpp with keys and values in host
memory; it reads slowly, so the time of a step at `--tokens` is a line through shorter lengths. --profile: the
kernels that a step's time goes to, after each of these rates.

Documents are random tokens, or the beginning of --text. With --widened a model of --shape has the weights of
a smaller model's file (`widening.py`), which choose tokens as on a text; without that and -m, random ones.
Random weights spread attention evenly, so a real choice would skip nearly all blocks: after the choice, which
takes as long as any, attention reads --share of the blocks, at random, the same in all layers of a chunk and
in all runs. 0 leaves the choice as it is, as on a CPU always.

Each line tells the seconds since the start, and is printed as soon as its result exists.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from adamas_kernels.contract import Backend, SparseSettings
from adamas_kernels.hot import HotRows
from adamas_kernels.reading import BlockMeans, ReadSettings
from adamas_kernels.softmax import PLAIN, Softmax
from torch import Tensor
from widening import load_widened

from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.hosted import HostBuffer
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Done, Token
from adamas_cli.engine.peak import peak_memory
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.bench.document import random_document, text_document
from adamas_cli.lab.bench.rivals import LLAMA, llama_python, run_child
from adamas_cli.lab.bench.shapes import load_shape
from adamas_cli.lab.eval.divergence import diverge, interval
from adamas_cli.models import LoadedModel, load, resolve
from adamas_cli.planning.choice import budget_for
from adamas_cli.progress import Silent
from adamas_cli.settings import CacheDType, KvPlace

QUESTION = 16  # tokens after the document
WARM_UP, WARM_UP_READ = 4, 8192  # tokens of an answer and of a document, so that kernels are compiled
PARTS = 8  # of a document, for which a speed is told
SMALL_BUDGET = 128
SCORED = 256  # tokens over which distributions are compared
SMALL_CHUNK = 2048  # tokens read at once on a small card, where larger ones leave too little memory
OTHER_CHUNK = 1000  # tokens: the loss that comes from rounding in another order
PROFILED, PROFILE_ROWS = "--profile", 14
BEGUN = time.perf_counter()


def tell(line: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.perf_counter() - BEGUN:7.1f} s] {line}", flush=True)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def told_memory(loaded: LoadedModel, timeline: Timeline | None = None) -> str:
    """Peak memory of the GPU, keys and values in host memory, and peak memory of the process."""
    hosted = 0
    for layer in [] if timeline is None else timeline.cache.kept:
        if isinstance(layer, FullLayer):
            buffers = [buffer for buffer in layer.buffers.values() if isinstance(buffer, HostBuffer)]
            hosted += sum(buffer.host.numel() * buffer.host.element_size() for buffer in buffers)
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = f"{loaded.device.type} peak {gigabytes(peak_memory(loaded.device))}"
    return f"{line}, in host memory {gigabytes(hosted)}, process peak {gigabytes(process)}"


def forced_share(share: float) -> Backend:
    """Triton's sparse reading, which reads this share of blocks instead of those that it chooses."""
    from adamas_kernels.triton.backend import TritonBackend
    from adamas_kernels.triton.reading import choose_blocks
    from adamas_kernels.triton.sparse_prefill import attend_to_blocks, count_blocks
    from measure_sparse_reading import random_choice

    class Forced(TritonBackend):
        def __init__(self) -> None:
            super().__init__()
            self._size, self._chosen = 0, (torch.empty(0),) * 3

        def prefill_sparsely(
            self, queries: Tensor, keys: Tensor, values: Tensor, means: BlockMeans, scaling: float,
            settings: ReadSettings, softmax: Softmax = PLAIN, computed: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            choose_blocks(queries, keys, means, scaling, settings, softmax)
            new, size = queries.shape[2], keys.shape[2]
            if size != self._size:
                torch.manual_seed(size)
                self._size, self._chosen = size, random_choice(queries.shape[1], new, size, share)
            if computed is not None:
                count_blocks(self._chosen[2], new, size, computed)
            out, lse = attend_to_blocks(queries, keys, values, means, self._chosen, scaling, softmax)
            return softmax.with_sinks(out, lse)

    return Forced()


@dataclass(frozen=True)
class Job:
    """A model, and how its documents are read: the share of blocks, and tokens at once (None for the
    default). text: of the documents; None for random tokens.
    """

    loaded: LoadedModel
    share: float
    chunk: int | None
    text: Path | None = None

    def timeline(
        self,
        tokens: int,
        kv: KvPlace,
        kept: CacheDType = "auto",
        *,
        budget: int | None = None,
        attention: str = "adamas",
    ) -> Timeline:
        """An empty one with room for a document of this many tokens, a question and an answer."""
        settings = AttentionSettings(
            attention,
            SparseSettings() if budget is None else SparseSettings(budget=budget),
            budget_by_context=budget is None,
            read="sparse",
            cache_dtype=kept,
            kv=kv if self.loaded.device.type == "cuda" else "auto",
        )
        room = tokens + QUESTION + 2 * SCORED
        timeline = Timeline(self.loaded, settings, context=room, prefill_chunk=self.chunk, announce=tell)
        if self.share and self.loaded.device.type == "cuda":
            timeline.read_by(forced_share(self.share))
        return timeline

    def ids(self, tokens: int) -> np.ndarray:
        """The tokens of a document and of a question after it."""
        if self.text is not None:
            files = self.loaded.files
            return text_document(self.text, files.texts or files.directory, tokens + QUESTION).ids
        vocabulary = self.loaded.model.config.get_text_config().vocab_size
        return random_document(vocabulary, tokens + QUESTION).ids

    def warm_up(self, tokens: int, kv: KvPlace, kept: CacheDType, budgets: Sequence[int]) -> None:
        """Compile the kernels of contexts of this many tokens, on a shorter document."""
        few = min(tokens, WARM_UP_READ)
        for budget in budgets:
            timeline = self.timeline(few, kv, kept, budget=budget)
            ids = self.ids(few)
            for _ in timeline.read(ids[:few]):
                pass
            answer(timeline, ids[few:], WARM_UP)
            del timeline
            collect()
        tell(f"warm: budgets {', '.join(map(str, budgets))}")


def collect() -> None:
    """Return memory of timelines that are gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def answer(
    timeline: Timeline, question: np.ndarray, tokens: int, *, sparse: bool = True
) -> tuple[list[int], Done]:
    """The greedy tokens after a question, and their timing."""
    said = []
    way = "answer" if sparse else "never"
    for event in timeline.answer(question, Sampling(), tokens, (), sparse_from=way):
        if isinstance(event, Token):
            said.append(event.id)
        elif isinstance(event, Done):
            return said, event
    raise AssertionError("an answer ends with Done")


def read(timeline: Timeline, ids: np.ndarray) -> float:
    """Read a document, with the speed of each of its parts, the time of its first chunk, in which memory is
    taken, and that of its codes. Returns seconds.
    """
    begin = last = time.perf_counter()
    before, first, part = 0, True, max(1, len(ids) // PARTS)
    for event in timeline.read(ids):
        now = time.perf_counter()
        if first and event.done:
            tell(f"first chunk of {event.done:,} tokens: {now - begin:.2f} s, with its memory taken")
            first = False
        if event.done and (event.done // part > before // part or event.done == event.total):
            speed = (event.done - before) / (now - last)
            tell(
                f"{event.done:,} tokens after {now - begin:.1f} s; since the last line {speed:,.0f} tokens/s"
            )
            before, last = event.done, now
    seconds = time.perf_counter() - begin
    tell(f"codes and a first step: {time.perf_counter() - last:.2f} s")
    computed = timeline.computed
    told = "" if computed is None else f", {computed:.1%} of blocks"
    tell(f"| read {len(ids):,} | {seconds:.1f} s | {len(ids) / seconds:,.0f} tokens/s{told} |")
    return seconds


def decode(
    timeline: Timeline, question: np.ndarray, tokens: int, label: str, *, sparse: bool = True
) -> list[int]:
    """Decode twice, the second time warm, with their speeds."""
    answer(timeline, question, WARM_UP, sparse=sparse)
    said: list[int] = []
    for _ in range(2):
        said, done = answer(timeline, question, tokens + 1, sparse=sparse)
        speed = (done.completion_tokens - 1) / done.decode_seconds
        tell(f"| {label} | {speed:.2f} tokens/s | first token {done.first_token_seconds:.2f} s |")
    if sparse and (share := fetched(timeline)) is not None:
        tell(f"the last step fetched {share:.1%} of its choices from host memory")
    if timeline.step_reason:
        tell(f"steps: {timeline.step_reason}")
    if PROFILED in sys.argv:
        profile(timeline, question, sparse=sparse)
    return said


def copies_of(timeline: Timeline) -> list[HotRows]:
    """Those of each layer with keys and values in host memory."""
    layers = [
        layer.codes.layer for layer in timeline.cache.kept if isinstance(layer, FullLayer) and layer.codes
    ]
    return [layer.hot for layer in layers if layer is not None and layer.hot is not None]


def fetched(timeline: Timeline) -> float | None:
    """Which share of its choices the last step copied from host memory, over all layers; None without any
    there.
    """
    copies = copies_of(timeline)
    if not copies or timeline.sparse is None:
        return None
    last = max(int(hot.stamp.max()) for hot in copies)
    heads = timeline.model.shape.heads
    each = [int((hot.stamp == last).sum()) / (heads * timeline.sparse.settings.budget) for hot in copies]
    return sum(each) / len(each)


def profile(timeline: Timeline, question: np.ndarray, *, sparse: bool) -> None:
    """Tell which kernels take the time of an answer's steps."""
    each: dict[str, float] = {}
    for tokens, sign in ((1, -1), (1 + WARM_UP, 1)):  # the question's own kernels are in both
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            answer(timeline, question, tokens, sparse=sparse)
        for row in seen.key_averages():
            each[row.key] = each.get(row.key, 0.0) + sign * row.self_device_time_total / WARM_UP
    for key, microseconds in sorted(each.items(), key=lambda one: -one[1])[:PROFILE_ROWS]:
        tell(f"    {microseconds:10.0f} us a step  {key[:90]}")


def at_budget(timeline: Timeline, budget: int) -> None:
    """Attend to this many tokens from now on. Codes do not depend on it, so they stay."""
    assert timeline.sparse is not None
    settings = replace(timeline.sparse.settings, budget=budget)
    timeline.sparse = replace(timeline.sparse, settings=settings)
    for hot in copies_of(timeline):
        hot.forget()
        hot.stamp.fill_(-1)


def read_and_decode(job: Job, tokens: int, kv: KvPlace, kept: CacheDType, generated: int) -> None:
    """The steps of `--million` and of `--small-card`."""
    default = budget_for(tokens + QUESTION + 2 * SCORED)
    job.warm_up(tokens, kv, kept, [default, SMALL_BUDGET])
    begin = time.perf_counter()
    timeline, ids = job.timeline(tokens, kv, kept), job.ids(tokens)
    tell(f"an empty cache: {time.perf_counter() - begin:.2f} s; keys and values: {timeline.kv}, {kept}")
    read(timeline, ids[:tokens])
    tell(told_memory(job.loaded, timeline))
    assert timeline.sparse is not None
    chosen = timeline.sparse.settings.budget
    decode(timeline, ids[tokens:], generated, f"default budget, {chosen}")
    tell(told_memory(job.loaded, timeline))
    at_budget(timeline, SMALL_BUDGET)
    decode(timeline, ids[tokens:], generated, f"budget {SMALL_BUDGET}")
    tell(told_memory(job.loaded, timeline))


def beside(job: Job, lengths: Sequence[int], kept: CacheDType, generated: int) -> None:
    """Speed and tokens with keys and values in either memory."""
    for tokens in lengths:
        ids = job.ids(tokens)
        default = budget_for(tokens + QUESTION + 2 * SCORED)
        job.warm_up(tokens, "host", kept, [default, SMALL_BUDGET])
        found: dict[str, dict[str, list[int]]] = {}
        places: tuple[KvPlace, ...] = ("gpu", "host")
        for place in places:
            timeline = job.timeline(tokens, place, kept)
            tell(f"{tokens:,} tokens, {place}: keys and values are in {timeline.kv}")
            read(timeline, ids[:tokens])
            label = f"{tokens:,} | {place}"
            said = found[place] = {}
            said["default"] = decode(timeline, ids[tokens:], generated, f"{label} | default budget")
            at_budget(timeline, SMALL_BUDGET)
            said["small"] = decode(timeline, ids[tokens:], generated, f"{label} | budget {SMALL_BUDGET}")
            said["full"] = decode(timeline, ids[tokens:], WARM_UP, f"{label} | full", sparse=False)
            tell(told_memory(job.loaded, timeline))
            del timeline
            collect()
        equal = {way: found["gpu"][way] == found["host"][way] for way in found["gpu"]}
        tell(f"| {tokens:,} | equal tokens | {equal} |")


def loss(loaded: LoadedModel, text: Path, lengths: Sequence[int], scored: int) -> None:
    """KL of keys and values in fewer bits, over the tokens after each length."""
    files = loaded.files
    ids = text_document(text, files.texts or files.directory, max(lengths) + scored + 1).ids
    kinds: tuple[tuple[str, CacheDType, int | None], ...] = (
        ("16 bits", "auto", None),
        ("16 bits, in other chunks", "auto", OTHER_CHUNK),
        ("int8", "int8", None),
        ("int4", "int4", None),
    )
    for tokens in lengths:
        fed = ids[tokens : tokens + scored]
        targets = torch.from_numpy(ids[tokens + 1 : tokens + scored + 1].astype(np.int64))
        exact: dict[bool, Tensor] = {}
        for label, kept, chunk in kinds:
            settings = AttentionSettings("adamas", budget_by_context=True, cache_dtype=kept)
            timeline = Timeline(loaded, settings, context=tokens + scored, prefill_chunk=chunk)
            for _ in timeline.read(ids[:tokens]):
                pass
            for sparse in (False, True):
                logits = timeline.score(fed, sparse=sparse).float().cpu()
                found = diverge(exact.setdefault(sparse, logits), logits, targets)
                low, high = interval(found.kl)
                way = "default budget" if sparse else "full attention"
                tell(
                    f"| {tokens:,} | {label} | {way} | KL {found.kl.mean():.5f} ({low:.5f} to {high:.5f}) "
                    f"| same token {found.same.mean():.1%} | perplexity ratio {found.perplexity_ratio:.4f} |"
                )
            del timeline
            collect()


def llama(file: Path, lengths: Sequence[int], tokens: int, generated: int) -> None:
    """llama.cpp with its layers on the GPU and keys and values in host memory."""
    script = Path(sys.modules[run_child.__module__].__file__ or "").with_name("llama_child.py")
    longest = max(lengths) + generated + 1
    job = {
        "ids": random_document(10_000, longest).ids.tolist(),
        "lengths": sorted(lengths),
        "generated": generated,
        "repeats": 1,
        "threads": os.cpu_count(),
        "gguf": str(file),
        "gpu_layers": -1,
        "host_cache": True,
    }
    steps: list[tuple[int, float]] = []
    for row in run_child(LLAMA, [llama_python(), str(script)], job, dict(os.environ)):
        seconds, count = min(row["seconds"]), row["generated"] or row["length"]
        what = "decode" if row["generated"] else "read"
        tell(f"| llama.cpp, {what} | {row['length']:,} | {count / seconds:,.2f} tokens/s |")
        if row["generated"]:
            steps.append((row["length"], seconds / count))
    if len(steps) > 1:
        slope, base = np.polyfit(*zip(*steps, strict=True), 1)
        tell(f"| llama.cpp, decode, by a line | {tokens:,} | {1 / (base + slope * tokens):.2f} tokens/s |")


def limited(size: float) -> None:
    """Let torch take at most this many bytes of the GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)


def made(options: argparse.Namespace, context: int) -> LoadedModel:
    """The model to measure: of a file, or of a shape with random weights."""
    begin = time.perf_counter()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if options.widened is not None:
        loaded = load_widened(options.widened, options.shape, context, dtype=torch.bfloat16, device=device)
    elif options.model is not None:
        found = resolve(str(options.model), offline=True, progress=Silent())
        loaded = load(found, progress=Silent())
    else:
        loaded = load_shape(
            options.shape, context, dtype=torch.bfloat16, device=device, in_bytes=None, progress=Silent()
        )
    name = options.model or loaded.files.name
    tell(f"{name} on {loaded.device}, {loaded.dtype}: {time.perf_counter() - begin:.1f} s")
    return loaded


def numbers(text: str | None, default: str) -> Iterator[int]:
    return map(int, (text or default).split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--small-card", type=Path, metavar="FILE")
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--loss", type=Path, nargs=2, metavar=("FILE", "TEXT"))
    parser.add_argument("--llama", type=Path, metavar="FILE")
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--widened", type=Path, metavar="FILE")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--lengths")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--kept", choices=("auto", "16", "int8", "int4"))
    parser.add_argument("--bytes", type=float, default=12e9, help="of the GPU, besides its context")
    parser.add_argument("-n", "--generated", type=int, default=32)
    parser.add_argument(PROFILED, action="store_true")
    parser.add_argument("--scored", type=int, default=SCORED)
    options = parser.parse_args()

    def job(context: int) -> Job:
        return Job(made(options, context), options.share, options.chunk, options.text)

    runs: list[Callable[[], None]] = []
    if options.million:
        tokens = options.tokens or 1_000_000
        runs.append(
            lambda: read_and_decode(
                job(2 * tokens), tokens, "host", options.kept or "int8", options.generated
            )
        )
    if options.small_card is not None:
        limited(options.bytes)
        options.model = options.small_card
        options.chunk = options.chunk or SMALL_CHUNK
        tokens = options.tokens or 131_072
        runs.append(
            lambda: read_and_decode(
                job(2 * tokens), tokens, "auto", options.kept or "auto", options.generated
            )
        )
    if options.beside:
        lengths = list(numbers(options.lengths, "32768,131072"))
        runs.append(lambda: beside(job(2 * max(lengths)), lengths, options.kept or "auto", options.generated))
    if options.loss is not None:
        options.model, text = options.loss
        lengths = list(numbers(options.lengths, "16384,30000"))
        runs.append(lambda: loss(made(options, 0), text, lengths, options.scored))
    if options.llama is not None:
        lengths = list(numbers(options.lengths, "4096,8192,16384"))
        runs.append(partial(llama, options.llama, lengths, options.tokens or 131_072, options.generated))
    if len(runs) != 1:
        parser.error("give one of --million, --small-card, --beside, --loss, --llama")
    runs[0]()


if __name__ == "__main__":
    main()
