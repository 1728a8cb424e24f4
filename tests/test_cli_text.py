"""Text streamed to the terminal comes out the same however it is split; and the defaults of options."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamas_cli.commands.options import parse_length
from adamas_cli.reasoning import ReasoningSplitter, State
from adamas_cli.sanitize import Sanitizer, one_line, plain
from adamas_cli.settings import DecodingSettings
from adamas_cli.terminal.markdown import BlockStream

ESCAPES = ["\x1b", "[", "31", "m", "]0;t", "\x07", "\\", "\x9b"]
TAGS = ["<", "<think>", "</think>", "</thi"]
BLOCKS = ["- x\n", "```\n", "---\n", "| a | b |\n", "|---|---|\n", "> q\n", "1. y\n", "# h\n", "\n\n"]
FRAGMENTS = st.sampled_from(["a", "é", " ", "\n", *ESCAPES, *TAGS, *BLOCKS])
PIECES = st.lists(FRAGMENTS, max_size=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;c3RlYWw=\x07", ""),
        ("a\rb\x08c\x00d\x7fe", "abcde"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x9b2Jclear", "clear"),
        ("naïve 達西 🙂", "naïve 達西 🙂"),
    ],
)
def test_escape_codes_are_stripped(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_a_file_name_stays_on_one_line() -> None:
    assert one_line("a\nb\t\x1b[1mc") == "a b c"


@given(PIECES)
def test_sanitized_pieces_hold_no_control_characters(pieces: list[str]) -> None:
    sanitizer = Sanitizer()
    out = "".join(map(sanitizer.feed, pieces)) + sanitizer.flush()
    assert not [character for character in out if ord(character) < 32 and character not in "\t\n"]
    assert not set("\x7f\x9b") & set(out)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_ordinary_text_is_passed_on_at_once(text: str) -> None:
    assert Sanitizer().feed(text) == text


def split(pieces: list[str], *, thinking: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(state=State.THOUGHT if thinking else State.START)
    parts = [part for piece in pieces for part in splitter.feed(piece)] + splitter.flush()
    assert all(text for _, text in parts)
    thought, said = ("".join(text for kind, text in parts if kind is wanted) for wanted in (True, False))
    return thought, said


@pytest.mark.parametrize(
    ("text", "thinking", "expected"),
    [
        ("<think>\nHe is rich.\n</think>\n\nMr. Darcy.", False, ("He is rich.\n", "Mr. Darcy.")),
        ("He is rich.</think>Mr. Darcy.", True, ("He is rich.", "Mr. Darcy.")),
        ("Use <think> to think.", False, ("", "Use <think> to think.")),
        ("<thin", False, ("", "<thin")),
        ("<think>never closed </thi", False, ("never closed </thi", "")),
        ("<think></think>", False, ("", "")),
    ],
)
def test_reasoning_is_split_off(text: str, thinking: bool, expected: tuple[str, str]) -> None:
    assert split([text], thinking=thinking) == expected
    assert split(list(text), thinking=thinking) == expected


@given(PIECES, st.booleans())
def test_reasoning_is_split_the_same_in_any_pieces(pieces: list[str], thinking: bool) -> None:
    whole = split(["".join(pieces)], thinking=thinking)
    assert split(pieces, thinking=thinking) == whole
    assert split(list("".join(pieces)), thinking=thinking) == whole


@given(PIECES)
def test_blocks_lose_nothing_and_do_not_depend_on_the_pieces(pieces: list[str]) -> None:
    def blocks(parts: list[str]) -> list[str]:
        stream = BlockStream()
        return [block for part in parts for block in stream.feed(part)] + stream.flush()

    text = "".join(pieces)
    found = blocks(list(text))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert "".join(found) == "".join(blocks(pieces))


@pytest.mark.parametrize(
    ("text", "number"), [("32768", 32768), ("32k", 32768), ("32K", 32768), ("1m", 1 << 20)]
)
def test_lengths(text: str, number: int) -> None:
    assert parse_length(text) == number


def test_options_default_to_what_the_engine_defaults_to() -> None:
    from adamas_cli.engine.attention import AttentionSettings

    options, settings = DecodingSettings(), AttentionSettings()
    assert (options.attn, options.dense_layers) == (settings.kind, settings.dense_layers)
    assert options.scorer == settings.sparse.scorer
    assert options.budget is None  # depends on the length of the context
    assert options.prefill_chunk is None  # depends on the device


def test_a_full_disk_is_no_fault_of_the_program():
    from errno import EINVAL, ENOSPC

    from adamas_cli.errors import as_user_error

    full = as_user_error(OSError(ENOSPC, "No space left on device"))
    assert full.message == "No space left on device"
    assert "bug in adamas" in as_user_error(OSError(EINVAL, "Invalid argument")).message


def test_arguments_the_wrong_way_round_are_turned(tmp_path):
    import pytest

    from adamas_cli.commands.ask import split_arguments
    from adamas_cli.errors import UsageError

    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=r"question comes last, as in: adamas ask .*a\.txt 'Who was it\?'"):
        split_arguments(["Who was it?", str(tmp_path / "a.txt")], [], None)
