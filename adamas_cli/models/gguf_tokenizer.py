"""The tokenizer of a GGUF file, splitting text as the model's own does.

A GGUF file holds the vocabulary and merges, and only the *name* of the rule that splits text before them.
What transformers makes of that name differs between its versions and misses some rules (SmolLM2's single
digits, Qwen2's NFC), so those of the families that this tool is used with are spelled out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_LEVEL = "gpt2"  # `tokenizer.ggml.model` of every byte-level BPE vocabulary


@dataclass(frozen=True)
class Splitting:
    """How a byte-level BPE vocabulary wants its text cut into pieces."""

    pattern: str | None = None  # None is GPT-2's own
    single_digits: bool = False  # cut before the pattern applies
    nfc: bool = False


_WORDS_AND_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = Splitting(pattern=_WORDS_AND_DIGITS.format(digits=""), nfc=True)
_LLAMA3 = Splitting(pattern=_WORDS_AND_DIGITS.format(digits="{1,3}"))
_DIGITS = Splitting(single_digits=True)

SPLITTINGS = {
    "gpt-2": Splitting(),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": Splitting(single_digits=True, nfc=True),
    "qwen2": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}
"""By `tokenizer.ggml.pre`, the name that llama.cpp gave each rule."""


def tokenizer_from_gguf(path: Path, metadata: dict[str, Any], progress: Progress) -> PreTrainedTokenizerBase:
    """The tokenizer that `path` describes; `metadata` are the file's keys.

    Says so when the file names a rule that is not in SPLITTINGS.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    if metadata.get("tokenizer.ggml.model") == BYTE_LEVEL:
        rule = metadata.get("tokenizer.ggml.pre", "default")
        splitting = SPLITTINGS.get(rule)
        if splitting is None:
            progress.note(
                f"text is split as transformers does for {rule!r}; token counts may be slightly off"
            )
        else:
            _apply(splitting, tokenizer)
    return tokenizer


def _apply(splitting: Splitting, tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None)
    steps: list[pre_tokenizers.PreTokenizer] = []
    if splitting.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level
    backend.normalizer = normalizers.NFC() if splitting.nfc else None
