r"""A LaTeX document is read with the files that `\input` and similar commands include, each in its place."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from reading import found

from adamas_cli.documents import Collection, latex


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    return work


def write(files: Mapping[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def text_of(collection: Collection) -> str:
    (document,) = collection.documents
    return "".join(document.pieces())


def test_files_stand_at_their_places() -> None:
    write(
        {
            "thesis/main.tex": "Begin.\\input{ch/one}Middle.\n\\include{ch/two}\nEnd.\n",
            "thesis/ch/one.tex": "One takes \\input{ch/deep} in.\n",
            "thesis/ch/deep.tex": "Deep.",
            "thesis/ch/two.tex": "Two.",
        }
    )
    collection = found("thesis/main.tex")
    (document,) = collection.documents
    stretches = [(part.section, part.text) for part in document.parts() if part.text.strip()]
    main, one, deep, two = (f"thesis/{name}.tex" for name in ("main", "ch/one", "ch/deep", "ch/two"))
    assert stretches == [
        (main, "Begin."),
        (one, "One takes "),
        (deep, "Deep."),
        (one, " in.\n"),
        (main, "Middle.\n"),
        (two, "Two."),
        (main, "End.\n"),
    ]
    assert document.characters == len("".join(document.pieces()))
    assert not collection.notes


@pytest.mark.parametrize(
    "command",
    [
        "\\input{part}",
        "\\input{part.tex}",
        "\\input part\n",
        "\\include{part}",
        "\\subfile{part}",
        "\\import{./}{part}",
        "\\subimport{}{part}",
        "\\lstinputlisting[language=C]{part.tex}",
        "\\verbatiminput{part.tex}",
        "\\inputminted[linenos]{latex}{part.tex}",
        "100\\% \\input{part}",
    ],
)
def test_every_way_to_take_in_a_file(command: str) -> None:
    write({"main.tex": f"Before.\n{command}\nAfter.\n", "part.tex": "The part."})
    text = text_of(found("main.tex"))
    assert text.index("Before.") < text.index("The part.") < text.index("After.")


@pytest.mark.parametrize(
    "line", ["% \\input{part}", "a \\\\% \\input{part}", "\\input{#1}", "\\inputencoding{utf8}"]
)
def test_what_takes_in_nothing(line: str) -> None:
    write({"main.tex": f"Before.\n{line}\n", "part.tex": "The part."})
    assert text_of(found("main.tex")) == f"Before.\n{line}\n"


def test_what_is_missing_is_said() -> None:
    write({"main.tex": "\\input{a}\\input{b}\\input{c}\\input{d}"})
    collection = found("main.tex")
    assert collection.notes == ["main.tex: 4 files that it takes in are missing: a, b, c …"]
    assert "\\input{a}" in text_of(collection)


def test_files_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.tex").write_text("secret")
    Path("link.tex").symlink_to(tmp_path / "secret.tex")
    write({"main.tex": f"\\input{{../secret}}\\input{{{tmp_path}/secret}}\\input{{link}}"})
    collection = found("main.tex")
    assert "secret" not in text_of(collection).replace("../secret", "").replace(f"{tmp_path}/secret", "")
    assert [note.split(": ")[1] for note in collection.notes] == [
        "3 files that it takes in are outside of its folder and not read"
    ]


def test_files_of_the_same_repository_are_read() -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    write({"main/main.tex": "\\input{../shared/macros}", "shared/macros.tex": "The macros."})
    assert "The macros." in text_of(found("main/main.tex"))


def test_a_circle_ends() -> None:
    write({"main.tex": "Main \\input{a}", "a.tex": "A \\input{main} \\input{a}"})
    assert text_of(found("main.tex")).count("A ") == 1


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latex, "MAX_BYTES", 5000)
    write({"main.tex": "\\input{a}" * 9, "a.tex": "x" * 1000})
    collection = found("main.tex")
    assert text_of(collection).count("x") == 4000
    assert collection.notes[0].startswith("main.tex: 5 files that it takes in are beyond its first")


def test_a_file_is_read_once() -> None:
    write({"main.tex": "Main.\n\\input{ch/a}", "ch/a.tex": "A.", "ch/b.tex": "B."})
    collection = found("main.tex", "ch")
    assert [document.path for document in collection.documents] == ["ch/b.tex", "main.tex"]
    assert collection.skipped == {"read under another name": 1}
    assert len(found(".").documents) == 3
