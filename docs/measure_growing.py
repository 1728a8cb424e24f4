"""The cost when a conversation outgrows its cache: growing in place against copying.

    python docs/measure_growing.py [--shape llama-3.1-8b] [--len 32768] [--more 8192] [--rounds 3]

Reads random tokens into a cache reserved for this many, and then --more tokens, as `/add` in `adamas chat`
does; once in a cache that may be copied, and once in one that grows in place. Prints a Markdown row for each:
milliseconds until there is room for the second part, time from there to the first token of an answer, peak
allocation, and the GPU memory then unavailable to others, which includes what torch's allocator has freed
but keeps. Each is the least of the rounds.
"""

from __future__ import annotations

import argparse
import gc
import time

import numpy as np
import torch

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.peak import peak_memory
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.bench.shapes import load_shape
from adamas_cli.models import LoadedModel
from adamas_cli.models.device import choose_device, usual_products
from adamas_cli.progress import Silent

QUESTION, ANSWER = 20, 8  # tokens
WAYS = {"copied": 0, "in place": 1 << 17}  # the tokens that the cache may grow to in place


def grow(loaded: LoadedModel, ids: np.ndarray, length: int, limit: int) -> tuple[float, float, int, int]:
    """Seconds until there is room, seconds from there to the first token, and bytes: peak, taken."""
    if loaded.device.type == "cuda":
        torch.cuda.empty_cache()
    timeline = Timeline(
        loaded,
        AttentionSettings("adamas", budget_by_context=True),
        context=length + 2 * QUESTION,
        limit=limit,
    )
    list(timeline.read(ids[:length]))
    list(timeline.answer(ids[:QUESTION], Sampling(), ANSWER, stop_ids=()))
    if loaded.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(loaded.device)
    start = time.perf_counter()
    timeline.cache.make_room(len(ids) - length + QUESTION + ANSWER)
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    room = time.perf_counter()
    list(timeline.read(ids[length:]))
    answering = timeline.answer(ids[:QUESTION], Sampling(), ANSWER, stop_ids=())
    next(event for event in answering if isinstance(event, Token))
    first = time.perf_counter()
    answering.close()
    taken = 0
    if loaded.device.type == "cuda":
        free, there = torch.cuda.mem_get_info(loaded.device)
        taken = there - free
    return room - start, first - room, peak_memory(loaded.device), taken


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--len", type=int, default=32768)
    parser.add_argument("--more", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    device = choose_device(chosen.device)
    products = usual_products("auto", "auto", device, print)
    loaded = load_shape(
        chosen.shape,
        1 << 17,
        dtype=getattr(torch, products.dtype),
        device=device,
        in_bytes=products.in_bytes if device.type == "cpu" else None,
        progress=Silent(),
    )
    ids = np.random.default_rng(0).integers(0, 256, chosen.len + chosen.more).astype(np.int32)
    found: dict[str, list[tuple[float, float, int, int]]] = {way: [] for way in WAYS}
    for _ in range(chosen.rounds + 1):  # the first one warms up
        for way, limit in WAYS.items():
            found[way].append(grow(loaded, ids, chosen.len, limit))
            gc.collect()
    print("| cache | room, ms | to the first token, s | peak memory | taken |\n|---|---:|---:|---:|---:|")
    for way, rounds in found.items():
        room, first, peak, taken = (min(part) for part in zip(*rounds[1:], strict=True))
        print(f"| {way} | {room * 1e3:.1f} | {first:.3f} | {peak / 1e9:.2f} GB | {taken / 1e9:.2f} GB |")


if __name__ == "__main__":
    main()
