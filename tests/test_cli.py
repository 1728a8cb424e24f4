"""The command line on a tiny random model: in this process, or installed where the process matters."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from adamas_cli.cli import run
from adamas_cli.commands.failures import CLOSED_PIPE
from adamas_cli.errors import INTERRUPTED

# Set by every run; named here so that they are restored.
LIBRARY_SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
}
NO_CONFIG = "/proc/adamas/config.toml"  # neither exists nor can be created
ADAMAS = str(Path(sys.executable).with_name("adamas"))


def environment(**changes: str) -> dict[str, str]:
    """The environment without variables that would change what the command does."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ADAMAS_", "HF_", "COLUMNS"))}
    own = {"ADAMAS_CONFIG": NO_CONFIG, "ADAMAS_NO_DOC_CACHE": "1", "ADAMAS_PRODUCTS": "features"}
    return inherited | own | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | changes


@dataclass(frozen=True)
class Result:
    """The results of one command line."""

    returncode: int
    stdout: bytes
    stderr: bytes

    @classmethod
    def of(cls, code: int, stdout: bytes, stderr: bytes) -> Result:
        """Leaves out lines that are printed only once per machine."""
        lines = stderr.splitlines(keepends=True)
        return cls(code, stdout, b"".join(line for line in lines if not line.startswith(b"compiling")))


class Runner(Protocol):
    """Runs one command line with bytes on stdin and a changed environment."""

    def __call__(self, *arguments: str | Path, stdin: bytes = b"", **changes: str) -> Result: ...


