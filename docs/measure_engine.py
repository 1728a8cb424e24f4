"""Prefill and full-attention decode of the engine against transformers itself, both sides in one run.

    python docs/measure_engine.py TEXT [--model NAME] [--tokens 6000] [--answer 48] [--rounds 3]

Prints one Markdown row. Prefill: `Timeline.read` against a bare `model(input_ids)` over the same chunks with
transformers' own cache. Decode: tokens/s between the first and the last answer token, `--attn full` against
`model.generate`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache
from transformers.generation import BaseStreamer

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Done
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models import LoadedModel, load, resolve
from adamas_cli.planning.choice import PREFILL_CHUNK
from adamas_cli.progress import Silent
from adamas_cli.prompt.tokens import Tokenizer


class Stopwatch(BaseStreamer):
    """Records when `generate` emits each token; the first call carries the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def bare_prefill(loaded: LoadedModel, ids: torch.Tensor) -> float:
    """Seconds of plain forward passes in chunks."""
    cache = DynamicCache(config=loaded.model.config)
    start = time.perf_counter()
    with torch.no_grad():
        for chunk in ids.split(PREFILL_CHUNK["cpu"], dim=1):
            loaded.model(chunk, past_key_values=cache, logits_to_keep=1)
    return time.perf_counter() - start


def generate_rate(loaded: LoadedModel, ids: torch.Tensor, tokens: int) -> float:
    """Tokens/s of `generate` after its first token."""
    watch = Stopwatch()
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), streamer=watch, pad_token_id=0, **settings
    )
    answer = watch.times[1:]
    return (len(answer) - 1) / (answer[-1] - answer[0])


def engine_rates(loaded: LoadedModel, ids: np.ndarray, tokens: int) -> tuple[float, float]:
    """Seconds of prefill for all but the last token, and tokens/s of decoding."""
    timeline = Timeline(loaded, AttentionSettings("full"), context=len(ids) + tokens)
    start = time.perf_counter()
    for _ in timeline.read(ids[:-1]):
        pass
    prefill = time.perf_counter() - start
    done = list(timeline.answer(ids[-1:], Sampling(), tokens, stop_ids=()))[-1]
    assert isinstance(done, Done)
    return prefill, (done.completion_tokens - 1) / done.decode_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--answer", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    files = resolve(options.model, offline=False, progress=Silent())
    loaded = load(files, dtype=options.dtype, progress=Silent())
    text = options.text.read_text("utf-8")
    ids = Tokenizer.from_directory(files.directory).encode(text)[: options.tokens]
    tensor = torch.from_numpy(ids.astype(np.int64)).unsqueeze(0).to(loaded.device)

    bare_prefill(loaded, tensor[:, :256])  # warm up
    engine_rates(loaded, ids[:256], 4)
    rows: list[tuple[float, ...]] = []
    for _ in range(options.rounds):
        prefill, decode = engine_rates(loaded, ids, options.answer)
        rows.append((len(ids) / bare_prefill(loaded, tensor), len(ids) / prefill))
        rows[-1] += (generate_rate(loaded, tensor, options.answer), decode)
    bare, ours, generate, decode = (statistics.median(column) for column in zip(*rows, strict=True))
    dtype = str(loaded.dtype).removeprefix("torch.")
    prefill_ratio = statistics.median(row[1] / row[0] for row in rows)
    decode_ratio = statistics.median(row[3] / row[2] for row in rows)
    print("| model | tokens | prefill: bare forward | adamas | ratio | decode: generate | adamas | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {files.name}, {dtype} | {len(ids):,} | {bare:.1f} | {ours:.1f} | {prefill_ratio:.2f} "
        f"| {generate:.2f} | {decode:.2f} | {decode_ratio:.2f} |"
    )


if __name__ == "__main__":
    main()
