"""Sources to documents: what is read, in which order, and what is reported as skipped."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from told import raises_told

from adamas_cli.documents import Collection, Selection, collect, read_file_list
from adamas_cli.errors import AdamasError, NothingReadableError, UsageError
from adamas_cli.progress import Silent
from adamas_cli.terminal.spelling import spelled


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return work


def write(path: str, content: str | bytes = "text\n") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def git(*arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def found(*sources: str, stdin: bytes = b"", **selection: object) -> Collection:
    selection.setdefault("tree", False)
    return collect(sources, Selection(**selection), stdin=io.BytesIO(stdin), progress=Silent())  # type: ignore[arg-type]


def paths(*sources: str, **selection: object) -> list[str]:
    return [document.path for document in found(*sources, **selection).documents]


def texts(collection: Collection) -> dict[str, str]:
    return {document.path: "".join(document.pieces()) for document in collection.documents}


def test_files_folders_and_stdin_together() -> None:
    write("book.txt", "Café\r\n")
    write("src/app.py", "print()\n")
    write("src/lib/b.py", "pass\n")
    collection = found("./src//", "-", "book.txt", stdin=b"from stdin")
    assert texts(collection) == {
        "book.txt": "Café\n",
        "src/app.py": "print()\n",
        "src/lib/b.py": "pass\n",
        "stdin": "from stdin",
    }
    assert [document.size for document in collection.documents] == [7, 8, 5, 10]
    assert collection.skipped_line() is None


def test_order_is_that_of_path_bytes_whatever_the_order_of_the_sources() -> None:
    for name in ("b.txt", "B.txt", "é.txt", "a/z.txt", "a-b/x.txt", "a.txt", "z.txt"):
        write(name)
    expected = ["B.txt", "a-b/x.txt", "a.txt", "a/z.txt", "b.txt", "z.txt", "é.txt"]
    assert paths(".") == expected
    assert paths("z.txt", "é.txt", "a", "b.txt", "a.txt", "a-b", "B.txt") == expected


def test_a_file_reached_twice_is_read_once() -> None:
    write("src/app.py")
    assert paths("src", "src/app.py", "./src/../src/app.py", "src") == ["src/app.py"]
    os.symlink("src/app.py", "alias.py")
    collection = found("alias.py", "src")
    assert [document.path for document in collection.documents] == ["alias.py"]
    assert collection.skipped_line() == "skipped 1: 1 read under another name"


def test_everything_skipped_is_counted_by_reason() -> None:
    write("good.txt")
    for name in ("a.bin", "b.bin", "c.bin"):
        write(name, bytes(range(256)))
    write("large.txt", "x" * 2000)
    write("larger.txt", "x" * 3000)
    write("empty.txt", "")
    os.symlink("good.txt", "link.txt")
    os.symlink("nowhere", "broken.txt")
    os.mkfifo("pipe")
    collection = found(".", max_file_size=1000)
    assert [document.path for document in collection.documents] == ["good.txt"]
    assert spelled(collection.skipped_line()) == (
        "skipped 9: 3 binary, 2 over --max-file-size, 1 empty, 1 special (device, pipe or socket), "
        "1 symlinked, 1 symlinked to nothing"
    )
    assert collection.examples["binary"] == ["a.bin", "b.bin", "c.bin"]


def test_unreadable_files_and_folders_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, so the system calls refuse instead."""
    write("good.txt")
    write("secret.txt")
    write("closed/a.txt")
    real_open, real_scandir = os.open, os.scandir

    def refuse_secret(path: str, *rest: int) -> int:
        if path.endswith("secret.txt"):
            raise PermissionError(13, "Permission denied", path)
        return real_open(path, *rest)

    def refuse_closed(path: str) -> Iterator[os.DirEntry[str]]:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real_scandir(path)

    monkeypatch.setattr(os, "open", refuse_secret)
    monkeypatch.setattr(os, "scandir", refuse_closed)
    collection = found(".")
    assert [document.path for document in collection.documents] == ["good.txt"]
    assert collection.skipped_line() == "skipped 2: 2 unreadable"
    assert sorted(collection.examples["unreadable"]) == ["closed", "secret.txt"]


