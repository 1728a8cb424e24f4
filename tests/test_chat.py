"""`adamas chat` without a terminal, in this process on a tiny random model, one token per byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import Result, Runner, adamas, book  # noqa: F401 - fixtures


@pytest.fixture
def chat(adamas: Runner, tiny_model: Path, book: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """Runs a chat about a book with these lines on stdin, in the book's folder."""
    monkeypatch.chdir(book.parent)
    (book.parent / "more.txt").write_text("Mr. Collins owns seven parrots.\n")

    def run(*lines: str, options: tuple[str, ...] = (), sources: tuple[str, ...] = ("book.txt",)) -> Result:
        stdin = "".join(f"{line}\n" for line in lines).encode()
        return adamas("chat", *sources, "-m", tiny_model, "-n", "8", *options, stdin=stdin)

    return run


def records(done: Result) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def answers(done: Result) -> list[str]:
    return [record["answer"] for record in records(done)]


def reused(record: dict) -> int:
    return record["usage"]["prompt_tokens_details"]["cached_tokens"]


JSON = ("--json",)


def test_each_line_is_a_question_and_stdout_has_the_answers(chat, adamas, tiny_model):  # noqa: F811
    done = chat("Who came?", "", "  Where to?  ")
    first, second = answers(chat("Who came?", "", "  Where to?  ", options=JSON))
    assert done.stdout.decode() == f"{first}\n\n{second}\n"
    assert done.stderr == b"the answer was cut at --max-tokens\n" * 2
    asked = adamas("ask", "book.txt", "Who came?", "-m", tiny_model, "-n", "8", "--json")
    assert json.loads(asked.stdout)["answer"] == first


def test_a_turn_reads_only_what_is_new(chat):
    first, second, third = records(chat("Who came?", "Where to?", "And why did he?", options=JSON))
    assert reused(first) == 0
    for before, after in ((first, second), (second, third)):
        usage = before["usage"]
        said = usage["prompt_tokens"] + usage["completion_tokens"]
        assert said - 1 <= reused(after) <= said
        assert after["usage"]["prompt_tokens"] - reused(after) < 100
    assert [record["question"] for record in (first, second, third)][2] == "And why did he?"
    assert [document["path"] for document in third["documents"]] == ["book.txt"]
    assert set(third) >= {"answer", "finish_reason", "usage", "timings", "model", "attention", "truncated"}


def test_the_first_turn_counts_what_was_read_for_it(chat):
    for _ in range(3):  # on a busy machine, one may have had to wait
        first, second = records(chat("Who came?", "Where to?", options=JSON))
        if first["timings"]["prefill_s"] > second["timings"]["prefill_s"]:
            break
    else:
        pytest.fail("the first turn never counted what was read for it")
    assert first["usage"]["prompt_tokens"] > first["documents"][0]["tokens"]


def test_clear_answers_as_a_new_chat_does_and_reads_no_document_again(chat):
    first, _, again = records(chat("Who came?", "Where to?", "/clear", "Who came?", options=JSON))
    assert again["answer"] == first["answer"]
    assert again["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]
    assert reused(again) >= again["documents"][0]["tokens"]


def test_a_document_that_is_added_first_is_one_of_the_documents(chat):
    together = records(chat("Who?", options=JSON, sources=("book.txt", "more.txt")))
    (added,) = records(chat("/add more.txt", "Who?", options=JSON))
    assert added["answer"] == together[0]["answer"]
    assert added["documents"] == together[0]["documents"]


def test_a_document_that_is_added_later_goes_behind_the_conversation(chat):
    done = chat("Who came?", "/add more.txt", "What does he own?", options=JSON)
    first, second = records(done)
    assert [document["path"] for document in second["documents"]] == ["book.txt", "more.txt"]
    assert reused(second) >= first["usage"]["prompt_tokens"]
    read = second["usage"]["prompt_tokens"] - reused(second)
    assert second["documents"][1]["tokens"] < read < second["documents"][1]["tokens"] + 100
    assert b"added more.txt: " in done.stderr
    cleared = records(
        chat("Who came?", "/add more.txt", "What does he own?", "/clear", "Who came?", options=JSON)
    )
    fresh = records(chat("Who came?", options=JSON, sources=("book.txt", "more.txt")))
    assert cleared[-1]["answer"] == fresh[0]["answer"]


def test_a_document_that_is_dropped_was_never_there(chat):
    both = ("book.txt", "more.txt")
    done = chat("/drop book.txt", "What does he own?", "And who?", options=JSON, sources=both)
    alone = chat("What does he own?", "And who?", options=JSON, sources=("more.txt",))
    assert answers(done) == answers(alone)
    assert b"dropped book.txt, " in done.stderr
    later = chat("What does he own?", "/drop book.txt", "And who?", options=JSON, sources=both)
    assert b" later tokens are re-read\n" in later.stderr
    assert [document["path"] for document in records(later)[1]["documents"]] == ["more.txt"]


def test_tokens_add_up(chat):
    done = chat("Who came?", "/tokens")
    cut, document, total = done.stderr.decode().splitlines()
    assert cut == "the answer was cut at --max-tokens"
    assert document.split()[1] == "book.txt"
    documents, conversation, free = (int(part.split()[1].replace(",", "")) for part in total.split(" · "))
    assert documents == int(document.split()[0])
    assert documents + conversation + free == 4096


def test_help_names_every_command(chat):
    shown = chat("/help").stderr.decode()
    for name in ("/help", "/add", "/drop", "/tokens", "/sources", "/save", "/clear", "/exit", "//", "Ctrl-D"):
        assert name in shown


def test_exit_leaves_the_rest_unread(chat):
    assert len(answers(chat("Who came?", "/exit", "Where to?", options=JSON))) == 1


def test_two_slashes_send_one(chat):
    (record,) = records(chat("//tokens are what?", options=JSON))
    assert record["question"] == "/tokens are what?"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/tokns", "unknown command /tokns; did you mean /tokens?"),
        ("/etc/passwd", "to send it as text: //etc/passwd"),
        ("/clear!", "unknown command /clear!"),
        ("/add", "as in: /add chapter2.txt"),
        ("/add -", "stdin holds the questions"),
        ("/add absent.txt", "no file or folder 'absent.txt'"),
        ("/add book.txt", "book.txt is already in the conversation"),
        ("/drop absent.txt", "no document absent.txt; the conversation has: book.txt"),
        ("/save", "name a file"),
        ("/add ~nobody-here/a.txt", "no file or folder '~nobody-here/a.txt'"),
        ("/save ~nobody-here/a.txt", "cannot write ~nobody-here/a.txt"),
        ("/save book.txt", "book.txt exists; /save! book.txt overwrites it"),
    ],
)
def test_a_mistake_in_a_script_ends_it_with_a_hint(chat, line, hint):
    done = chat(line, "Who came?")
    assert done.returncode == 2
    assert done.stdout == b""
    message = done.stderr.decode()
    assert hint in message
    assert message.startswith("adamas: ")
    assert message.count("\n") <= 2


