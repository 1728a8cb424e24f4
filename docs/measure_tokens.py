"""Measures tokenization for docs/performance.md: both paths over real texts, and a long stream.

    python docs/measure_tokens.py MODEL_DIRECTORY TEXT [TEXT ...] [--stream-mb 200]

Prints Markdown. Fails if a path's ids differ from those that the model's tokenizer gives for the whole text
at once. Seconds are of CPU time, so that other work on the machine counts little. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import tokenizers

from adamas_cli.prompt import tokens
from adamas_cli.prompt.tokens import Tokenizer

Result = TypeVar("Result")

ROUNDS = 5  # the best of these counts: other work on the machine only ever slows a round down


def timed(work: Callable[[], Result], rounds: int = 1) -> tuple[Result, float]:
    """What `work` returns and the CPU seconds of its fastest round."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return result, best


def measure_text(tokenizer: Tokenizer, directory: Path, path: Path) -> str:
    """One table row: tokens/s of the model's tokenizer and of the fast path; SystemExit if the ids differ."""
    text = path.read_text(encoding="utf-8")
    whole = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    want = whole.encode(text, add_special_tokens=False).ids
    rates = []
    for fast_from in (sys.maxsize, 0):
        tokens.FAST_FROM = fast_from
        ids, seconds = timed(lambda: tokenizer.encode(text), ROUNDS)
        if ids.tolist() != want:
            raise SystemExit(f"{path}: not the ids of the model's tokenizer")
        rates.append(len(ids) / seconds)
    own, fast = rates
    return (
        f"| {directory.name} | {path.name} | {len(want):,} | {own:,.0f} | {fast:,.0f} | {fast / own:.1f}x |"
    )


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure_stream(tokenizer: Tokenizer, text: str, megabytes: int) -> str:
    """One line: the rate over a stream of `megabytes` (of characters), and how far memory rose meanwhile."""
    before = highest = resident_mib()
    count = 0
    start = time.process_time()
    for ids in tokenizer.stream(text for _ in range(megabytes * 1_000_000 // len(text))):
        count += len(ids)
        highest = max(highest, resident_mib())
    rate = count / (time.process_time() - start)
    return (
        f"A stream of {megabytes} MB: {count:,} tokens, {rate:,.0f} tokens/s, "
        f"at most {highest - before:.0f} MiB more than before it."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--stream-mb", type=int, default=200)
    arguments = parser.parse_args()

    versions = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "tiktoken", "numpy"))
    print(f"Python {platform.python_version()}, {versions}\n")
    _, loaded = timed(lambda: Tokenizer.from_directory(arguments.directory), ROUNDS)
    tokenizer = Tokenizer.from_directory(arguments.directory)
    fast, built = timed(lambda: tokenizer.fast)
    print(f"Loading {loaded:.2f} s, building the fast path {built:.2f} s. {tokenizer.reason}\n")
    print("| tokenizer | text | tokens | its own, tokens/s | tiktoken, tokens/s | gain |")
    print("|---|---|---:|---:|---:|---:|")
    for path in arguments.text:
        print(measure_text(tokenizer, arguments.directory, path), flush=True)
    if fast and arguments.stream_mb:
        print(
            "\n"
            + measure_stream(tokenizer, arguments.text[0].read_text(encoding="utf-8"), arguments.stream_mb)
        )


if __name__ == "__main__":
    main()