def installed(*arguments: str | Path, cwd: Path | None = None) -> Result:
    """Run the installed command in its own process."""
    done = subprocess.run(
        [ADAMAS, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=cwd,
        env=environment(),
    )
    return Result.of(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def adamas(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Runner:
    """Runs the command line in this process, which has already loaded torch."""

    def runner(*arguments: str | Path, stdin: bytes = b"", **changes: str) -> Result:
        with monkeypatch.context() as patch:
            for name in os.environ.keys() - environment().keys():
                patch.delenv(name)
            for name, value in (environment() | LIBRARY_SETTINGS | changes).items():
                patch.setenv(name, value)
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            capfdbinary.readouterr()
            with warnings.catch_warnings():
                code = run([str(argument) for argument in arguments])
            return Result.of(code, *capfdbinary.readouterr())

    return runner


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("Mr. Bingley has taken Netherfield Park.\n" * 4)
    return path


def test_the_answer_and_nothing_else_is_on_stdout(adamas: Runner, tiny_model: Path, book: Path) -> None:
    done = adamas("ask", book, "Who came?", "-m", tiny_model, "-n", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\n")
    again = adamas("ask", book, "Who came?", "-m", tiny_model, "-n", "5")
    assert again.stdout == done.stdout
    # The very first run also reports that it compiles.
    assert again.stderr == b"the answer was cut at --max-tokens\n"


def test_json_has_the_documented_names(adamas: Runner, tiny_model: Path, book: Path) -> None:
    done = adamas("ask", book, "Who came?", "-m", tiny_model, "-n", "5", "--json", "--attn", "adamas")
    record = json.loads(done.stdout)
    assert set(record) == {
        "question", "answer", "finish_reason", "usage", "timings", "drafts", "cache_dtype", "kv", "gpus",
        "model", "attention", "read", "blocks_computed", "documents", "apart", "truncated", "tokens_dropped",
    }  # fmt: skip
    assert (record["read"], record["blocks_computed"]) == ("dense", None)
    assert record["question"] == "Who came?"
    assert record["model"] == str(tiny_model)
    assert record["attention"] == {
        "kind": "adamas",
        "backend": "cpu",
        "scorer": "dot",
        "budget": 256,
        "error": None,
    }
    (document,) = record["documents"]
    assert document["path"] == str(book)
    assert document["tokens"] > book.stat().st_size  # one token per byte, and the wrapper
    assert record["truncated"] is False
    assert record["tokens_dropped"] == 0
    assert record["finish_reason"] in ("stop", "length")
    assert record["usage"]["completion_tokens"] <= 5
    assert record["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert set(record["timings"]) == {
        "load_s", "prefill_s", "ttft_s", "decode_s",
        "prefill_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes",
    }  # fmt: skip
    assert set(record["drafts"]) == {"proposed", "accepted", "tokens_per_pass"}


def test_several_questions_read_the_documents_once(adamas: Runner, tiny_model: Path, book: Path) -> None:
    questions = ("-q", "Who came?", "-q", "Where to?", "-q", "Who came?")
    first, second, again = json.loads(
        adamas("ask", book, *questions, "-m", tiny_model, "-n", "5", "--json").stdout
    )
    assert [first["question"], second["question"]] == ["Who came?", "Where to?"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= second["documents"][0]["tokens"]
    assert again["answer"] == first["answer"]
    plain = adamas("ask", book, *questions, "-m", tiny_model, "-n", "5", "--usage")
    assert plain.stderr.count(b"read ") == 3


def test_a_document_comes_from_stdin_and_paths_from_a_list(
    adamas: Runner, tiny_model: Path, book: Path
) -> None:
    options = ("-m", tiny_model, "-n", "3", "--json")
    piped = json.loads(adamas("ask", "-", "Who?", *options, stdin=book.read_bytes()).stdout)
    assert [document["path"] for document in piped["documents"]] == ["stdin"]
    listed = adamas("ask", "Who?", "--files-from", "-", "-0", *options, stdin=os.fsencode(book) + b"\0")
    assert [document["path"] for document in json.loads(listed.stdout)["documents"]] == [str(book)]


def test_skipped_files_are_counted_on_stderr(adamas: Runner, tiny_model: Path, book: Path) -> None:
    (book.parent / "image.png").write_bytes(b"\x89PNG\0\0")
    done = adamas("ask", book.parent, "Who?", "-m", tiny_model, "-n", "3")
    assert done.stderr == b"skipped 1: 1 binary\nthe answer was cut at --max-tokens\n"
    assert b"image.png" in adamas("ask", book.parent, "Who?", "-m", tiny_model, "-n", "3", "-v").stderr
    assert adamas("ask", book.parent, "Who?", "-m", tiny_model, "-n", "3", "--quiet").stderr == b""


def test_too_long_input_can_be_truncated_with_a_notice(adamas: Runner, tiny_model: Path, book: Path) -> None:
    book.write_text("A sentence about nothing. " * 1000)
    done = adamas("ask", book, "Who?", "-m", tiny_model, "-n", "8", "--json", "--on-overflow", "truncate")
    record = json.loads(done.stdout)
    assert record["truncated"] is True
    assert record["tokens_dropped"] > 20_000
    assert f"left out {record['tokens_dropped']:,} of ".encode() in done.stderr


def test_output_goes_to_a_file_that_is_whole_or_absent(
    adamas: Runner, tiny_model: Path, book: Path, tmp_path: Path
) -> None:
    target = tmp_path / "answer.txt"
    plain = adamas("ask", book, "Who?", "-m", tiny_model, "-n", "5")
    done = adamas("ask", book, "Who?", "-m", tiny_model, "-n", "5", "-o", target)
    assert done.stdout == b""
    assert target.read_bytes().strip() == plain.stdout.strip()
    target.write_text("before")
    assert adamas("ask", book, "Who?", "-m", tiny_model, "-n", "5k", "-o", target).returncode == 4
    assert target.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.txt", "book.txt"]
    assert adamas("ask", book, "Who?", "-o", tmp_path / "no" / "folder").returncode == 2


@pytest.fixture
def folder(book: Path, tiny_model: Path) -> Path:
    """A folder with one case for each exit code."""
    (book.parent / "image.png").write_bytes(b"\x89PNG\0\0")
    (book.parent / "model").symlink_to(tiny_model)
    endless = book.parent / "endless-model"
    shutil.copytree(tiny_model, endless)
    config = json.loads((endless / "config.json").read_text())
    (endless / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 40}))
    return book.parent


CODES = [
    (0, "ask book.txt Who? -m model -n 3", None),
    (1, "models default model", "failure"),  # its configuration file cannot be written
    (2, "ask book.txt Who? --budgett 3", "usage"),
    (3, "ask image.png Who? -m model", "nothing_readable"),
    (4, "ask book.txt Who? -m model -n 32k", "over_context"),
    (5, "ask book.txt Who? -m no-such-model", "model_unavailable"),
    (6, "ask book.txt Who? -m endless-model -n 512g", "out_of_memory"),
]


def assert_told(done: Result, code: int) -> None:
    message = done.stderr.decode()
    assert done.returncode == code, message
    if code:
        assert done.stdout == b""
        assert message.startswith("adamas: ")
        assert 1 <= message.count("\n") <= 2, message


@pytest.mark.parametrize(("code", "line", "kind"), CODES)
def test_exit_codes(
    adamas: Runner, code: int, line: str, kind: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interruption and a closed pipe are tested below."""
    monkeypatch.chdir(folder)
    assert_told(adamas(*line.split()), code)


@pytest.mark.parametrize(("code", "line", "kind"), [CODES[0], CODES[2], CODES[4]])
def test_exit_codes_are_those_of_the_process(code: int, line: str, kind: str | None, folder: Path) -> None:
    """An answer, a mistake in the command line, and an error after torch was loaded."""
    assert_told(installed(*line.split(), cwd=folder), code)


@pytest.mark.parametrize(("code", "line", "kind"), [case for case in CODES if case[2] != "failure"][1:])
def test_errors_as_json(
    adamas: Runner, code: int, line: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = adamas(*line.split(), "--json")
    assert done.returncode == code
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["exit_code"]) == (kind, code)
    assert error["message"] in done.stderr.decode()


def test_a_traceback_is_shown_on_demand(adamas: Runner, tiny_model: Path, book: Path) -> None:
    done = adamas("ask", book, "Who?", "-m", tiny_model, "-n", "32k", "-vv")
    assert done.returncode == 4
    assert b"Traceback" in done.stderr


def test_over_context_names_the_numbers(adamas: Runner, tiny_model: Path, book: Path) -> None:
    error = json.loads(adamas("ask", book, "Who?", "-m", tiny_model, "-n", "32k", "--json").stdout)["error"]
    assert error["n_ctx"] == 4096
    assert error["n_answer_tokens"] == 32768
    assert "answer 32,768 tokens > context 4,096" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["ask"], 'adamas ask book.txt "Who is Mr. Darcy?"'),
        (["ask", "book.txt"], 'adamas ask book.txt "your question"'),
        (["ask", "book.txt", "book.txt"], "the question is missing"),
        (["ask", "Who?"], "give documents before the question"),
        (["ask", "absent.txt", "Who? " * 100], "no file or folder 'absent.txt'"),
        (["Who? " * 100], "No such command"),
        (["ask", "book.txt", ""], "the question is empty"),
        (["ask", "absent.txt", "Who?"], "no file or folder 'absent.txt'"),
        (["ask", "book.txt", "Who?", "--attn", "half"], "'auto', 'adamas', 'full'"),
        (["ask", "book.txt", "Who?", "-n", "many"], "'many' is not a length such as 32768 or 32k"),
        (["ask", "book.txt", "Who?", "--budgett", "3"], "--budget"),
        (["ask", "book.txt", "Who?", "--files-from", "absent"], "cannot read --files-from absent"),
        (["ask", "book.txt", "Who?", "-m", "model", "--ctx-size", "1m"], "context of 4,096 tokens"),
        (["book.txt", "Who?"], 'adamas ask book.txt "your question"'),
        (["aks", "book.txt", "Who?"], "Did you mean 'ask'?"),
    ],
)
def test_common_mistakes_get_a_hint(
    adamas: Runner, arguments: list[str], hint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = adamas(*arguments)
    assert done.returncode == 2
    assert done.stdout == b""
    assert hint in done.stderr.decode()
    assert done.stderr.startswith(b"adamas: ")
    assert done.stderr.count(b"\n") <= 2


def test_flag_before_environment_before_file(
    adamas: Runner, tiny_model: Path, book: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('model = "from-file"\nmax-tokens = "3"\n')

    def asked(*flags: str | Path, **changes: str) -> str:
        return adamas("ask", book, "Who?", *flags, ADAMAS_CONFIG=str(config), **changes).stderr.decode()

    assert "from-file" in asked()
    assert "from-environment" in asked(ADAMAS_MODEL="from-environment")
    assert "from-flag" in asked("-m", "from-flag", ADAMAS_MODEL="from-environment")
    done = adamas("ask", book, "Who?", "-m", tiny_model, "--json", ADAMAS_CONFIG=str(config))
    assert json.loads(done.stdout)["usage"]["completion_tokens"] <= 3
    config.write_text("max_tokenz = 3\n")
    assert "max_tokenz" in asked()
    config.write_text("max_tokens = \n")
    assert "not TOML" in asked()


def test_a_config_file_among_the_documents_is_content(
    adamas: Runner, tiny_model: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(book.parent)
    (book.parent / "config.toml").write_text('model = "from-the-document"\n')
    done = adamas("ask", "config.toml", "Who?", "-m", tiny_model, "-n", "3")
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_ends_quietly(tiny_model: Path, book: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [ADAMAS, "ask", book, "Who?", "-m", tiny_model, "-n", "50"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    os.close(writer)
    left = Result.of(0, *process.communicate())
    assert process.returncode == CLOSED_PIPE
    assert left.stderr == b""


@pytest.mark.parametrize("delay", [0.5, 2.0, 5.0])
def test_ctrl_c_ends_within_a_second(delay: float, tiny_model: Path, book: Path, tmp_path: Path) -> None:
    """During imports, while the model loads, and while it answers."""
    target = tmp_path / "answer.txt"
    process = subprocess.Popen(
        # More questions than any machine answers in that time, even if the tiny model stops early in each.
        [ADAMAS, "ask", book, *["-q", "Who?"] * 5000, "-m", tiny_model, "-n", "3500", "-o", target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - began < 2  # one second, or more on a busy machine
    assert (process.returncode, stdout, stderr) == (INTERRUPTED, b"", b"adamas: interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt"]


@pytest.mark.parametrize(
    "dropping",
    [
        "class Closed:\n    def __del__(self): signal.raise_signal(signal.SIGINT)\nClosed()",
        "ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()",
        "class Held: pass\nheld = Held()\n"
        "noted = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGINT))\ndel held",
    ],
    ids=["finalizer", "called-by-c", "weak-reference"],
)
def test_an_interrupt_that_python_drops_comes_again(dropping: str) -> None:
    """Without that, Python writes "Exception ignored" and the command goes on."""
    program = (
        "import ctypes, signal, time, weakref\n"
        "from adamas_cli.lost_interrupts import deliver_lost_interrupts\n"
        f"deliver_lost_interrupts()\n{dropping}\n"
        "try:\n    time.sleep(30)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_a_terminal_that_tells_no_width_gets_the_answer(tiny_model: Path, book: Path) -> None:
    """`COLUMNS` is 0 in some containers and editors; rich believes it and prints nothing."""
    shown = []
    for columns in ({}, {"COLUMNS": "0"}, {"COLUMNS": "1"}):
        master, slave = pty.openpty()
        done = subprocess.Popen(
            [ADAMAS, "ask", book, "Who?", "-m", tiny_model, "-n", "9", "--no-usage"],
            stdout=slave,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=environment(TERM="xterm-256color", **columns),
        )
        os.close(slave)
        answer = b""
        try:
            while block := os.read(master, 4096):
                answer += block
        except OSError:  # Linux reports EIO when the last writer is gone
            pass
        os.close(master)
        assert done.stderr is not None
        notes = done.stderr.read()
        done.stderr.close()
        assert done.wait(10) == 0, notes
        assert b"the answer was cut at --max-tokens" in notes
        shown.append(answer.split(b"\x1b[J")[-1])
    assert shown[0].strip()
    assert shown[0] == shown[1] == shown[2]


def test_no_terminal_no_colour_even_when_the_other_stream_is_one(tiny_model: Path, book: Path) -> None:
    master, slave = pty.openpty()
    done = subprocess.run(
        [ADAMAS, "ask", book, "Who?", "-m", tiny_model, "-n", "5"],
        stdout=subprocess.PIPE,
        stderr=slave,
        stdin=slave,
        env=environment(TERM="xterm-256color"),
    )
    os.close(slave)
    os.close(master)
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout
