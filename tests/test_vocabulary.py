"""A tokenizer made from a GGUF file's keys equals the publisher's.

`llama_cpp_pieces.json` holds the byte lengths of llama.cpp's pieces of some texts by each rule; null where
llama.cpp only approximates the publisher's pattern, which is then in `PUBLISHED`.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import build, prose
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from told import Notes

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.vocabulary import end_ids, tokenizer_of
from adamas_cli.models.vocabulary.splitting import SPLITTINGS
from adamas_cli.progress import Silent
from adamas_cli.prompt.hard_sample import HARD_SAMPLE

RECORDED = json.loads((Path(__file__).parent / "llama_cpp_pieces.json").read_text(encoding="utf-8"))
FAMILY_OF = {rule: family for family in RECORDED["families"] for rule in family["rules"]}

_NOT_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"{_NOT_WORD}{_UPPER}*{_LOWER}+{_ENDING}|{_NOT_WORD}{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "llama-bpe": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "tekken": [
        rf"{_NOT_WORD}{_UPPER}*{_LOWER}+|{_NOT_WORD}{_UPPER}+{_LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "gpt-4o": [_O200K],
    "llama4": [_O200K],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", _O200K],
    "kimi-k2": [
        "|".join(
            [
                r"[\p{Han}]+",
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
                r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
                r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            ]
        )
    ],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"],
}
TEXTS = st.text(
    st.sampled_from(
        " \n\r\t'sStTllveREDm019٣²Ⅷaé\u0301ßǅЖяकि中あー한!?.,;:()/|$=^~_-…。“👍🏽\u200d\u3000\xa0\x85"
    ),
    max_size=60,
)


def vocabulary(*more: str) -> list[str]:
    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", *more]


def keys(rule: str | None = "gpt-2", model: str = "gpt2", **others: Any) -> dict[str, Any]:
    """The keys of a file with a byte-level vocabulary; None leaves one out."""
    tokens = others.pop("tokens", vocabulary("<end>", "<tool>", "[PAD0]"))
    plain = {
        "model": model,
        "pre": rule,
        "tokens": tokens,
        "token_type": [*[1] * (len(tokens) - 3), 3, 4, 5],
        "merges": ["t h", "th e"],
        "eos_token_id": len(tokens) - 3,
        **others,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in plain.items() if value is not None}


def of_family(family: str, rule: str) -> tuple[Tokenizer, Any]:
    """A trained tokenizer, and the one made from what a GGUF file would say about it."""
    trained = build(family)
    model = json.loads(trained.to_str())["model"]
    added = {id_: token.special for id_, token in trained.get_added_tokens_decoder().items()}
    ids = {**model["vocab"], **{t.content: i for i, t in trained.get_added_tokens_decoder().items()}}
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = [{None: 1, True: 3, False: 4}[added.get(id_)] for id_ in range(len(tokens))]
    merges = [" ".join(merge) for merge in model["merges"]]
    made = tokenizer_of(keys(rule, tokens=tokens, token_type=kinds, merges=merges), Silent())
    return trained, made


def pieces(rule: str, text: str) -> list[int]:
    splitter = tokenizer_of(keys(rule), Silent()).backend_tokenizer.pre_tokenizer
    return [len(piece) for piece, _ in splitter.pre_tokenize_str(text)]


# how text is split


@pytest.mark.parametrize("rule", sorted(SPLITTINGS))
def test_pieces_are_those_of_llama_cpp(rule: str) -> None:
    recorded = FAMILY_OF[rule]["pieces"]
    assert sum(lengths is None for lengths in recorded) <= 2
    for text, lengths in zip(RECORDED["texts"], recorded, strict=True):
        if lengths is not None:
            assert pieces(rule, text) == lengths, text


def published(rule: str) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in PUBLISHED[rule]]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])


@pytest.mark.parametrize("rule", PUBLISHED)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_pieces_are_those_of_the_published_pattern(rule: str, text: str) -> None:
    ours = _splitters.setdefault(rule, tokenizer_of(keys(rule), Silent()).backend_tokenizer.pre_tokenizer)
    for sample in (text, HARD_SAMPLE):
        assert ours.pre_tokenize_str(sample) == published(rule).pre_tokenize_str(sample)


_splitters: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        ("gpt2", "gpt-2"),
        ("digits", "smollm"),
        ("digits", "starcoder"),
        ("qwen2", "qwen2"),
        ("llama3", "llama3"),
    ],
)
def test_tokens_are_those_of_the_trained_tokenizer(family: str, rule: str) -> None:
    trained, made = of_family(family, rule)
    for text in (HARD_SAMPLE, prose()[:100_000]):
        assert made(text, add_special_tokens=False).input_ids == trained.encode(text).ids
    assert made.decode(made("the\n quick é").input_ids) == "the\n quick é"


@pytest.mark.parametrize(
    ("rule", "module", "name"),
    [
        ("qwen2", "qwen2", "Qwen2Tokenizer"),
        ("qwen35", "qwen3_5", "Qwen3_5Tokenizer"),
        ("command-r", "cohere", "CohereTokenizer"),
        ("olmo", "gpt_neox", "GPTNeoXTokenizer"),
        ("gpt-2", "gpt2", "GPT2Tokenizer"),
    ],
)
def test_text_is_prepared_as_transformers_own_class_does(rule: str, module: str, name: str) -> None:
    import importlib

    defined = importlib.import_module(f"transformers.models.{module}.tokenization_{module}")
    theirs = getattr(defined, name)().backend_tokenizer
    ours = tokenizer_of(keys(rule), Silent()).backend_tokenizer
    text = HARD_SAMPLE
    if theirs.normalizer is not None:
        assert ours.normalizer is not None
        text = theirs.normalizer.normalize_str(HARD_SAMPLE)
        assert ours.normalizer.normalize_str(HARD_SAMPLE) == text
    else:
        assert ours.normalizer is None
    assert ours.pre_tokenizer.pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text)


@pytest.mark.parametrize("rule", [*sorted(SPLITTINGS), None, "of-tomorrow"])
def test_a_note_comes_only_where_splitting_may_be_off(rule: str | None) -> None:
    notes = Notes()
    tokenizer_of(keys(rule), notes)
    assert len(notes.lines) == (rule not in SPLITTINGS)


# SentencePiece


def lines_of_words() -> tuple[list[str], list[float], list[int]]:
    """A vocabulary of pieces in the order of training, and so of scores."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("\n+|▁*[^▁\n]*"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=1500, show_progress=False)
    trained.train_from_iterator([prose()[:100_000].replace(" ", "▁")], trainer)
    model = json.loads(trained.to_str())["model"]
    made = dict.fromkeys("".join(merge) for merge in model["merges"])
    letters = [token for token in model["vocab"] if token not in made]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    runs = ["\n\n", "\n\n\n", "  ", "    "]
    learned = [token for token in made if token.replace("▁", " ") not in runs]
    tokens = [*special, *runs, *learned, *letters]
    scores = [*[0.0] * (len(special) + len(runs)), *(-float(n) for n in range(len(learned) + len(letters)))]
    kinds = [2, 3, 3, *[6] * 256, *[4] * len(runs), *[1] * (len(learned) + len(letters))]
    return tokens, scores, kinds