def test_a_loop_of_links_ends() -> None:
    write("a/file.txt")
    os.symlink("..", "a/up")
    os.symlink("loop", "loop")
    collection = found(".")
    assert [document.path for document in collection.documents] == ["a/file.txt"]
    assert collection.skipped_line() == "skipped 2: 1 symlinked, 1 symlinked to nothing"


def test_links_that_the_user_names_are_followed() -> None:
    write("real/file.txt")
    os.symlink("real", "folder")
    os.symlink("real/file.txt", "file")
    assert paths("folder") == ["folder/file.txt"]
    assert paths("file") == ["file"]


def test_a_named_file_is_read_whatever_the_selection_says() -> None:
    write(".gitignore", "*.log\n")
    write("huge.log", "x" * 2000)
    write(".hidden", "x" * 2000)
    assert paths("huge.log", ".hidden", max_file_size=1000) == [".hidden", "huge.log"]
    with pytest.raises(NothingReadableError):
        found(".", max_file_size=1000)


@pytest.mark.parametrize("source", ["missing.txt", "book.txt/", "", "a\0b", "what is this? " * 400])
def test_a_source_that_does_not_exist_is_a_usage_error(source: str) -> None:
    write("book.txt")
    with pytest.raises(UsageError, match="There is no file or folder") as caught:
        found("book.txt", source)
    assert "\0" not in caught.value.message


def test_nothing_readable_says_why() -> None:
    write("a.bin", b"\0" * 100)
    with pytest.raises(
        NothingReadableError, match=r"^Nothing readable in a.bin: skipped 1: 1 binary; `text` reads binary\.$"
    ) as caught:
        found("a.bin")
    assert caught.value.exit_code == 3
    assert json.loads(json.dumps(caught.value.as_json()))["skipped"] == {"binary": 1}
    os.mkdir("hollow")
    with raises_told(NothingReadableError, match=r"Nothing to read in hollow: .*--hidden"):
        found("hollow")
    with pytest.raises(NothingReadableError, match="No document was named"):
        found()


@pytest.mark.parametrize(
    "content",
    [
        b" ",
        b"\n\n\n",
        b" \t\r\n\f" * 100_000,
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf \n",
        " \u00a0\u2003\u3000\u200b\n".encode(),
        " \n".encode("utf-16"),
        " \n \n".encode("utf-16-le"),
        b"\xa0 \xa0\n",
    ],
    ids=range(9),
)
def test_white_space_alone_is_nothing_to_read(content: bytes) -> None:
    write("blank.txt", content)
    write("blank.txt.gz", gzip.compress(content))
    for source, stdin in (("blank.txt", b""), (".", b""), ("-", content), ("blank.txt.gz", b"")):
        with pytest.raises(NothingReadableError, match=r"\d blank"):
            found(source, stdin=stdin)
    write("text.txt", content + "text".encode("utf-16-le" if content[1:2] == b"\0" else "utf-8"))
    assert paths("text.txt") == ["text.txt"]


def test_a_notebook_without_words_is_nothing_to_read() -> None:
    cells = [{"cell_type": "markdown", "source": [" \n"]}]
    for written in ([], cells):
        write("n.ipynb", json.dumps({"nbformat": 4, "cells": written}))
        with pytest.raises(NothingReadableError, match="1 blank"):
            found("n.ipynb")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices_are_never_opened(device: str) -> None:
    with pytest.raises(NothingReadableError, match="1 special"):
        found(device)


