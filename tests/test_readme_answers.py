"""The default model's answers in the manual, against its actual answers."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pytest
from test_docs import BIN, PAGES, ROOT

from adamas_cli.models import ModelFiles, resolve
from adamas_cli.progress import Silent

MODEL = "qwen2.5-coder-0.5b"


@dataclass
class Shown:
    """A command of a block marked `answers`, its working folder, and the lines shown below it."""

    command: str
    folder: Path
    lines: list[str] = field(default_factory=list)


def shown() -> list[Shown]:
    found: list[Shown] = []
    manual = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for block in re.findall(r"^```console answers\n(.*?)^```$", manual, re.DOTALL | re.MULTILINE):
        folder = ROOT
        for line in block.splitlines():
            if line.startswith("$ cd "):
                folder = ROOT / line.removeprefix("$ cd ")
            elif line.startswith("$ "):
                found.append(Shown(line.removeprefix("$ "), folder))
            else:
                found[-1].lines.append(line)
    return found


def share_of(line: str) -> str | None:
    """The percentage that a line about a passage begins with."""
    found = re.match(r" *\d+%", line)
    return found and found.group()


def essential(text: str) -> list[str]:
    """Without lines that are printed once per machine, and with each percentage replaced by a placeholder.
    Passages with the same percentage may change places: a CPU's rounding decides between them.
    """
    lines = (line.rstrip() for line in text.splitlines() if not line.startswith("compiling"))
    found: list[str] = []
    for share, group in groupby(lines, share_of):
        together = list(group)
        found += together if share is None else sorted(line.replace(share, "N%", 1) for line in together)
    return found


@pytest.fixture(scope="module")
def default_model() -> ModelFiles:
    """Fetched into the user's cache if it is not there."""
    return resolve(MODEL, offline=False, progress=Silent())


@pytest.mark.timeout(900)
def test_the_answers_are_those_of_the_default_model(default_model: ModelFiles, tmp_path: Path) -> None:
    """One test, because the commands share what was read, and later ones report how much."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADAMAS_")}
    environment |= {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "ADAMAS_MODEL": MODEL,
        "ADAMAS_PRODUCTS": "features",
        "ADAMAS_CONFIG": str(tmp_path / "config.toml"),
        "ADAMAS_DOC_CACHE": str(tmp_path / "documents"),
    }
    examples = shown()
    assert {example.command.split("adamas ", 1)[1].split()[0] for example in examples} >= {
        "ask",
        "chat",
        "summarize",
    }
    for example in examples:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", example.command],
            capture_output=True,
            text=True,
            cwd=example.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        assert essential(done.stdout) == essential("\n".join(example.lines)), example.command
