"""Memory does not grow with the text streamed through a tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizer_families import build, save

# Prints the growth of peak memory over the second part of the input, and the tokens in it.
PROGRAM = """
import resource, sys
from pathlib import Path
from pydoc_data.topics import topics
from adamas_cli.prompt import tokens
tokens.FAST_FROM = int(sys.argv[2])
tokenizer = tokens.Tokenizer.from_directory(Path(sys.argv[1]))
text = "\\n".join(topics.values())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
run = lambda times: sum(map(len, tokenizer.stream(text for _ in range(times))))
run(4)
before = peak()
tokens = run(int(sys.argv[3]))
print(peak() - before, tokens)
"""


@pytest.mark.parametrize(("family", "fast_from", "times"), [("qwen2", 0, 60), ("gemma", sys.maxsize, 12)])
def test_bounded(tmp_path: Path, family: str, fast_from: int, times: int) -> None:
    directory = save(build(family), tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(directory), str(fast_from), str(times)]
    grown, tokens = map(
        int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    )
    assert tokens > 100_000 * times  # all ids would take four bytes each, and the text as much
    assert grown < 8_000_000
