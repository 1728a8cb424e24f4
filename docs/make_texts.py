"""Write the texts of docs/accuracy.md beside a novel: a manual and code out of CPython, and prose then code.

python docs/make_texts.py pride_and_prejudice.txt FOLDER [--long emma.txt northanger_abbey.txt]

With --long: also the chapters that docs/examples/long-questions.jsonl asks about, and the questions.
"""

from __future__ import annotations

import argparse
import asyncio.base_events
import dataclasses
import inspect
import pathlib
import re
import shutil
import tarfile
import typing
from pathlib import Path
from pydoc_data.topics import topics

MODULES = (argparse, dataclasses, tarfile, typing, pathlib, asyncio.base_events)
CHAPTERS = (14, 8, 7)  # of Pride and Prejudice, Emma and Northanger Abbey, 16K to 29K tokens
QUESTIONS = Path(__file__).parent / "examples" / "long-questions.jsonl"
PROSE = 9000  # characters of the novel, about 2,200 tokens, before the code begins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("novel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--long", nargs=2, type=Path, default=())
    options = parser.parse_args()
    manual = "\n\n".join(topics[name] for name in sorted(topics))
    code = "\n\n".join(inspect.getsource(module) for module in MODULES)
    mixed = options.novel.read_text(encoding="utf-8")[:PROSE] + code
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("manual.txt", manual), ("code.py", code), ("mixed.txt", mixed)):
        (options.folder / name).write_text(text, encoding="utf-8")
    if options.long:
        for novel, chapters in zip((options.novel, *options.long), CHAPTERS, strict=True):
            name = f"{novel.stem.replace('_', '-')}-1-{chapters}.txt"
            text = first_chapters(novel.read_text(encoding="utf-8-sig"), chapters)
            (options.folder / name).write_text(text, encoding="utf-8")
        shutil.copy(QUESTIONS, options.folder)


def first_chapters(novel: str, count: int) -> str:
    """The text before the chapter after this many."""
    return novel[: [head.start() for head in re.finditer(r"(?i)chapter [ivxl0-9]+", novel)][count]]


if __name__ == "__main__":
    main()
