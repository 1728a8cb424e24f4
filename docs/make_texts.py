"""Write the texts of docs/accuracy.md beside a novel: a manual and code out of CPython, and prose then code.

python docs/make_texts.py pride_and_prejudice.txt FOLDER
"""

from __future__ import annotations

import argparse
import asyncio.base_events
import dataclasses
import inspect
import pathlib
import tarfile
import typing
from pathlib import Path
from pydoc_data.topics import topics

MODULES = (argparse, dataclasses, tarfile, typing, pathlib, asyncio.base_events)
PROSE = 9000  # characters of the novel, some 2,200 tokens, before the code begins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("novel", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    manual = "\n\n".join(topics[name] for name in sorted(topics))
    code = "\n\n".join(inspect.getsource(module) for module in MODULES)
    mixed = options.novel.read_text(encoding="utf-8")[:PROSE] + code
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("manual.txt", manual), ("code.py", code), ("mixed.txt", mixed)):
        (options.folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
