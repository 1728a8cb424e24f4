"""The fast path is refused wherever tiktoken would give other tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizer_families import build, save, truth

from adamas_cli.prompt import tokens
from adamas_cli.prompt.tokens import Tokenizer

Json = dict[str, Any]


@pytest.fixture(scope="module")
def saved() -> str:
    return build("gpt2").to_str()


def written(saved: str, directory: Path, change: Callable[[Json], None]) -> Tokenizer:
    config = json.loads(saved)
    change(config)
    return Tokenizer.from_directory(save(tokenizers.Tokenizer.from_str(json.dumps(config)), directory))


def swap_two_merges(config: Json) -> None:
    merges = config["model"]["merges"]
    merges[5], merges[50] = merges[50], merges[5]


def whole_words_without_every_split(config: Json) -> None:
    config["model"]["ignore_merges"] = True


def lose_a_continuation_byte(config: Json) -> None:
    lost = "Ģ"  # stands for byte 0x80
    config["model"]["merges"] = []
    config["model"]["vocab"] = {
        token: n for token, n in config["model"]["vocab"].items() if len(token) == 1 and token != lost
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swap_two_merges, "not in the order of their token ids"),
        (whole_words_without_every_split, "do not list every split"),
        (lose_a_continuation_byte, "lacks the byte 0x80"),
        (lambda config: config.update(normalizer={"type": "Lowercase"}), "its normalizer"),
        (lambda config: config["pre_tokenizer"].update(use_regex=False), "its pre-tokenizer"),
        (lambda config: config["model"].update(unk_token="<|im_end|>"), "not a plain byte-level BPE"),
    ],
)
def test_refused_with_the_reason(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Json], None], reason: str
) -> None:
    monkeypatch.setattr(tokens, "FAST_FROM", 0)
    tokenizer = written(saved, tmp_path, change)
    assert not tokenizer.fast
    assert reason in tokenizer.reason
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("Then the end 12 x").tolist() == truth(reference)("Then the end 12 x")


def test_refused_where_the_merges_do_not_rebuild_a_token(tmp_path: Path) -> None:
    """`abc` is listed as ab + c, but b + c is joined first; tiktoken would take the whole word."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: n for n, character in enumerate(alphabet)}
    for token in ("bc", "ab", "abc"):
        vocabulary[token] = len(vocabulary)
    reference = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=[("b", "c"), ("a", "b"), ("ab", "c")])
    )
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert reference.encode("abc").tokens == ["a", "bc"]
    tokenizer = Tokenizer.from_directory(save(reference, tmp_path))
    assert "do not rebuild every token" in tokenizer.reason


def test_what_the_vocabulary_cannot_write_is_left_to_the_model(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library drops a byte missing from the vocabulary and merges around it; tiktoken would crash."""

    def lose_a_control_character(config: Json) -> None:
        model = config["model"]
        lost = "ē"  # stands for byte 0x13
        model["vocab"] = {token: n for token, n in model["vocab"].items() if lost not in token}
        model["merges"] = [merge for merge in model["merges"] if lost not in "".join(merge)]

    monkeypatch.setattr(tokens, "FAST_FROM", 0)
    tokenizer = written(saved, tmp_path, lose_a_control_character)
    assert tokenizer.fast, tokenizer.reason
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("=\x13=", "t\x13he", "the", "\x13"):
        assert tokenizer.encode(text).tolist() == truth(reference)(text)
    assert tokenizer.encode("=\x13=").tolist() == tokenizer.encode("==").tolist()
    assert len(tokenizer.encode("==")) == 1


def test_tokens_that_no_merge_makes_are_never_given(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "FAST_FROM", 0)

    def pad(config: Json) -> None:
        config["model"]["vocab"]["PADDING"] = 5000

    tokenizer = written(saved, tmp_path, pad)
    assert tokenizer.fast, tokenizer.reason
    assert 5000 not in tokenizer.encode("PADDING PADDING")
