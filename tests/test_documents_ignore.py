"""Ignore rules: the same verdicts as git's own, and no rule outside its folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from told import raises_told

from adamas_cli.documents.filtering import Choice, Filter, IgnoreRules, Selection
from adamas_cli.errors import UsageError

NAMES = ("a", "b", "ab", "a.txt", "b.md", "#a", "!b", "a b", "[a]", "-")
FOLDERS = ("", "a", "b.d", "a/b", "a/ab", "b.d/a", "a/b/a", "a b")
PATHS = tuple(
    os.path.join(folder, name)
    for folder in FOLDERS
    for name in NAMES
    if os.path.join(folder, name) not in FOLDERS
)

segments = st.one_of(
    st.sampled_from(("a", "b", "ab", "*", "**", "?", "a*", "*.txt", "*.md", "b.d", "[ab]", "[!a]", "[a-c]?")),
    st.sampled_from((r"\#a", r"\!b", r"\[a\]", "a b", "*b", "a**", "***")),
)


sets = st.sampled_from(
    ("[[:alpha:]]", "[![:digit:]x]*", "[b-a]", "[a-b]", "[]a]", "[^-]", "[a", "[[:x:]]", "é", "*é")
)
odd = st.text(alphabet="ab*?[]!-\\/.^# ", min_size=1, max_size=8)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    body = draw(st.one_of(st.lists(st.one_of(segments, sets), min_size=1, max_size=3).map("/".join), odd))
    start = draw(st.sampled_from(("", "", "", "!", "/", "!/", "#", " ")))
    return start + body + draw(st.sampled_from(("", "", "/", " ", "  ", "\r")))


rules = st.lists(patterns(), max_size=4)


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, env=environment, check=False).stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tree")
    git(top, "init", "-q")
    for path in PATHS:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).touch()
    return top


def kept_by_adamas(top: Path) -> set[str]:
    keep = Filter(Choice(Selection(hidden=True)), IgnoreRules(str(top), (".gitignore",)))
    return {path for path in PATHS if keep.keeps_file(path)}


def kept_by_git(top: Path) -> set[str]:
    ignored = git(top, "check-ignore", "--no-index", "--stdin", "-z", stdin="\0".join(PATHS).encode())
    return set(PATHS) - {os.fsdecode(path) for path in ignored.split(b"\0")}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at_top=rules, inside=rules, deeper=rules)
def test_verdicts_equal_git_check_ignore(
    tree: Path, at_top: list[str], inside: list[str], deeper: list[str]
) -> None:
    for folder, lines in (("", at_top), ("a", inside), ("a/b", deeper)):
        (tree / folder / ".gitignore").write_text("\n".join(lines), encoding="utf-8", newline="")
    assert kept_by_adamas(tree) == kept_by_git(tree)


def write(path: Path, text: str = "text\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def kept(top: Path, selection: Selection, *paths: str) -> list[str]:
    keep = Filter(Choice(selection), IgnoreRules(str(top), (".gitignore", ".ignore")))
    return [path for path in paths if keep.keeps_file(path)]


def test_rules_do_not_leak_to_a_sibling_and_hold_below(tmp_path: Path) -> None:
    write(tmp_path / "left/.gitignore", "*.log\n")
    (tmp_path / "right").mkdir()
    paths = ("left/a.log", "left/deep/er/a.log", "right/a.log", "a.log")
    assert kept(tmp_path, Selection(), *paths) == ["right/a.log", "a.log"]


def test_inner_rules_go_before_outer_ones_and_dot_ignore_before_gitignore(tmp_path: Path) -> None:
    write(tmp_path / ".gitignore", "*.log\n*.tmp\n")
    write(tmp_path / "in/.gitignore", "!keep.log\n")
    write(tmp_path / ".ignore", "!b.tmp\n")
    paths = ("keep.log", "in/keep.log", "in/other.log", "a.tmp", "b.tmp")
    assert kept(tmp_path, Selection(), *paths) == ["in/keep.log", "b.tmp"]


def test_nothing_below_an_ignored_folder_is_taken_back(tmp_path: Path) -> None:
    write(tmp_path / ".gitignore", "build/\n!build/keep.txt\n")
    assert kept(tmp_path, Selection(), "build/keep.txt", "keep.txt") == ["keep.txt"]


def test_windows_line_ends_byte_order_marks_and_broken_patterns_in_ignore_files(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_bytes(b"\xef\xbb\xbfa.txt\r\n[\r\nback\\\r\n\xc3\xa9*\r\n")
    assert kept(tmp_path, Selection(), "a.txt", "b.txt", "état") == ["b.txt"]


def test_a_path_may_be_deeper_than_pythons_stack(tmp_path: Path) -> None:
    write(tmp_path / "d/.gitignore", "*.log\n")
    below = "d/" * 1500
    assert kept(tmp_path, Selection(), below + "a.txt", below + "a.log") == [below + "a.txt"]


def test_include_and_exclude_work_together(tmp_path: Path) -> None:
    selection = Selection(include=("*.py", "docs/"), exclude=("test_*", "!test_keep.py", "/docs/old"))
    paths = ("a.py", "a.md", "docs/a.md", "docs/old/a.md", "x/docs/old/a.md", "x/test_a.py", "x/test_keep.py")
    expected = ["a.py", "docs/a.md", "x/docs/old/a.md", "x/test_keep.py"]
    assert kept(tmp_path, selection, *paths) == expected


def test_git_is_left_out_always(tmp_path: Path) -> None:
    paths = (".profile", ".github/ci.yml", "a/.b/c", ".git/config", "a/.git", "a/b")
    for hidden in (False, True):
        expected = [".profile", ".github/ci.yml", "a/.b/c", "a/b"]
        assert kept(tmp_path, Selection(hidden=hidden), *paths) == expected


def test_hidden_is_what_begins_with_a_dot_or_lies_below_it() -> None:
    paths = (".profile", ".github/ci.yml", "a/.b/c", "a/b", ".env", ".env.example", ".github/.cache/x")
    choice = Choice(Selection())
    hidden = [path for path in paths if choice.hides(path, is_folder=False)]
    assert hidden == [".profile", "a/.b/c", ".github/.cache/x"]
    assert not any(Choice(Selection(hidden=True)).hides(path, is_folder=False) for path in paths)


@pytest.mark.parametrize("pattern", ["[", "!", "a\\", "[[:x:]]"])
def test_a_pattern_that_is_no_pattern_is_a_usage_error(pattern: str) -> None:
    with raises_told(UsageError, match="--exclude needs a pattern"):
        Choice(Selection(exclude=("*.md", pattern)))
