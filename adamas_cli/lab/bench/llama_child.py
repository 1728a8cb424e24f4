"""Measures llama.cpp in a separate process, with any Python that has llama-cpp-python.

Reads a job as JSON on stdin, prints a line of JSON for each measurement, and imports nothing from adamas.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

WARM_UP = 4  # tokens
ROOM = 64  # extra tokens at the end
STEP = 256  # n_ctx is a multiple of this
BATCH = 512
QUICK_SECONDS = 5.0  # seconds; longer prefills are not repeated


def peak_bytes() -> int:
    """Peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Read up to each length in order, and decode there; the tokens fed are those that follow in the text.
    host_cache: keys and values stay in host memory.
    """
    job: dict[str, Any] = json.load(sys.stdin)
    # This script's folder holds modules with common names, which llama_cpp must not import by mistake.
    sys.path[:] = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]
    from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]

    lengths, generated = job["lengths"], job["generated"]
    ids = job["ids"]
    model: Any = Llama(
        model_path=job["gguf"],
        n_ctx=-(-(lengths[-1] + generated + ROOM) // STEP) * STEP,
        n_threads=job["threads"],
        n_threads_batch=job["threads"],
        n_batch=BATCH,
        n_gpu_layers=job["gpu_layers"],
        offload_kqv=not job.get("host_cache", False),
        flash_attn=True,
        verbose=False,
    )

    def roll_back(length: int) -> None:
        model.n_tokens = length
        model._ctx.kv_cache_seq_rm(-1, length, -1)

    def decode(tokens: int, at: int) -> float:
        start = time.perf_counter()
        for token in ids[at : at + tokens]:
            model.eval([token])
        seconds = time.perf_counter() - start
        roll_back(at)
        return seconds

    def tell(length: int, generated: int, seconds: list[float]) -> None:
        row = {
            "length": length,
            "generated": generated,
            "seconds": seconds,
            "peak_memory_bytes": peak_bytes(),
        }
        print(json.dumps(row), flush=True)

    model.eval(ids[:ROOM])
    roll_back(0)
    done, reading = 0, 0.0
    for length in lengths:
        print(f"llama.cpp, {length:,} tokens", file=sys.stderr, flush=True)
        seconds: list[float] = []
        while not seconds or (len(seconds) < job["repeats"] and seconds[0] < QUICK_SECONDS):
            roll_back(done)
            start = time.perf_counter()
            model.eval(ids[done:length])
            seconds.append(time.perf_counter() - start)
        tell(length, 0, [reading + last for last in seconds])
        reading += sum(seconds) / len(seconds)
        done = length
        decode(WARM_UP, length)
        tell(length, generated, [decode(generated, length) for _ in range(job["repeats"])])


if __name__ == "__main__":
    main()