def test_a_socket_is_not_opened(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(NothingReadableError, match="1 special"):
            found("socket")


def test_endless_binary_stdin_ends() -> None:
    with open("/dev/zero", "rb") as zeros, pytest.raises(NothingReadableError, match="1 binary"):
        collect(["-"], Selection(), stdin=zeros, progress=Silent())


def test_a_pipe_is_read_and_one_without_a_writer_does_not_hang() -> None:
    reading, writing = os.pipe()
    text = "".join(f"line {n} from a pipe\n" for n in range(10_000))  # more than the pipe's buffer holds
    writer = threading.Thread(target=lambda: (os.write(writing, text.encode()), os.close(writing)))
    writer.start()
    collection = found(f"/dev/fd/{reading}")
    writer.join()
    os.close(reading)
    assert texts(collection) == {f"/dev/fd/{reading}": text}
    os.mkfifo("silent")
    with pytest.raises(NothingReadableError, match="1 empty"):
        found("silent")


def test_a_stream_can_be_read_again_and_by_two_readers() -> None:
    (document,) = found("-", stdin=b"ab\ncd\n" * 150_000).documents
    pairs = zip(document.pieces(), document.pieces(), strict=True)
    assert all(first == second for first, second in pairs)
    assert "".join(document.pieces()) == "ab\ncd\n" * 150_000


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tempfile.NamedTemporaryFile",
        lambda: SimpleNamespace(file=open("/dev/full", "wb")),  # noqa: SIM115
    )
    with pytest.raises(AdamasError, match="stdin could not be read to its end: No space left"):
        found("-", stdin=b"text")


def test_a_growing_file_is_read_as_it_was_listed() -> None:
    file = write("log.txt", "one\n")
    collection = found("log.txt")
    file.write_text("one\ntwo\n")
    assert texts(collection) == {"log.txt": "one\n"}


@pytest.mark.parametrize("change", ["shrink", "vanish", "pipe", "folder"])
def test_a_file_that_changed_since_it_was_listed_is_an_error(change: str) -> None:
    file = write("notes.txt", "some text\n")
    (document,) = found("notes.txt").documents
    if change == "shrink":
        file.write_text("some")
    else:
        file.unlink()
    if change == "pipe":
        os.mkfifo("notes.txt")
    elif change == "folder":
        os.mkdir("notes.txt")
    with pytest.raises(AdamasError, match=r"notes.txt changed since it was listed \(.*\); run"):
        list(document.pieces())


def test_names_are_safe_to_print() -> None:
    write("esc\x1b[31m.txt")
    write("line\nbreak.txt")
    write("bidi\u202etxt.exe")
    Path(os.fsdecode(b"latin\xe9.txt")).write_text("text")
    shown = paths(".")
    assert shown == ["bidi\\u202etxt.exe", "esc\\x1b[31m.txt", "latin\\xe9.txt", "line\\nbreak.txt"]
    assert all(path.isprintable() for path in shown)


def test_notebooks_are_converted() -> None:
    write("n.ipynb", json.dumps({"cells": [{"cell_type": "markdown", "source": "# Hello"}]}))
    assert texts(found(".")) == {"n.ipynb": "# Hello\n"}


def test_lists_of_paths() -> None:
    assert read_file_list(io.BytesIO(b"a b.txt\n\n-\r\nc\xe9\n"), nul=False) == ["a b.txt", "./-", "c\udce9"]
    assert read_file_list(io.BytesIO(b"a\nb\0-\0\0"), nul=True) == ["a\nb", "./-"]
    write("-", "a file of that name")
    assert texts(found(*read_file_list(io.BytesIO(b"-\n"), nul=False))) == {"-": "a file of that name"}


