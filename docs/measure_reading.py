"""Measures walking, reading and tokenizing a repository or any documents, for docs/performance.md.

    python docs/measure_reading.py MODEL_DIRECTORY SOURCE [SOURCE ...]

Prints a Markdown row for each source, measured in a process of its own: seconds of wall clock and of CPU
time, which other work on the machine changes less, and the peak memory of the process.
"""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path


def measure(directory: Path, source: str) -> str:
    """One table row: walk, read, tokenize, and their sum."""
    from adamas_cli.documents import Selection, collect
    from adamas_cli.progress import Silent
    from adamas_cli.prompt.tokens import Tokenizer

    tokenizer = Tokenizer.from_directory(directory)
    marks = [(time.perf_counter(), time.process_time())]

    def lap() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    found = collect([source], Selection(), stdin=io.BytesIO(), progress=Silent())
    lap()
    characters = sum(len(piece) for document in found.documents for piece in document.pieces())
    lap()
    tokens = 0
    tokenizer.expect(sum(document.characters for document in found.documents))
    for document in found.documents:
        tokens += sum(len(ids) for ids in tokenizer.stream(document.pieces()))
    lap()
    spent = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)]
    spent.append((sum(wall for wall, _ in spent), sum(cpu for _, cpu in spent)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = " | ".join(f"{wall:.2f} ({cpu:.2f})" for wall, cpu in spent)
    name = Path(source).name
    files = len(found.documents)
    return f"| {name} | {files:,} | {characters:,} | {tokens:,} | {times} | {peak:,.0f} MiB |"


def main(directory: str, *sources: str) -> None:
    """Print the table."""
    print(
        "| source | documents | characters | tokens | walk, s (CPU) | read | tokenize | all | peak memory |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for source in sources:
        subprocess.run([sys.executable, __file__, "--one", directory, source], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(measure(Path(sys.argv[2]), sys.argv[3]))
    elif len(sys.argv) < 3:
        sys.exit(__doc__)
    else:
        main(*sys.argv[1:])
