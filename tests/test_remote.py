"""Pages and files from a local web server, and repositories from local git folders."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Run
from document_files import pdf
from reading import found

from adamas_cli.documents import Collection, clones, remote, web
from adamas_cli.documents.remote import Repository
from adamas_cli.errors import AdamasError, UsageError
from adamas_cli.progress import Silent

STORY = " ".join(
    f"The ship number {n} sailed from the harbour of Ulm in the early morning." for n in range(60)
)
MENU = "".join(f"<li><a href='/{n}'>Menu entry {n}</a></li>" for n in range(80))
ARTICLE = f"""<!doctype html><html><head><title>The ships</title>
<meta name="author" content="Ada Byron"></head><body><nav><ul>{MENU}</ul></nav><article>
<h1>The ships</h1><p>{STORY}</p>
<h2>Later</h2><p>{STORY}</p></article>
<footer><p>All rights reserved by nobody.</p></footer></body></html>"""
ANSWERS: dict[str, tuple[str, bytes]] = {
    "/article": ("text/html; charset=utf-8", ARTICLE.encode()),
    "/links": ("text/html", f"<html><body><ul>{MENU}</ul><p>One word.</p></body></html>".encode()),
    "/latin": (
        "text/html; charset=iso-8859-2",
        "<html><body><p>Źdźbło trawy</p></body></html>".encode("iso-8859-2"),
    ),
    "/plain": ("text/plain; charset=iso-8859-2", "Źdźbło trawy".encode("iso-8859-2")),
    "/report?id=1": ("application/pdf", pdf(["in the report"])),
    "/a.tar.gz": ("application/gzip", b""),
    "/notes.md": ("text/markdown", b"# Notes"),
    "/notebook": ("application/x-ipynb+json", b'{"cells": [{"cell_type": "markdown", "source": "prose"}]}'),
    "/large": ("text/plain", b"x" * 300_000),
    "/empty": ("text/html", b""),
}


class Answering(BaseHTTPRequestHandler):
    """Serves the contents of `ANSWERS`."""

    def do_GET(self) -> None:
        if self.path.startswith("/again"):
            self.send_response(302)
            self.send_header("Location", "/again" + self.path)
            self.end_headers()
            return
        if self.path == "/moved":
            self.send_response(301)
            self.send_header("Location", "/article")
            self.end_headers()
            return
        if self.path == "/silent":
            time.sleep(3)
            return
        if self.path not in ANSWERS:
            self.send_error(404, "Not Found")
            return
        kind, content = ANSWERS[self.path]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if self.path == "/large":
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    return work


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()
    thread.join()


def text_of(collection: Collection) -> str:
    (document,) = collection.documents
    return "".join(document.pieces())


class TestPages:
    """`adamas ask https://…`."""

    def test_the_main_text_of_a_page(self, server: str) -> None:
        address = f"{server}/article"
        collection = found(address)
        (document,) = collection.documents
        assert document.path == address
        text = text_of(collection)
        assert text.startswith(f"The ships\n{address}\nAda Byron\n\n")
        assert text.count("The ship number 7 sailed") == 2
        assert "## Later" in text
        assert "Menu entry" not in text
        (note,) = collection.note_lines()
        assert note.startswith(
            f"{address}: left out: words around the main text, which `whole_pages` reads ("
        )
        assert [part.section for part in document.parts() if part.section] == [
            "The ships",
            "The ships",
            "Later",
        ]

    def test_a_whole_page(self, server: str) -> None:
        collection = found(f"{server}/article", whole_pages=True)
        assert "Menu entry 7" in text_of(collection)
        assert "rights reserved" in text_of(collection)
        assert not collection.notes

    def test_a_page_without_a_main_text_is_read_whole(self, server: str) -> None:
        text = text_of(found(f"{server}/links"))
        assert "Menu entry 79" in text
        assert "One word." in text

    def test_without_the_extra_the_whole_page_is_read(
        self, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("blocked").mkdir()
        Path("blocked/trafilatura.py").write_text("raise ImportError")
        monkeypatch.syspath_prepend(str(Path("blocked").absolute()))
        monkeypatch.setattr("adamas_cli.documents.sources.reads_main_text", lambda: False)
        collection = found(f"{server}/article")
        assert "Menu entry 7" in text_of(collection)
        assert collection.notes == [f"{server}/article: {web.WITH_MENUS}"]

    def test_redirections_are_followed_so_far(self, server: str) -> None:
        assert "The ship number 7" in text_of(found(f"{server}/moved"))
        with pytest.raises(AdamasError, match="too many redirects"):
            found(f"{server}/again")

    @pytest.mark.parametrize("page", ["latin", "plain"])
    def test_the_servers_encoding_counts(self, server: str, page: str) -> None:
        assert "Źdźbło trawy" in text_of(found(f"{server}/{page}"))

    def test_other_formats(self, server: str) -> None:
        assert text_of(found(f"{server}/report?id=1")) == "[page 1]\nin the report\n\n"
        assert text_of(found(f"{server}/notes.md")) == "# Notes"
        assert text_of(found(f"{server}/notebook")) == "prose\n"

    def test_an_archive(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from test_archives import FILES, tar

        monkeypatch.setitem(ANSWERS, "/a.tar.gz", ("application/gzip", tar(FILES, "w:gz")))
        collection = found(f"{server}/a.tar.gz")
        assert {document.path for document in collection.documents} == {
            f"{server}/a.tar.gz/{name}" for name in FILES
        }

    def test_trouble_is_a_sentence(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(
            AdamasError, match=r"^http://[\d.:]+/none could not be fetched: the server answers 404"
        ):
            found(f"{server}/none")
        with pytest.raises(AdamasError, match=r"could not be fetched: .*onnect"):
            found("http://127.0.0.1:9/")
        monkeypatch.setattr(web, "SILENCE_SECONDS", 0.3)
        with pytest.raises(AdamasError, match="the server does not answer"):
            found(f"{server}/silent")

    def test_limits_hold_for_what_is_unpacked(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(web, "MAX_BYTES", 2**18)
        with pytest.raises(AdamasError, match="larger than the 0 MiB that are fetched"):
            found(f"{server}/large")

    def test_a_password_is_not_shown(self) -> None:
        assert remote.shown_address("https://me:secret@example.org/a?b=1#c") == "https://example.org/a?b=1"

    def test_what_is_fetched_does_not_stay(
        self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        collection = found(f"{server}/plain")
        assert list(scratch.iterdir())
        del collection
        assert not list(scratch.iterdir())


def git(*arguments: str, folder: Path) -> str:
    identity = {
        f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    command = ["git", "-C", str(folder), "-c", "init.defaultBranch=main", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **identity})
    return done.stdout.strip()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository with two commits on `main`, a tag on the first and a branch with a slash in its name."""
    folder = tmp_path / "hosting" / "ada" / "engine.git"
    folder.mkdir(parents=True)
    git("init", "--quiet", folder=folder)
    (folder / "src").mkdir()
    (folder / "src" / "app.py").write_text("print(1)\n")
    (folder / ".gitignore").write_text("*.log\n")
    for n, text in enumerate(["one\n", "two\n"]):
        (folder / "README.md").write_text(text)
        git("add", "--all", folder=folder)
        git("commit", "--quiet", "--message", str(n), folder=folder)
        if not n:
            git("tag", "v1.0", folder=folder)
            git("branch", "feature/x", folder=folder)
    return folder