class TestInAWorkTree:
    """Git reports the files: tracked ones, and those that its own rules do not ignore."""

    @pytest.fixture(autouse=True)
    def repository(self, folder: Path) -> None:
        git("init", "-q")
        write(".gitignore", "*.log\nbuild/\n")
        write("tracked.log", "tracked all the same")
        write("new.py")
        write("noise.log")
        write("build/out.txt")
        write("src/app.py")
        write("src/noise.log")
        git("add", "-f", "tracked.log", "src/app.py")

    def test_tracked_and_untracked_but_not_ignored(self) -> None:
        write("gone.py")
        git("add", "gone.py")
        os.remove("gone.py")
        assert paths(".") == ["new.py", "src/app.py", "tracked.log"]
        assert paths("src") == ["src/app.py"]

    def test_dot_ignore_hidden_include_and_exclude_apply(self) -> None:
        write(".ignore", "new.py\n")
        assert paths(".") == ["src/app.py", "tracked.log"]
        assert paths(".", hidden=True) == [".gitignore", ".ignore", "src/app.py", "tracked.log"]
        assert paths(".", include=("*.py",)) == ["src/app.py"]
        assert paths(".", exclude=("src/",)) == ["tracked.log"]

    def test_no_gitignore_reads_everything(self) -> None:
        expected = ["build/out.txt", "new.py", "noise.log", "src/app.py", "src/noise.log", "tracked.log"]
        assert paths(".", gitignore=False) == expected

    def test_an_ignored_folder_that_is_named_is_read(self) -> None:
        assert paths("build") == ["build/out.txt"]

    def test_submodules_and_repositories_inside_have_their_own_rules(self) -> None:
        write("other/mine.log")
        write("other/theirs.txt")
        write("other/.gitignore", "theirs.txt\n")
        git("-C", "other", "init", "-q")
        git("-C", "other", "add", ".")
        git("-C", "other", "commit", "-qm", "first")
        shutil.move("other", "../origin")
        git("submodule", "--quiet", "add", str(Path("../origin").resolve()), "module")
        write("clone/c.txt")
        write("clone/deep/d.log")
        git("-C", "clone", "init", "-q")
        expected = [
            ".gitmodules",
            "clone/c.txt",
            "clone/deep/d.log",
            "module/.gitignore",
            "module/mine.log",
            "new.py",
            "src/app.py",
            "tracked.log",
        ]
        assert paths(".") == expected
        assert paths(".", exclude=("/clone/deep",)) == [path for path in expected if "deep" not in path]

    @pytest.mark.parametrize("trouble", ["missing", "refuses"])
    def test_without_git_the_rules_are_read_from_the_files(
        self, trouble: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tools = write(
            "../tools/git", "#!/bin/sh\necho fatal: detected dubious ownership >&2\nexit 128\n"
        ).parent
        (tools / "git").chmod(0o644 if trouble == "missing" else 0o755)
        monkeypatch.setenv("PATH", str(tools.resolve()))
        assert paths(".") == ["new.py", "src/app.py"]
        assert paths("src") == ["src/app.py"], "the rules above the folder hold in it"
        assert paths("build") == ["build/out.txt"]

    def test_settings_of_the_repository_run_nothing(self, folder: Path) -> None:
        hook = write("../hook", f"#!/bin/sh\ntouch {folder}/ran\n")
        hook.chmod(0o755)
        git("config", "core.fsmonitor", str(hook.resolve()))
        paths(".")
        assert not Path("ran").exists()

    def test_git_is_not_sent_to_another_repository(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GIT_DIR", "/nonexistent")
        assert paths(".") == ["new.py", "src/app.py", "tracked.log"]


def test_a_walk_meets_work_trees_and_uses_their_rules() -> None:
    write("plain.log")
    write("repo/.gitignore", "*.log\n")
    write("repo/a.log")
    write("repo/b.txt")
    git("-C", "repo", "init", "-q")
    assert paths(".") == ["plain.log", "repo/b.txt"]


def test_a_large_file_streams_in_bounded_memory() -> None:
    """In its own process, because a peak cannot be reset; the file is sparse, so that it takes no disk."""
    with open("large.txt", "wb") as file:
        file.write(b"start of a text\n" * 1000)
        file.seek(200 * 2**20)
        file.write(b"caf\xe9\n")
    script = """
import io, resource
from adamas_cli.documents import Selection, collect
from adamas_cli.progress import Silent
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(document,) = collect(["large.txt"], Selection(), stdin=io.BytesIO(), progress=Silent()).documents
largest = max(map(len, document.pieces()))
print(largest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    largest, kilobytes = map(int, done.stdout.split())
    assert largest <= 2**20
    assert kilobytes < 32 * 1024


def test_importing_it_is_light() -> None:
    heavy = {"torch", "transformers", "chardet", "selectolax", "html_to_markdown"}
    script = f"import sys, adamas_cli.documents; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
