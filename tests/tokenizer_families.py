"""Small tokenizers of every family that `adamas_cli.prompt.tokens` supports, trained on text that comes with
Python.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from adamas_cli.models.vocabulary.patterns import LLAMA3, QWEN2
from adamas_cli.prompt.hard_sample import HARD_SAMPLE

FAST = ("gpt2", "digits", "qwen2", "llama3")
PIECEWISE = (*FAST, "gemma")
FAMILIES = (*PIECEWISE, "unknown")


@cache
def prose() -> str:
    """Python's documentation (about 440,000 characters): English, code, tables, white space."""
    return "\n".join(topics.values())


def _byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator([prose()[:150_000], *[HARD_SAMPLE] * 10], trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return tokenizer


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gemma() -> Tokenizer:
    """Merges over whole lines with spaces as blocks, and bytes for whatever the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # Trained on lines, like SentencePiece, and on words with the preceding space.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n+|▁*[^▁\n]*"), "isolated")
    tokens = ["<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=2000, show_progress=False, special_tokens=tokens)
    tokenizer.train_from_iterator([prose()[:150_000]], trainer)
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = saved["added_tokens"][:2]
    saved["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    saved["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    return Tokenizer.from_str(json.dumps(saved))


def _with_every_split(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary as converted from tiktoken: whole words first, every split a merge."""
    saved = json.loads(tokenizer.to_str())
    vocabulary = saved["model"]["vocab"]
    special = {token["content"] for token in saved["added_tokens"]}
    saved["model"]["merges"] = [
        [token[:n], token[n:]]
        for token in sorted(vocabulary.keys() - special, key=vocabulary.__getitem__)
        for n in range(1, len(token))
        if token[:n] in vocabulary and token[n:] in vocabulary
    ]
    saved["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(saved))


def build(family: str) -> Tokenizer:
    """A trained tokenizer of `family`, one of FAMILIES."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    match family:
        case "gpt2":
            return _byte_level(gpt2, None)
        case "digits":
            return _byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), gpt2]), None)
        case "qwen2":
            return _byte_level(_split(QWEN2), normalizers.NFC())
        case "llama3":
            return _with_every_split(_byte_level(_split(LLAMA3), None))
        case "gemma":
            return _gemma()
        case "unknown":
            return _byte_level(_split(r"\w+|\W"), None)
    raise ValueError(family)


def save(tokenizer: Tokenizer, directory: Path) -> Path:
    """Write tokenizer.json into `directory` and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def truth(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """The library's tokens for a whole text at once, without any added token."""
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = []
    saved["post_processor"] = None
    plain = Tokenizer.from_str(json.dumps(saved))
    return lambda text: plain.encode(text).ids
