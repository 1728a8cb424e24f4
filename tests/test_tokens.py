"""Tokens equal those of the model's own tokenizer, on both paths, in one piece or many."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import FAMILIES, FAST, PIECEWISE, build, prose, save, truth

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.prompt import blocks, tokens
from adamas_cli.prompt.hard_sample import HARD_SAMPLE
from adamas_cli.prompt.tokens import Tokenizer

if TYPE_CHECKING:
    from adamas_cli.models import ModelFiles

REPOSITORY = Path(__file__).parent.parent

# ruff: noqa: RUF001 - look-alike characters are what these texts are for

NASTY = (
    "I'll don't 'tis we'LL x's'll\n  \n\t y  \r\n\r\n. \n.\n\n-- !\n 12345 6 7a 8\n  9\n"
    "e\u0301 o\u0302\u0323 か\u3099 \u1100\u1161\u11a8 한\u11a8 字。字，「字」\n字 👩‍👩‍👧 "
    "\u00a0\u3000x\u2028y\x85z\x1c a▁b ▁▁ c"
    "<|im_end|><tool_call><0x0A>\x00\x13\ufffd"
)
FRAGMENTS = [
    *" \n\r\t'sltreSaé1٣字。か\u3099\u0301\u1161\u11a8가.-/\x0b\x1c\x85\xa0\u2028\u3000\U0001f469\u200d▁",
    *[
        "\r\n",
        "  ",
        "'ll",
        "'S",
        "\n\n",
        "word",
        " the",
        "123",
        "<|im_end|>",
        "<tool_call>",
        "\U00011de1",
        "\U00040000",
    ],
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join) | st.text(max_size=60)
texts = texts.filter(lambda text: text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))


class Family(NamedTuple):
    reference: tokenizers.Tokenizer
    directory: Path
    truth: Callable[[str], list[int]]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    made = {}
    for family in FAMILIES:
        reference = build(family)
        made[family] = Family(reference, save(reference, tmp_path_factory.mktemp(family)), truth(reference))
    return made


@pytest.fixture(params=["model", "tiktoken"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one of the two paths from the first character on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "FAST_FROM", 0 if request.param == "tiktoken" else sys.maxsize)
        yield request.param


def joined(ids: Iterator[np.ndarray]) -> list[int]:
    return [token_id for block in ids for token_id in block.tolist()]


@pytest.mark.parametrize("family", FAMILIES)
def test_encodes_as_the_model_does(families: dict[str, Family], family: str, path: str) -> None:
    tokenizer = Tokenizer.from_directory(families[family].directory)
    for text in ("", " ", "word", NASTY, HARD_SAMPLE, prose()[:150_000] + NASTY):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == families[family].truth(text)


def test_both_paths_are_what_is_tested(families: dict[str, Family], path: str) -> None:
    tokenizer = Tokenizer.from_directory(families["qwen2"].directory)
    fast = tokenizer._fast_path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fast), "encode", lambda self, text: np.array([7], dtype=np.int32))
        assert (tokenizer.encode("plain words").tolist() == [7]) == (path == "tiktoken")


@pytest.mark.parametrize("family", FAMILIES)
def test_says_which_path_it_has(families: dict[str, Family], family: str) -> None:
    tokenizer = Tokenizer.from_directory(families[family].directory)
    assert tokenizer.fast is (family in FAST)
    assert bool(tokenizer.reason) is (family not in FAST)
    assert tokenizer.piecewise is (family in PIECEWISE)


@pytest.mark.parametrize("family", FAST)
def test_long_text_that_is_announced_takes_the_fast_path_at_once(
    families: dict[str, Family], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []
    real = tokens.FastPath.encode
    monkeypatch.setattr(tokens.FastPath, "encode", lambda self, text: served.append(text) or real(self, text))
    tokenizer = Tokenizer.from_directory(families[family].directory)
    assert tokenizer.fast  # building it encodes a sample
    served.clear()
    want = tokenizer.encode("a text\n").tolist()
    tokenizer.expect(tokens.FAST_FROM - 1)
    assert tokenizer.encode("a text\n").tolist() == want
    assert served == []
    tokenizer.expect(tokens.FAST_FROM)
    assert tokenizer.encode("a text\n").tolist() == want
    assert "".join(served) == "a text\n"


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_random_unicode(families: dict[str, Family], family: str, text: str) -> None:
    want = families[family].truth(text)
    tokenizer = _tokenizer(families[family].directory)
    for fast_from in (0, sys.maxsize):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokens, "FAST_FROM", fast_from)
            patch.setattr(blocks, "BLOCK", 5)
            assert tokenizer.encode(text).tolist() == want


_built: dict[Path, Tokenizer] = {}


def _tokenizer(directory: Path) -> Tokenizer:
    """One tokenizer for all examples of a property."""
    if directory not in _built:
        _built[directory] = Tokenizer.from_directory(directory)
    return _built[directory]


@pytest.mark.parametrize("family", PIECEWISE)
def test_a_seam_changes_no_token(families: dict[str, Family], family: str) -> None:
    seam = Tokenizer.from_directory(families[family].directory)._seam
    text = NASTY + HARD_SAMPLE
    want = families[family].truth(text)
    cuts = [match.start() for match in seam.finditer(text)]
    assert len(cuts) > 60
    for cut in cuts:
        left, right = (families[family].truth(part) for part in (text[:cut], text[cut:]))
        assert left + right == want, f"cut between {text[cut - 5 : cut]!r} and {text[cut : cut + 5]!r}"


@pytest.mark.parametrize("block", [3, 64, 1 << 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_may_be_cut_anywhere(
    families: dict[str, Family], family: str, block: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    tokenizer = Tokenizer.from_directory(families[family].directory)
    want = families[family].truth(NASTY)
    assert joined(tokenizer.stream(NASTY)) == want
    for cut in range(len(NASTY) + 1):
        assert joined(tokenizer.stream([NASTY[:cut], "", NASTY[cut:]])) == want


def test_a_stretch_without_a_seam_is_cut_where_the_text_says(families: dict[str, Family], path: str) -> None:
    tokenizer = Tokenizer.from_directory(families["gpt2"].directory)
    for stretch in ("a", " ", "\n", "=", "字", "1"):
        text = "some words " + stretch * (3 * blocks.LONGEST_WORD) + " and more words" * 10
        pieces = [text[start : start + 77_777] for start in range(0, len(text), 77_777)]
        ids = tokenizer.encode(text).tolist()
        assert joined(tokenizer.stream(pieces)) == ids
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    text = "some words " + "a" * blocks.LONGEST_WORD + " and more words"
    assert tokenizer.encode(text).tolist() == families["gpt2"].truth(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_never_becomes_a_control_token(families: dict[str, Family], family: str, path: str) -> None:
    reference, directory, _ = families[family]
    tokenizer = Tokenizer.from_directory(directory)
    assert set(tokenizer.control_tokens.values()) == set(reference.get_added_tokens_decoder())
    for name, token_id in tokenizer.control_tokens.items():
        text = f"a{name}b {name}\n"
        assert token_id not in tokenizer.encode(text)
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text).tolist())).decode() == text
        assert token_id in tokenizer.encode_template(text)
        assert tokenizer.token_bytes(token_id) == b""


def test_added_tokens_that_merges_spell_stay_text(tmp_path: Path) -> None:
    reference = build("gemma")
    newlines = tokenizers.AddedToken("\n\n", special=False, normalized=False)
    reference.add_tokens([newlines])
    assert reference.model.token_to_id("\n\n") == reference.token_to_id("\n\n")
    tokenizer = Tokenizer.from_directory(save(reference, tmp_path))
    assert "\n\n" not in tokenizer.control_tokens
    text = "a\n\nb\n\n\n\n\n c"
    assert tokenizer.encode(text).tolist() == reference.encode(text, add_special_tokens=False).ids
    assert tokenizer.token_bytes(reference.token_to_id("\n\n")) == b"\n\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_lone_surrogates_count_as_replacement_characters(
    families: dict[str, Family], family: str, path: str
) -> None:
    tokenizer = Tokenizer.from_directory(families[family].directory)
    assert tokenizer.encode("a\udc80b \ud83d").tolist() == tokenizer.encode("a\ufffdb \ufffd").tolist()
    assert joined(tokenizer.stream(["\ud83d", "\ude00"])) == tokenizer.encode("\ufffd\ufffd").tolist()
    assert tokenizer.encode_template("\udc80").tolist() == tokenizer.encode("\ufffd").tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_gives_the_text_in_whole_characters(families: dict[str, Family], family: str) -> None:
    tokenizer = Tokenizer.from_directory(families[family].directory)
    text = "naïve 字🎉👩‍👩‍👧 end\n  x"
    decoder = tokenizer.decoder()
    parts = [decoder.feed(token_id) for token_id in tokenizer.encode(text).tolist()]
    assert "\ufffd" not in "".join(parts)
    assert "" in parts  # something was held back
    assert "".join(parts) + decoder.flush() == text


def test_decoder_replaces_what_stays_unfinished(families: dict[str, Family]) -> None:
    tokenizer = Tokenizer.from_directory(families["gpt2"].directory)
    first = next(i for i in range(300) if tokenizer.token_bytes(i) == b"\xf0")
    letter = next(i for i in range(300) if tokenizer.token_bytes(i) == b"a")
    decoder = tokenizer.decoder()
    assert [decoder.feed(first), decoder.feed(letter), decoder.feed(first), decoder.flush()] == [
        "",
        "\ufffda",
        "",
        "\ufffd",
    ]
    assert tokenizer.token_bytes(10**6) == b""


def test_a_missing_or_damaged_tokenizer_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelUnavailableError, match="cannot be read"):
        Tokenizer.from_directory(tmp_path)


def test_threads_share_one_fast_path(families: dict[str, Family], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "FAST_FROM", 0)
    built = []
    original = tokens.FastPath.__init__
    monkeypatch.setattr(
        tokens.FastPath, "__init__", lambda self, *args: (built.append(1), original(self, *args))[1]
    )
    tokenizer = Tokenizer.from_directory(families["qwen2"].directory)
    want = tokenizer.encode_template(NASTY.replace("<", "")).tolist()
    results: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: results.append(tokenizer.encode(NASTY.replace("<", "")).tolist()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [want] * 4
    assert len(built) == 1


def test_repository_and_documentation_with_a_real_model(smollm2: ModelFiles, path: str) -> None:
    tokenizer = Tokenizer.from_directory(smollm2.directory)
    assert tokenizer.fast, tokenizer.reason
    ids = truth(tokenizers.Tokenizer.from_file(str(smollm2.directory / "tokenizer.json")))
    sources = [*REPOSITORY.glob("adamas_cli/*.py"), *REPOSITORY.glob("tests/*.py"), *REPOSITORY.glob("*.md")]
    assert len(sources) > 10
    for text in (*(source.read_text(encoding="utf-8") for source in sources), NASTY, HARD_SAMPLE, prose()):
        assert tokenizer.encode(text).tolist() == ids(text)
