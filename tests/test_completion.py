"""Completion in real shells: each is started, sources the script and gets a Tab."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pexpect
import pyte
import pytest
from test_cli import ADAMAS, environment, installed

BARE = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}
BEFORE = {"bash": "", "zsh": "autoload -Uz compinit; compinit -u -D; ", "fish": ""}
COLUMNS, LINES, PATIENCE = 120, 40, 30.0


class Shell:
    """An interactive shell on a terminal, read from its screen as by a user."""

    def __init__(self, name: str, folder: Path) -> None:
        script = folder / f"adamas.{name}"
        script.write_bytes(installed("completion", name).stdout)
        path = os.pathsep.join([str(Path(ADAMAS).parent), os.environ["PATH"]])
        variables = environment(TERM="xterm", PATH=path, HOME=str(folder), PS1="> ")
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.Stream(self._screen)
        self._child = pexpect.spawn(
            name, BARE[name], env=variables, encoding="utf-8", dimensions=(LINES, COLUMNS), cwd=folder
        )
        self._child.sendline(f"{BEFORE[name]}source {script}; echo rea''dy")
        self.wait_for("ready")

    def type(self, text: str) -> None:
        self._child.send(text)

    def discard_line(self) -> None:
        self._child.sendcontrol("u")

    def wait_for(self, text: str) -> None:
        """Wait until the screen shows `text`."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(pexpect.TIMEOUT):
                self._stream.feed(self._child.read_nonblocking(1 << 14, 0.1))
            if any(text in line for line in self._screen.display):
                return
        pytest.fail(f"no {text!r} on the screen:\n" + "\n".join(filter(str.strip, self._screen.display)))

    def close(self) -> None:
        self._child.close(force=True)


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    """A missing shell fails the test: .ci/run installs all three."""
    (tmp_path / "a-novel.txt").write_text("Tobias Wren keeps the lighthouse.\n")
    started = Shell(request.param, tmp_path)
    try:
        yield started
    finally:
        started.close()


def test_commands_flags_values_and_files_are_completed(shell: Shell) -> None:
    for typed, completed in (
        ("adamas conf\t", "adamas config"),
        ("adamas cache inf\t", "adamas cache info"),
        ("adamas ask --on-over\t", "adamas ask --on-overflow"),
        ("adamas ask --scorer man\t", "adamas ask --scorer manhattan"),
        ("adamas ask -m smol\t", "adamas ask -m smollm2-135m"),
        ("adamas ask a-no\t", "adamas ask a-novel.txt"),
    ):
        shell.type(typed)
        shell.wait_for(completed)
        shell.discard_line()


def test_another_shell_is_refused() -> None:
    done = installed("completion", "csh")
    assert done.returncode == 2
    assert b"bash" in done.stderr


def test_completion_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom adamas_cli.cli import run\n"
        "try:\n    run([])\nexcept SystemExit:\n    print([*sys.modules])"
    )
    asking = {"_ADAMAS_COMPLETE": "complete_bash", "COMP_WORDS": "adamas ask --sco", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(**asking), check=True
    )
    offered, loaded = done.stdout.split("\n", 1)
    assert offered == "--scorer"
    assert "'adamas_cli.cli'" in loaded
    assert not {"'torch'", "'transformers'", "'numpy'", "'rich.live'"} & set(loaded.strip("[]\n").split(", "))