def greedy(text: str, tokens: list[str], scores: list[float], kinds: list[int]) -> list[str]:
    """SentencePiece by definition: join the neighbours whose piece has the highest score, left first."""
    score = {token: s for token, s, kind in zip(tokens, scores, kinds, strict=True) if kind == 1}
    parts = list(text.replace(" ", "▁"))
    while True:
        best = max(
            ((score[a + b], -n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in score),
            default=None,
        )
        if best is None:
            break
        n = -best[1]
        parts[n : n + 2] = ["".join(parts[n : n + 2])]
    known = set(tokens)
    return [
        piece
        for part in parts
        for piece in ([part] if part in known else [f"<0x{byte:02X}>" for byte in part.encode()])
    ]


PIECES = lines_of_words()


def sentencepiece(**others: Any) -> Any:
    tokens, scores, kinds = PIECES
    own = {"tokens": tokens, "merges": None, "scores": scores, "token_type": kinds, "eos_token_id": 2}
    return tokenizer_of(keys(None, "llama", **(own | others)), Notes())


_without_prefix = sentencepiece(add_space_prefix=False, add_bos_token=False)


@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.sampled_from([*prose()[:20_000].split(), "é", "中", "👍"]), max_size=8).map(" ".join))
def test_merges_follow_the_scores(text: str) -> None:
    assert _without_prefix.tokenize(text) == greedy(text, *PIECES)


def test_runs_are_single_tokens_wherever_they_stand() -> None:
    assert _without_prefix.tokenize("the\n\n\nthe    ") == ["the", "\n\n\n", "the", "▁▁▁▁"]
    assert _without_prefix.decode(_without_prefix("the\n\n  the é").input_ids) == "the\n\n  the é"


def test_runs_that_are_words_like_others_wait_for_their_score() -> None:
    tokens, scores, kinds = PIECES
    plain = [1 if token in ("  ", "    ") else kind for token, kind in zip(tokens, kinds, strict=True)]
    spaces = [token.replace(" ", "▁") for token in tokens]
    late = [-1e6 if token in ("▁▁", "▁▁▁▁") else score for token, score in zip(spaces, scores, strict=True)]
    tokenizer = sentencepiece(tokens=spaces, token_type=plain, scores=late)
    word = next(
        token for token in spaces if token[0] == "▁" and token[1:].isalpha() and f"▁{token}" not in spaces
    )
    assert tokenizer.tokenize(word.replace("▁", " ")) == ["▁", word]


