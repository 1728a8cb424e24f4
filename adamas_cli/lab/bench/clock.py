"""The time of calls on a device, and the device's name and bandwidth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context

import torch
from torch import Tensor

CPU_SECONDS = 0.5  # of repeats for each figure
GPU_REPEATS = 30
LAUNCH_CYCLES = 72_000  # of a GPU, about 40 us: ample time for the host to launch one graph
LAUNCHES_AHEAD = 4  # launching a graph of all layers takes as long as this many
COPIED_BYTES = 1 << 28  # larger than any processor's cache


def microseconds(call: Callable[[], object], device: torch.device) -> float:
    """Median time of a call that does the same work each time, after a warm-up.

    On a GPU, the call is captured in a CUDA graph and replayed between two events, so that neither Python nor
    the launch is included.
    """
    if device.type == "cuda":
        return _graph_microseconds(call)
    for _ in range(2):
        call()
    times: list[float] = []
    while sum(times) < CPU_SECONDS or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def turn_microseconds(
    prepare: Callable[[int], None],
    calls: Sequence[Callable[[], object]],
    rounds: int,
    repeats: int,
    device: torch.device,
) -> Tensor:
    """Time of each call in each round, float64 [calls, rounds]: the median of `repeats` passes through all
    rounds, after one warm-up pass.

    Within a round the calls alternate, so that none finds its data in the processor's cache. `prepare` gets
    the round's number before each round and is not timed. On a GPU, each repeat of a call must do the same
    work, except for the values that it reads from GPU memory.
    """
    one_pass = _graph_pass(prepare, calls) if device.type == "cuda" else partial(_pass, prepare, calls)
    passes = [one_pass(rounds) for _ in range(repeats + 1)]
    return torch.stack(passes[1:]).quantile(0.5, 0)


def _pass(prepare: Callable[[int], None], calls: Sequence[Callable[[], object]], rounds: int) -> Tensor:
    """Microseconds of each call in each round, on a CPU."""
    times = torch.empty(len(calls), rounds, dtype=torch.float64)
    for number in range(rounds):
        prepare(number)
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            times[index, number] = time.perf_counter() - start
    return times * 1e6


def _graph_pass(
    prepare: Callable[[int], None], calls: Sequence[Callable[[], object]]
) -> Callable[[int], Tensor]:
    """The same on a GPU; the returned function can be called repeatedly.

    Every call is its own CUDA graph, and all of them together form one more. Events between the single graphs
    separate the calls but include the gaps between graphs; the combined graph has no gaps. The excess of the
    sum over the whole is subtracted from all calls equally.
    """
    prepare(0)
    for call in calls:
        call()
    graphs = [_captured(call) for call in calls]
    whole = _captured(lambda: [call() for call in calls])

    def one_pass(rounds: int) -> Tensor:
        times = torch.empty(len(calls), rounds, dtype=torch.float64)
        totals = torch.empty(rounds, dtype=torch.float64)
        for number in range(rounds):
            prepare(number)
            totals[number] = _between([whole])[0]
        for number in range(rounds):
            prepare(number)
            times[:, number] = torch.tensor(_between(graphs), dtype=torch.float64)
        return (times - (times.sum(0) - totals) / len(calls)).clamp(min=0)

    return one_pass


def _graph_microseconds(call: Callable[[], object]) -> float:
    for _ in range(3):
        call()
    graph = _captured(call)
    return statistics.median([_between([graph])[0] for _ in range(GPU_REPEATS + 3)][3:])


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The launches of a call, which must have run before, as a CUDA graph."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _between(graphs: Sequence[torch.cuda.CUDAGraph]) -> list[float]:
    """Microseconds of each graph, replayed one after another.

    The GPU waits until the host has launched them all, so that launch time is not included.
    """
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(graphs) + 1)]
    torch.cuda._sleep(LAUNCH_CYCLES * (len(graphs) + LAUNCHES_AHEAD))
    events[0].record()
    for graph, event in zip(graphs, events[1:], strict=True):
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in pairwise(events)]


def copy_bandwidth_apart(device: torch.device) -> float:
    """`copy_bandwidth` in a separate process, so that its buffers do not count in this one's peak memory."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    ) as pool:
        return pool.submit(copy_bandwidth, device).result()


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read plus written, when copying one large buffer to another."""
    source = torch.ones(COPIED_BYTES // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / (microseconds(lambda: target.copy_(source), device) * 1e-6)