@pytest.fixture
def github(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes git use the folder above the repository as GitHub."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{origin.parents[1]}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/")


def texts(collection: Collection) -> dict[str, str]:
    return {document.path: "".join(document.pieces()) for document in collection.documents}


class TestRepositories:
    """`adamas ask git+https://…@ref` and `adamas ask owner/name`."""

    def test_by_address(self, origin: Path) -> None:
        assert texts(found(f"git+file://{origin}")) == {
            "ada/engine/.gitignore": "*.log\n",
            "ada/engine/README.md": "two\n",
            "ada/engine/src/app.py": "print(1)\n",
        }

    @pytest.mark.parametrize("ref", ["v1.0", "feature/x"])
    def test_at_a_tag_or_a_branch(self, origin: Path, ref: str) -> None:
        assert texts(found(f"git+file://{origin}@{ref}"))["ada/engine/README.md"] == "one\n"

    def test_at_a_commit(self, origin: Path) -> None:
        git("config", "uploadpack.allowAnySHA1InWant", "true", folder=origin)
        commit = git("rev-parse", "v1.0", folder=origin)
        assert texts(found(f"git+file://{origin}@{commit}"))["ada/engine/README.md"] == "one\n"

    def test_a_folder_of_it(self, origin: Path) -> None:
        assert list(texts(found(f"git+file://{origin}#subdirectory=src"))) == ["ada/engine/src/app.py"]
        with pytest.raises(AdamasError, match="ada/engine has no folder none"):
            found(f"git+file://{origin}#subdirectory=none")
        with pytest.raises(UsageError, match="leads out of its repository"):
            found(f"git+file://{origin}#subdirectory=../..")

    @pytest.mark.usefixtures("github")
    def test_by_its_name_on_github(self, origin: Path) -> None:
        assert texts(found("ada/engine"))["ada/engine/README.md"] == "two\n"
        assert texts(found("ada/engine@v1.0"))["ada/engine/README.md"] == "one\n"
        with pytest.raises(AdamasError, match=r"github.com/ada/none.git could not be fetched: "):
            found("ada/none")

    @pytest.mark.usefixtures("github")
    def test_a_path_of_that_name_goes_before(self) -> None:
        Path("ada").mkdir()
        Path("ada/engine").write_text("mine\n")
        assert texts(found("ada/engine")) == {"ada/engine": "mine\n"}
        with pytest.raises(UsageError, match="There is no file or folder 'ada/typo'"):
            found("ada/typo")

    def test_only_the_newest_is_fetched_and_again_when_it_changes(self, origin: Path) -> None:
        found(f"git+file://{origin}")
        (kept,) = clones.repositories_directory().glob("*/engine")
        assert git("rev-list", "--count", "HEAD", folder=kept) == "1"
        (origin / "README.md").write_text("three\n")
        (origin / "src" / "app.py").unlink()
        git("commit", "--quiet", "--all", "--message", "2", folder=origin)
        assert texts(found(f"git+file://{origin}"))["ada/engine/README.md"] == "three\n"
        assert clones.repositories_directory().stat().st_mode & 0o777 == 0o700

    def test_one_that_cannot_be_reached_is_read_as_it_was(self, origin: Path, tmp_path: Path) -> None:
        class Noting:
            def __init__(self) -> None:
                self.notes: list[str] = []
                self.note = self.notes.append
                self.task = Silent().task

        repository = Repository("ada/engine", f"file://{origin}")
        clones.clone(repository, Noting())
        origin.rename(tmp_path / "gone")
        noting = Noting()
        assert Path(clones.clone(repository, noting), "README.md").read_text() == "two\n"
        assert noting.notes[0].startswith("ada/engine could not be fetched (")
        with pytest.raises(AdamasError, match="could not be fetched"):
            clones.clone(Repository("ada/engine", f"file://{origin}", "v1.0"), noting)

    def test_nothing_of_it_runs(self, origin: Path, tmp_path: Path) -> None:
        mark = tmp_path / "ran"
        template = tmp_path / "template" / "hooks"
        template.mkdir(parents=True)
        hook = template / "post-checkout"
        hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
        hook.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GIT_TEMPLATE_DIR", str(template.parent))
            found(f"git+file://{origin}")
        assert not mark.exists()
        with pytest.raises(AdamasError):
            clones.clone(
                Repository("x", f"ext::sh -c touch% {mark}"),
                Silent(),
            )
        assert not mark.exists()

    def test_the_least_recently_used_are_removed(self, origin: Path) -> None:
        for n, ref in enumerate(["main", "v1.0", "feature/x"]):
            found(f"git+file://{origin}@{ref}")
            for used in clones.repositories_directory().glob("*/*/.git/adamas-used"):
                os.utime(used, (used.stat().st_mtime - 100, used.stat().st_mtime - 100))
            assert len(list(clones.repositories_directory().glob("*/engine"))) == n + 1
        assert clones.prune(clones.repositories_directory(), 0) > 0
        assert not list(clones.repositories_directory().glob("*/engine"))

    @pytest.mark.parametrize(
        "source",
        [
            "git+https://example.org",
            "git+https:///a",
            "git+https://h/a@--upload-pack=x",
            "git+https://h/a@b:c",
        ],
    )
    def test_addresses_that_are_none(self, source: str) -> None:
        with pytest.raises(UsageError):
            found(source)


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        ("git+https://h/o/n.git@v1", Repository("o/n", "https://h/o/n.git", "v1")),
        ("git+https://me@h/n", Repository("n", "https://me@h/n")),
        ("git+ssh://git@h/o/n@a/b", Repository("o/n", "ssh://git@h/o/n", "a/b")),
        ("o/n", Repository("o/n", "https://github.com/o/n.git")),
        ("o/n.js@v1", Repository("o/n.js", "https://github.com/o/n.js.git", "v1")),
        ("a/b/c", None),
        ("book.txt", None),
        ("-o/n", None),
        ("o/..", None),
        ("./o/n", None),
        ("https://h/o/n.git", None),
    ],
)
def test_what_names_a_repository(source: str, repository: Repository | None) -> None:
    assert remote.repository(source) == repository


@pytest.mark.parametrize("source", ["https://example.org/a", "git+https://example.org/a", "nobody/nothing"])
@pytest.mark.parametrize("command", ["ask", "plan", "summarize"])
def test_offline_nothing_is_fetched(source: str, command: str, run_here: Run) -> None:
    question = [] if command == "summarize" else ["What?"]
    code, out, err = run_here(command, source, *question, "--offline")
    assert (code, out) == (2, "")
    assert err == f"adamas: {source} is not on this machine, and --offline forbids fetching it.\n"


def test_an_address_is_no_question(server: str, run_here: Run) -> None:
    code, _, err = run_here("ask", f"{server}/article")
    assert code == 2
    assert "is a document" in err


def test_the_installed_command_plans_a_page(server: str, tiny_model: Path) -> None:
    adamas = Path(sys.executable).with_name("adamas")
    command = [adamas, "plan", f"{server}/article", "Which harbour?", "-m", tiny_model, "--no-calibrate"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{server}/article" in done.stdout