def test_the_transcript_is_markdown_and_overwrites_only_on_demand(chat, book):  # noqa: F811
    done = chat("Who came?", "/save talk.md", "Where to?", "/save! talk.md", "/save other.md", options=JSON)
    first, second = answers(done)
    text = (book.parent / "talk.md").read_text()
    assert text.startswith("# Conversation\n\n* model: ")
    assert "* document: book.txt\n\n## Who came?\n" in text
    assert f"\n## Where to?\n\n{second}".rstrip() in text
    assert text.index(first) < text.index("## Where to?")
    assert (book.parent / "other.md").read_text() == text


def test_the_transcript_of_the_whole_chat_goes_to_a_file(chat, book):  # noqa: F811
    done = chat("Who came?", "Where to?", options=("-o", "talk.md"))
    assert done.stdout
    assert (book.parent / "talk.md").read_text().count("\n## ") == 2
    assert chat("Who?", options=("-o", "no/talk.md")).returncode == 2


def test_a_full_context_says_how_to_go_on(chat, book):  # noqa: F811
    book.write_text("A sentence about nothing. " * 141)
    done = chat("Who came?", "Where to? " * 20, "And why? " * 20, options=JSON)
    assert done.returncode == 4
    first, *_, last = done.stdout.decode().splitlines()
    assert json.loads(first)["question"] == "Who came?"
    assert json.loads(last)["error"]["n_ctx"] == 4096
    assert b"the context is full: " in done.stderr
    assert b"/clear forgets the conversation and keeps the documents" in done.stderr
    cleared = chat("Who came?", "Where to? " * 20, "/clear", "Who came?", options=JSON)
    assert cleared.returncode == 0
    (book.parent / "more.txt").write_text("Mr. Collins owns seven parrots.\n" * 12)
    refused = chat("/add more.txt")
    assert refused.returncode == 4
    assert b"are free, and an answer may need 8\n/drop and /clear make room" in refused.stderr


def test_white_space_alone_is_nothing_to_talk_about(chat, book):  # noqa: F811
    (book.parent / "blank.txt").write_text("\n \n")
    done = chat("Who came?", sources=("blank.txt",))
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"Nothing readable in blank.txt: skipped 1: 1 blank." in done.stderr
    assert chat("/add blank.txt").returncode == 3


def test_documents_that_do_not_fit_can_be_cut_with_a_notice(chat, book):  # noqa: F811
    book.write_text("A sentence about nothing. " * 1000)
    assert chat("Who?").returncode == 4
    done = chat("Who?", options=(*JSON, "--on-overflow", "truncate"))
    (record,) = records(done)
    assert record["tokens_dropped"] > 20_000
    assert f"left out {record['tokens_dropped']:,} of ".encode() in done.stderr


def test_kept_documents_serve_chat_and_ask(adamas, tiny_model, book, tmp_path):  # noqa: F811
    book.write_text("".join(f"{day}. Mr. Bingley has taken Netherfield Park.\n" for day in range(60)))
    store = {"ADAMAS_NO_DOC_CACHE": "0", "ADAMAS_DOC_CACHE": str(tmp_path / "store")}
    options = ("-m", tiny_model, "-n", "4", "--json")
    (cold,) = records(adamas("chat", book, *options, stdin=b"Who?\n", **store))
    warm = adamas("chat", book, *options, stdin=b"Who?\nWhy?\n", **store)
    (first, _) = records(warm)
    assert (reused(cold), first["answer"]) == (0, cold["answer"])
    assert reused(first) >= first["documents"][0]["tokens"]
    assert warm.stderr.startswith(b"reused 2,")
    asked = json.loads(adamas("ask", book, "Who?", *options, **store).stdout)
    assert reused(asked) == reused(first)


def test_a_source_is_needed_and_stdin_is_not_both(chat):
    assert b"give documents, as in: adamas chat book.txt" in chat(sources=()).stderr
    taken = chat("Who?", sources=("-",))
    assert taken.returncode == 2
    assert b"stdin holds a document" in taken.stderr
