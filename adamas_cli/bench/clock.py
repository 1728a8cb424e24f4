"""How long calls take on a device, and what that device is."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

CPU_SECONDS = 0.5  # of repeats for a figure
GPU_REPEATS = 30
COPIED_BYTES = 1 << 28  # more than any processor's own cache


def microseconds(call: Callable[[], object], device: torch.device) -> float:
    """Median time of a call that does the same work each time, warmed up.

    On a GPU the call is captured in a CUDA graph and replayed between two events, so that neither Python nor
    launching counts.
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


def _graph_microseconds(call: Callable[[], object]) -> float:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for repeat in range(GPU_REPEATS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if repeat >= 3:
            times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_bandwidth_apart(device: torch.device) -> float:
    """`copy_bandwidth` in a process of its own: its buffers do not count in the peak memory of this one."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    ) as pool:
        return pool.submit(copy_bandwidth, device).result()


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying one large buffer to another."""
    source = torch.ones(COPIED_BYTES // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / (microseconds(lambda: target.copy_(source), device) * 1e-6)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
