"""What attention in 16-bit integers loses while a CPU reads, beside float32 products of the same rows.

    ADAMAS_CPU=avx2 python docs/measure_shorts.py TEXT [-m MODEL] [--len 2048,8192] [--scored 256]

Reads a text to each length and scores the tokens after it, with keys and values in 16 bits, once multiplied
in float32 and once as integers. Prints a Markdown row for each: the time to read both ways, the ratio of
perplexities, the mean and the largest KL divergence (nats) of the predictions, and how often the likeliest
token is the same.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from adamas_kernels.cpu import prefill, reading
from adamas_kernels.cpu.tile import Form, Singles
from torch import Tensor

from adamas_cli import models
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models import LoadedModel
from adamas_cli.progress import Silent
from adamas_cli.prompt.tokens import Tokenizer


def in_floats(kind: object, kept: object) -> Form:
    """`tile.form_of` without integers."""
    return Singles()


def scored(loaded: LoadedModel, ids: np.ndarray, length: int) -> tuple[float, Tensor]:
    """Seconds to read the first tokens, and log-probabilities after each of the others, [n, vocabulary]."""
    timeline = Timeline(loaded, AttentionSettings("full", cache_dtype="16"), context=len(ids) + 1)
    start = time.perf_counter()
    list(timeline.read(ids[:length]))
    seconds = time.perf_counter() - start
    return seconds, timeline.score(ids[length:], sparse=False).float().log_softmax(-1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("-m", "--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--len", default="2048,8192")
    parser.add_argument("--scored", type=int, default=256)
    chosen = parser.parse_args()
    loaded = models.load(models.resolve(chosen.model, offline=False, progress=Silent()), progress=Silent())
    ids = Tokenizer.of(loaded.files).encode(chosen.text.read_text("utf-8"))
    print("| tokens | read in float32, s | in integers, s | perplexity ratio | KL | largest | same token |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for length in map(int, chosen.len.split(",")):
        part = ids[: length + chosen.scored]
        integers, found = scored(loaded, part, length)
        with patch.object(prefill, "form_of", in_floats), patch.object(reading, "form_of", in_floats):
            floats, expected = scored(loaded, part, length)
        divergence = (expected.exp() * (expected - found)).sum(-1)
        said = torch.from_numpy(part[length + 1 :].astype(np.int64)).unsqueeze(1)
        losses = [-x[:-1].gather(1, said).mean().item() for x in (expected, found)]
        same = (expected.argmax(-1) == found.argmax(-1)).double().mean().item()
        print(
            f"| {length:,} | {floats:.1f} | {integers:.1f} | {np.exp(losses[1] - losses[0]):.5f} "
            f"| {divergence.mean().item():.1e} | {divergence.max().item():.1e} | {same:.1%} |"
        )


if __name__ == "__main__":
    main()
