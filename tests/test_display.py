"""The display on a real pseudo-terminal, driven by scripted events and seen through a terminal emulator."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyte
import pytest

SCRIPT = """
import sys, time
from adamas_cli.session.answer import Text
from adamas_cli.terminal.display import Display
from adamas_cli.engine.events import Done, Prefill, Token

def token(index):
    return Token(7, index, 31204 + index, 128, 0.1 * index, 1_900_000_000)

def pieces(text, size=3):
    return [text[i : i + size] for i in range(0, len(text), size)]

def say(display, text, reasoning=False, pause=0.0):
    for index, piece in enumerate(pieces(text)):
        display.show(token(index))
        display.show(Text(piece, reasoning))
        time.sleep(pause)

def done(reason="stop"):
    return Done(reason, 6210, 0, 84, 34.0, 34.1, 7.5, 1_900_000_000)
"""


class Terminal:
    """A child process on a pseudo-terminal: its stderr, and its stdout unless that is redirected."""

    def __init__(
        self, body: str, *, columns: int = 80, rows: int = 24, stdout: Path | None = None, **env: str
    ):
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        self._stream = pyte.ByteStream(self.screen)
        self.bytes = b""
        self._master, slave = pty.openpty()
        self._set_size(columns, rows)
        environment = {
            k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        }
        out = stdout.open("wb") if stdout else None
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT + textwrap.dedent(body)],
            stdin=slave,
            stdout=out if out else slave,
            stderr=slave,
            env=environment | {"TERM": "xterm-256color"} | env,
            start_new_session=True,
        )
        os.close(slave)
        if out:
            out.close()

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)
        os.kill(self._process.pid, signal.SIGWINCH)

    def read(self, *, until: Callable[[], bool], seconds: float = 20.0) -> None:
        """Feed the screen until the condition holds; fails on timeout or if the process ends first."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "\n".join(self.lines())
            ready, _, _ = select.select([self._master], [], [], 0.05)
            if ready:
                try:
                    data = os.read(self._master, 65536)
                except OSError:  # Linux reports EIO when the last writer is gone
                    data = b""
                assert data, "the process ended early:\n" + "\n".join(self.lines())
                self.bytes += data
                self._stream.feed(data)

    def finish(self) -> None:
        """Read to the end and require success."""
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                break
            if not data:
                break
            self.bytes += data
            self._stream.feed(data)
        os.close(self._master)
        assert self._process.wait(10) == 0, "\n".join(self.lines())

    def shown(self, text: str) -> Callable[[], bool]:
        return lambda: any(text in line for line in self.screen.display)

    def lines(self) -> list[str]:
        """All lines, beginning with those that scrolled away, without trailing blanks."""
        history = [
            "".join(row[column].data for column in sorted(row)).rstrip() for row in self.screen.history.top
        ]
        lines = history + [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


PREFILL = """
with Display(answers=sys.stdout, notes=sys.stderr) as display:
    for done_tokens in (0, 2048, 4096, 6210):
        left = (6210 - done_tokens) / 183
        display.show(Prefill(done_tokens, 6210, 0, done_tokens / 183, left, 2048))
        time.sleep(0.35)
    say(display, "Mr. Darcy is a **rich** man.")
    display.show(done())
"""


def test_the_bar_moves_and_gives_way_to_the_answer() -> None:
    terminal = Terminal(PREFILL)
    terminal.read(until=terminal.shown("32%"))
    bar = next(line for line in terminal.screen.display if "32%" in line)
    assert bar.startswith("reading ━")
    assert "183 tok/s" in bar
    assert "ETA 2" in bar
    assert "2,048 of 6,210 tokens" in bar
    terminal.read(until=terminal.shown("65%"))
    terminal.finish()
    lines = terminal.lines()
    assert lines[0] == "Mr. Darcy is a rich man."
    assert lines[1].startswith("read 6,210 tokens, reused 0 of 6,210 · answer 84 tokens · first token 34 s")
    assert not any("%" in line for line in lines)


def test_the_bar_fits_a_narrow_terminal() -> None:
    terminal = Terminal(PREFILL, columns=20)
    terminal.read(until=terminal.shown("65%"))
    assert sum(bool(line.strip()) for line in terminal.screen.display) == 1
    terminal.finish()
    assert [line for line in terminal.lines() if line][:2] == ["Mr. Darcy is a rich", "man."]


def test_a_status_line_tells_what_each_token_attends_to() -> None:
    terminal = Terminal(
        """
        with Display(answers=sys.stdout, notes=sys.stderr) as display:
            say(display, "One two three four five six seven.", pause=0.05)
            time.sleep(0.3)
            display.show(done())
        """
    )
    terminal.read(until=terminal.shown("128 of 31,215 tokens attended"))
    status = next(line for line in terminal.screen.display if "attended" in line)
    assert status.startswith("10 tok/s · 128 of 31,215 tokens attended · 12 written · 1.9 GB")
    terminal.finish()
    assert not any("attended" in line for line in terminal.lines())


def test_a_long_answer_is_printed_once() -> None:
    terminal = Terminal(
        """
        text = "".join(f"Paragraph {n} says **something** of its own.\\n\\n" for n in range(120))
        with Display(answers=sys.stdout, notes=sys.stderr, usage=False) as display:
            say(display, text, pause=0.0003)
            display.show(done())
        """
    )
    terminal.finish()
    expected = [line for n in range(120) for line in (f"Paragraph {n} says something of its own.", "")]
    assert terminal.lines() == expected[:-1]
    assert terminal.bytes.count(b"Paragraph 0 ") < 10  # once, and while it was the last one


def test_a_block_taller_than_the_screen_is_whole_in_the_end() -> None:
    terminal = Terminal(
        """
        text = "```\\n" + "".join(f"line {n}\\n" for n in range(60)) + "```\\n\\nAfter the code.\\n"
        with Display(answers=sys.stdout, notes=sys.stderr, usage=False) as display:
            say(display, text, pause=0.002)
            display.show(done())
        """,
        rows=10,
    )
    terminal.finish()
    assert terminal.lines() == [*(f"line {n}" for n in range(60)), "", "After the code."]


CHINESE = "达西先生是一位富有的绅士。他起初显得傲慢。" * 4


def test_wide_characters_wrap_within_the_screen() -> None:
    terminal = Terminal(
        f"""
        with Display(answers=sys.stdout, notes=sys.stderr, usage=False) as display:
            say(display, {CHINESE!r}, pause=0.01)
            display.show(done())
        """,
        columns=21,
    )
    terminal.finish()
    # pyte leaves an empty cell after each wide character
    assert "".join(line.strip() for line in terminal.lines()) == CHINESE


def test_a_resize_in_the_middle_keeps_the_answer() -> None:
    terminal = Terminal(
        """
        words = " ".join(f"word{n}" for n in range(30))
        with Display(answers=sys.stdout, notes=sys.stderr, usage=False) as display:
            say(display, "First paragraph.\\n\\n" + words[:100])
            time.sleep(1.5)
            say(display, words[100:] + "\\n\\nLast paragraph.")
            display.show(done())
        """,
        columns=60,
    )
    terminal.read(until=terminal.shown("word9"))
    terminal.resize(40, 20)
    terminal.finish()
    text = " ".join(terminal.lines())
    assert re.findall(r"word\d+", text)[-30:] == [f"word{n}" for n in range(30)]
    assert text.count("First paragraph.") == 1
    assert text.count("Last paragraph.") == 1


def test_reasoning_is_shown_beside_the_answer_but_not_in_it(tmp_path: Path) -> None:
    body = """
        with Display(answers=sys.stdout, notes=sys.stderr, usage=False) as display:
            say(display, "Let me think.\\nHe is rich.", reasoning=True)
            say(display, "Mr. Darcy.")
            display.show(done())
        """
    terminal = Terminal(body, stdout=tmp_path / "answer")
    terminal.finish()
    assert terminal.lines() == ["Let me think.", "He is rich."]
    assert (tmp_path / "answer").read_bytes() == b"Mr. Darcy.\n"
    hidden = Terminal(body.replace("usage=False", "usage=False, reasoning=False"))
    hidden.finish()
    assert hidden.lines() == ["Mr. Darcy."]


def test_tasks_and_notes_share_the_terminal() -> None:
    terminal = Terminal(
        """
        with Display(answers=sys.stdout, notes=sys.stderr) as display:
            with display.task("loading \\x1b[31mtiny.gguf", 491_400_064, "bytes") as advance:
                advance(122_850_016)
                time.sleep(0.3)
                display.note("skipped 14: 9 binary, 5 unreadable")
                time.sleep(0.4)
        """
    )
    terminal.read(until=terminal.shown("skipped 14"))
    terminal.read(until=terminal.shown("25%"))
    first, second = [line.rstrip() for line in terminal.screen.display if line.strip()]
    assert first == "skipped 14: 9 binary, 5 unreadable"
    assert second.startswith("loading tiny.gguf ━")
    assert "123 MB of 491 MB" in second
    terminal.finish()
    assert terminal.lines() == ["skipped 14: 9 binary, 5 unreadable"]


def test_a_dumb_terminal_gets_plain_text() -> None:
    terminal = Terminal(PREFILL, TERM="dumb")
    terminal.finish()
    assert terminal.bytes == b"Mr. Darcy is a **rich** man.\r\n"


def test_no_color_is_honoured() -> None:
    coloured = Terminal(PREFILL)
    coloured.finish()
    plain = Terminal(PREFILL, NO_COLOR="1")
    plain.finish()
    colour = re.compile(rb"\x1b\[[0-9;]*3\d[0-9;]*m")
    assert colour.search(coloured.bytes)
    assert not colour.search(plain.bytes)


def test_piped_output_is_the_model_s_own_text() -> None:
    body = PREFILL + "    say(display, 'A `code`\\n\\n\\n- list  \\n')\n    display.show(done())\n"
    done = subprocess.run([sys.executable, "-c", SCRIPT + body], capture_output=True, check=True)
    assert done.stdout == b"Mr. Darcy is a **rich** man.\n\nA `code`\n\n\n- list  \n"
    assert done.stderr == b""


PARTS = """
from adamas_cli.longdoc.events import Finished, Planned, Started, Working

with Display(answers=sys.stdout, notes=sys.stderr) as display:
    labels = tuple(f"novels/emma.txt:{n}00-{n}99" for n in range(1, 10))
    display.show(Planned(0, labels, (1000,) * 9, frozenset({0})))
    for n in range(1, 9):
        display.show(Started(n))
        display.show(Working(Prefill(450, 1000, 0, 1.0, 1.2, 450)))
        if n == 6:
            time.sleep(1.0)
        display.show(Finished(n, n != 5, 0, 120, 2.0, 3.0))
    display.show(Planned(1, ("novels/emma.txt:100-999",), (900,), frozenset()))
    display.show(Started(0))
    display.show(Working(Token(7, 41, 900, 128, 1.0, 0)))
    time.sleep(1.0)
    display.show(Finished(0, True, 0, 120, 2.0, 3.0))
    say(display, "Emma is handsome, clever and rich.")
    display.show(done())
"""


def test_a_tree_shows_how_far_a_reading_in_parts_is() -> None:
    terminal = Terminal(PARTS)
    terminal.read(until=terminal.shown("reading 45%"))
    rows = [line.rstrip() for line in terminal.screen.display if line.strip()]
    assert rows[0].startswith("parts ━")
    assert "ETA" in rows[0]
    assert "6 of 9" in rows[0]
    assert rows[1:] == [
        "├ 2 more finished",
        "├ novels/emma.txt:400-499 · ✓ · 1,000 tokens · 120 written · 5.0 s",
        "├ novels/emma.txt:500-599 · ✓ · 1,000 tokens · 120 written · 5.0 s",
        "├ novels/emma.txt:600-699 · ✓ · 1,000 tokens · knows nothing · 5.0 s",
        "├ novels/emma.txt:700-799 · reading 45%",
        "└ 2 waiting",
    ]
    terminal.read(until=terminal.shown("42 written"))
    rows = [line.rstrip() for line in terminal.screen.display if line.strip()]
    assert rows[0] == "parts 9 of 9 · 40 s"
    assert rows[1].startswith("merge 1 ")
    assert rows[2] == "└ novels/emma.txt:100-999 · 42 written"
    terminal.finish()
    assert terminal.lines()[:3] == [
        "parts 9 of 9 · 40 s",
        "merge 1 1 of 1 · 5.0 s",
        "Emma is handsome, clever and rich.",
    ]


def test_the_tree_fits_a_narrow_terminal() -> None:
    terminal = Terminal(PARTS, columns=30)
    terminal.read(until=terminal.shown("reading 45%"))
    rows = [line.rstrip() for line in terminal.screen.display if line.strip()]
    assert len(rows) == 7
    assert rows[5] == "├ ….txt:700-799 · reading 45%"
    terminal.finish()


def test_without_a_terminal_each_part_is_a_plain_line() -> None:
    script = SCRIPT + textwrap.dedent(PARTS).replace("time.sleep(1.0)", "pass")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "Emma is handsome, clever and rich.\n"
    told = done.stderr.splitlines()
    assert told[4] == "part 6 of 9: novels/emma.txt:600-699 · 1,000 tokens · knows nothing · 5.0 s"
    assert told[8] == "merge 1 1 of 1: novels/emma.txt:100-999 · 900 tokens · 120 written · 5.0 s"
    assert len(told) == 9


LIST = """
with Display(answers=sys.stdout, notes=sys.stderr, usage=False) as display:
    display.note("a note")
    say(display, "- first thing\\n- second **thing**\\n\\n| name | count |\\n|---|---|\\n| alpha | 11 |\\n")
    display.show(done())
"""


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 9, 19, 20, 21])
def test_nothing_of_an_answer_is_lost_on_a_narrow_terminal(columns: int) -> None:
    terminal = Terminal(LIST, columns=columns, rows=50)
    terminal.finish()
    shown = "".join("".join(terminal.lines()).split())
    assert "anote" in shown
    for word in ("firstthing", "second", "thing", "name", "count", "alpha", "11"):
        assert word in shown


@pytest.mark.parametrize("columns", [10, 19, 20, 40])
def test_a_table_keeps_its_cells_on_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from adamas_cli.terminal.table import print_table

    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    print_table(stream, ["NAME", "TOKENS"], [["a-long-name-of-a-model", "12,345"], ["b", "1"]])
    assert not Counter("NAMETOKENSa-long-name-of-a-model12,345b1") - Counter(stream.getvalue())


def test_notes_wait_for_the_end_of_a_line_of_an_answer_in_the_same_file() -> None:
    body = """
with Display(answers=sys.stdout, notes=sys.stderr) as display:
    display.note("reused 4 tokens")
    say(display, "Mr. ")
    display.note("compiling")
    say(display, "Darcy\\nis ")
    display.note("compiling more")
    say(display, "rich.")
    display.show(done())
"""
    command = [sys.executable, "-c", SCRIPT + body]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    assert done.stdout.decode() == "reused 4 tokens\nMr. Darcy\ncompiling\nis rich.\ncompiling more\n"
    apart = subprocess.run(command, capture_output=True, check=True)
    assert apart.stdout == b"Mr. Darcy\nis rich.\n"
    assert apart.stderr == b"reused 4 tokens\ncompiling\ncompiling more\n"
