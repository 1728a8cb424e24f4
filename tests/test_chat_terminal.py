"""`adamas chat` as its user sees it: the installed command on a pseudo-terminal, through an emulator."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest
from test_cli import ADAMAS, environment

from adamas_cli.errors import INTERRUPTED

SECONDS = 30  # on a busy machine


class Screen:
    """A chat and its terminal."""

    def __init__(self, program: str, *arguments: str, cwd: Path, state: Path) -> None:
        self._screen = pyte.HistoryScreen(100, 40, history=5000)
        self._stream = pyte.ByteStream(self._screen)
        env = environment(TERM="xterm-256color", XDG_STATE_HOME=str(state), PROMPT_TOOLKIT_NO_CPR="1")
        self.process = pexpect.spawn(program, list(arguments), cwd=cwd, env=env, dimensions=(40, 100))

    @property
    def lines(self) -> list[str]:
        """The screen's contents, without the blank rows at the bottom."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    def wait(self, until: Callable[[], bool]) -> None:
        """Process output until the condition holds."""
        deadline = time.monotonic() + SECONDS
        while not until():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            self._feed()

    def wait_for(self, text: str) -> None:
        self.wait(lambda: any(text in line for line in self.lines))

    def wait_for_prompt(self) -> None:
        self.wait(lambda: self.lines[-1] == ">")

    def send(self, text: str) -> None:
        self.process.send(text)

    def complete(self, line: str, completed: str) -> None:
        """Type the beginning of a line, complete it with Tab and enter it."""
        self.wait_for_prompt()
        self.send(line + "\t")
        self.wait(lambda: self.lines[-1] == f"> {completed}")
        self.send("\r")

    def end(self) -> int:
        """The exit code, once the chat has ended."""
        deadline = time.monotonic() + SECONDS
        while self.process.isalive() and time.monotonic() < deadline:
            self._feed()
        self._feed()
        self.process.close()
        return self.process.exitstatus

    def _feed(self) -> None:
        try:
            self._stream.feed(self.process.read_nonblocking(65536, 0.1))
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            time.sleep(0.05)


@pytest.fixture
def started(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    """Starts chats about a book; none outlives the test."""
    (tmp_path / "book.txt").write_text("Mr. Bingley has taken Netherfield Park.\n" * 4)
    (tmp_path / "parrots.txt").write_text("Mr. Collins owns seven parrots.\n")
    screens = []

    def start(*options: str) -> Screen:
        arguments = ("chat", "book.txt", "-m", str(tiny_model), "--no-usage", *options)
        screens.append(Screen(ADAMAS, *arguments, cwd=tmp_path, state=tmp_path / "state"))
        return screens[-1]

    yield start
    for screen in screens:
        screen.process.close(force=True)


def test_lines_are_edited_completed_and_remembered(started, tmp_path):
    screen = started("-n", "6")
    screen.complete("/tok", "/tokens")
    screen.wait_for("documents 2")
    screen.complete("/add par", "/add parrots.txt")
    screen.wait_for("added parrots.txt: ")
    screen.complete("/drop boo", "/drop book.txt")
    screen.wait_for("dropped book.txt, ")
    screen.wait_for_prompt()
    screen.send("\x12tok")  # Ctrl-R
    screen.wait(lambda: screen.lines[-1].startswith("(reverse-i-search)`tok'"))
    screen.send("\r")
    screen.wait(lambda: screen.lines[-1] == "> /tokens")
    screen.send("\r")
    screen.wait(lambda: sum("free" in line for line in screen.lines) == 2)
    screen.wait_for_prompt()
    screen.send("\x04")
    assert screen.end() == 0
    history = tmp_path / "state" / "adamas" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+/add parrots.txt\n" in history.read_text()
    again = started("-n", "6")
    again.wait_for_prompt()
    again.send("\x10")  # Ctrl-P
    again.wait_for("> /tokens")


def test_pasted_lines_are_one_question(started, tmp_path):
    screen = started("-n", "4", "-o", "talk.md")
    screen.wait_for_prompt()
    screen.send("\x1b[200~Who came?\nAnd why?\x1b[201~")
    screen.wait_for("And why?")
    screen.send("\r")
    screen.wait(lambda: (tmp_path / "talk.md").exists())
    screen.wait_for_prompt()
    screen.send("/exit\r")
    assert screen.end() == 0
    assert "## Who came?\n\nAnd why?\n" in (tmp_path / "talk.md").read_text()


def test_ctrl_c_stops_the_answer_and_not_the_chat(started, tmp_path):
    screen = started("-n", "3500", "-o", "talk.md", "--temp", "1", "--seed", "2", "--attn", "adamas")
    screen.wait_for_prompt()
    before = screen.lines
    screen.send("Who came?\r")
    screen.wait(lambda: len(screen.lines) > len(before) + 1 and "written" in screen.lines[-1])
    screen.send("typed ahead")  # the terminal must not echo it into the answer
    time.sleep(0.3)
    began = time.monotonic()
    screen.send("\x03")
    screen.wait_for("stopped")
    assert time.monotonic() - began < 3  # one second, or more on a busy machine
    screen.wait_for_prompt()
    assert not any("typed ahead" in line for line in screen.lines)
    screen.send("/tokens\r")
    screen.wait_for("free")
    conversation = next(line for line in screen.lines if "free" in line).split(" · ")[1]
    assert int(conversation.split()[1].replace(",", "")) > 40  # the stopped answer is part of it
    screen.wait_for_prompt()
    screen.send("\x04")
    assert screen.end() == 0
    assert (tmp_path / "talk.md").read_text().endswith("\n\n*(stopped)*\n")


def test_ctrl_c_at_the_prompt(started):
    screen = started()
    screen.wait_for_prompt()
    screen.send("half a line\x03")
    screen.wait(lambda: screen.lines[-2:] == ["> half a line", ">"])
    screen.send("\x03")
    screen.wait_for("Ctrl-D or another Ctrl-C leaves the chat")
    screen.wait_for_prompt()
    screen.send("\x03")
    assert screen.end() == INTERRUPTED


def test_a_mistake_is_told_and_the_chat_goes_on(started):
    screen = started("-n", "4")
    screen.wait_for_prompt()
    screen.send("/tokns\r")
    screen.wait_for("adamas: unknown command /tokns; did you mean /tokens?")
    screen.wait_for_prompt()
    screen.send("/save book.txt\r")
    screen.wait_for("adamas: book.txt exists; /save! book.txt overwrites it")
    screen.wait_for_prompt()
    screen.send("\x04")
    assert screen.end() == 0


def test_a_document_from_a_pipe_leaves_the_terminal_for_questions(tiny_model, tmp_path):
    command = f"echo Anna came. | {ADAMAS} chat - -m {tiny_model} -n 4 --json > turns.jsonl"
    screen = Screen("bash", "-c", command, cwd=tmp_path, state=tmp_path)
    screen.wait_for_prompt()
    screen.send("Who came?\r")
    screen.wait(lambda: (tmp_path / "turns.jsonl").stat().st_size > 0)
    screen.wait_for_prompt()
    screen.send("\x04")
    assert screen.end() == 0
    (turn,) = (tmp_path / "turns.jsonl").read_text().splitlines()
    assert json.loads(turn)["documents"][0]["path"] == "stdin"