def test_a_text_begins_with_a_space_and_the_first_token_unless_the_file_says_otherwise() -> None:
    both = sentencepiece()
    assert both.convert_ids_to_tokens(both("the").input_ids) == ["<s>", "▁the"]
    assert both.decode(both("the").input_ids, skip_special_tokens=True) == "the"
    neither = sentencepiece(add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    assert neither.convert_ids_to_tokens(neither("the").input_ids) == ["the", "</s>"]


def test_merges_over_whole_lines_are_the_same_as_gemmas() -> None:
    trained = build("gemma")
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    kinds = [3, 2, *[6] * 256, *[1] * (len(tokens) - 258)]
    merges = [" ".join(merge) for merge in model["merges"]]
    roles = {"bos_token_id": 0, "unknown_token_id": 1, "eos_token_id": None, "scores": None}
    made = tokenizer_of(
        keys(None, "gemma4", tokens=tokens, token_type=kinds, merges=merges, **roles), Notes()
    )
    text = "\n".join(line for line in (HARD_SAMPLE + prose()[:50_000]).split("\n") if "  " not in line)
    assert made(text).input_ids == [0, *trained.encode(text, add_special_tokens=False).ids]


# roles, flags and templates


def test_control_tokens_are_special_and_unused_ones_are_left_out() -> None:
    tokenizer = tokenizer_of(keys(), Silent())
    end = len(vocabulary())
    assert tokenizer("the<end><tool>").input_ids == [end - 1, end, end + 1]
    assert tokenizer.eos_token == "<end>"
    assert tokenizer.decode([end, end + 1], skip_special_tokens=True) == "<tool>"
    assert len(tokenizer) == end + 2


def test_the_end_of_a_turn_is_special_even_if_its_file_calls_it_a_word() -> None:
    tokens = vocabulary("<end>", "<|im_end|>", "[PAD0]")
    tokenizer = tokenizer_of(keys(tokens=tokens), Silent())
    assert tokenizer.decode([len(tokens) - 2], skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    ("rule", "flag", "begins"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("gpt-2", True, True)],
)
def test_the_first_token_is_added_by_the_flag_or_else_the_rule(
    rule: str, flag: bool | None, begins: bool
) -> None:
    first = len(vocabulary())
    tokenizer = tokenizer_of(keys(rule, bos_token_id=first, add_bos_token=flag), Silent())
    assert tokenizer("the").input_ids == [*([first] if begins else []), first - 1]


def test_templates_are_found_by_their_names() -> None:
    def template(**others: str) -> Any:
        named = {f"tokenizer.{name}": text for name, text in others.items()}
        return tokenizer_of({**keys(), **named}, Silent()).chat_template

    assert template() is None
    assert template(chat_template="A") == "A"
    assert template(**{"chat_template": "A", "chat_template.tool_use": "B"}) == {
        "default": "A",
        "tool_use": "B",
    }
    assert template(**{"chat_template.rag": "B"}) == {"default": "B", "rag": "B"}


def test_every_end_that_the_file_names_ends_an_answer() -> None:
    assert end_ids(keys(eot_token_id=7, eom_token_id=3, eos_token_id=7)) == [3, 7]


# what is refused


@pytest.mark.parametrize(
    ("model", "named"),
    [("bert", "WordPiece"), ("rwkv", "RWKV"), ("plamo2", "PLaMo"), ("t5", "unigrams"), ("x", "'x'")],
)
def test_other_kinds_are_refused_by_name(model: str, named: str) -> None:
    with pytest.raises(ModelUnavailableError, match=named) as caught:
        tokenizer_of(keys(model=model), Silent())
    assert len(caught.value.message.splitlines()) <= 2


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"token_type": [1, 3]}, "different lengths"),
        ({"merges": None}, "no merges"),
        ({"merges": ["the"]}, "not a pair"),
        ({"tokens": [], "token_type": None, "eos_token_id": None}, "no tokens"),
        ({"tokens": 5, "token_type": None, "eos_token_id": None}, "not a list"),
    ],
)
def test_damaged_lists_are_told(broken: dict[str, Any], told: str) -> None:
    plain = keys()
    for name, value in broken.items():
        plain[f"tokenizer.ggml.{name}"] = value
        if value is None:
            del plain[f"tokenizer.ggml.{name}"]
    with pytest.raises(ValueError, match=told):
        tokenizer_of(plain, Silent())


def test_a_token_that_stands_twice_and_merges_of_none_do_no_harm() -> None:
    tokens = vocabulary("the", "<end>", "<tool>", "[PAD0]")
    tokenizer = tokenizer_of(keys(tokens=tokens, merges=["t h", "th e", "q q", "t h"]), Silent())
    assert tokenizer("the").input_ids == [tokens.index("the")]
