"""How each kind of byte-level vocabulary splits text, by the rule's name in GGUF files."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adamas_cli.models.vocabulary import patterns as p


@dataclass(frozen=True)
class Splitting:
    """How a byte-level BPE vocabulary needs its text prepared.

    patterns: each splits the pieces of the previous one, into its matches and the text between them. nfc:
    Unicode is composed first. whole_words: a piece in the vocabulary is used directly, without merges. bos:
    texts begin with the `bos` token, unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    bos: bool = False


_GPT2 = Splitting((p.GPT2,))
_GPT2_NFC = replace(_GPT2, nfc=True)  # for GPT-NeoX
_DIGITS = Splitting((p.DIGIT, p.GPT2))
_LLAMA3 = Splitting((p.LLAMA3,), whole_words=True, bos=True)
_LLAMA3_BY_MERGES = Splitting((p.LLAMA3,))
_QWEN2 = Splitting((p.QWEN2,))
_QWEN2_NFC = replace(_QWEN2, nfc=True)
_BLOOM = Splitting((p.BLOOM,))
_GPT4O = Splitting((p.GPT4O,))
_TEKKEN = Splitting((p.TEKKEN,), whole_words=True, bos=True)
_DEEPSEEK_V3 = Splitting((p.UP_TO_THREE_DIGITS, p.IDEOGRAPHS_AND_KANA, p.DEEPSEEK_V3))
_BAILING = Splitting((p.BAILING,))
_TINY_AYA = Splitting((p.THREES_FROM_THE_RIGHT, p.GPT4O))

_FAMILIES = {
    _GPT2: "gpt-2 phi-2 jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum "
    "jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe",
    _GPT2_NFC: "mpt olmo modern-bert",
    _DIGITS: "smollm starcoder refact codeshell exaone minerva-7b mellum2",
    replace(_DIGITS, nfc=True): "command-r",
    _LLAMA3: "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    _LLAMA3_BY_MERGES: "dbrx smaug-bpe chatglm-bpe",
    replace(_LLAMA3, bos=False): "glm4 glm5",
    _QWEN2: "stablelm2 hunyuan solar-open grok-2 kormo",
    _QWEN2_NFC: "qwen2 deepseek-r1-qwen megrez f2llmv2",
    Splitting((p.QWEN35,), nfc=True): "qwen35",
    Splitting((p.WITHOUT_CONTRACTIONS,)): "ufakzeka",
    Splitting((p.LINES, p.QWEN2)): "laguna",
    Splitting((p.SEED_CODER,)): "seed-coder",
    Splitting((p.UP_TO_THREE_DIGITS, p.MINICPM5), whole_words=True): "minicpm5",
    Splitting((p.JAIS2,)): "jais-2",
    Splitting((p.EXAONE_MOE,)): "exaone-moe",
    _BAILING: "bailingmoe bailingmoe2 llada-moe",
    _TEKKEN: "tekken",
    _GPT4O: "gpt-4o llama4 kanana2 talkie minimax-m2",
    replace(_GPT4O, whole_words=True): "granite-embed-multi-97m",
    _TINY_AYA: "tiny_aya cohere2moe",
    Splitting((p.KIMI,)): "kimi-k2",
    _DEEPSEEK_V3: "deepseek-v3 hunyuan-dense hy_v4 joyai-llm",
    Splitting((p.UP_TO_THREE_DIGITS, p.IDEOGRAPHS_AND_KANA, p.SPARK, p.DIGIT)): "spark2_5",
    Splitting((p.THREES_FROM_THE_RIGHT, p.AFMOE_SCRIPTS, p.DEEPSEEK_V3)): "afmoe",
    Splitting((p.YOUTU_SCRIPTS, p.YOUTU), whole_words=True): "youtu",
    Splitting(
        (
            p.LINE_END,
            p.DEEPSEEK_CASED,
            p.DEEPSEEK_SYMBOLS,
            p.SPACE_AT_THE_END,
            p.DEEPSEEK_IDEOGRAPHS,
            p.DIGITS,
        )
    ): "deepseek-llm",
    Splitting(
        (p.LINE_END, p.LETTERS_WITH_SPACE, p.PUNCTUATION_WITH_SPACE, p.DEEPSEEK_IDEOGRAPHS, p.DIGIT)
    ): "deepseek-coder",
    Splitting((p.PUNCTUATION_OF_FALCON, p.GPT2, p.THREE_ASCII_DIGITS)): "falcon",
    Splitting((p.PUNCTUATION, p.GPT2, p.DIGITS, p.THREE_ASCII_DIGITS)): "default",
    _BLOOM: "bloom poro-chat gpt3-finnish",
    Splitting((p.BLOOM, p.DIGIT)): "viking",
    Splitting((p.DIGITS, p.BEFORE_EACH_THREE)): "superbpe",
    Splitting(p.CHAMELEON, bos=True): "chameleon",
}

SPLITTINGS = {name: splitting for splitting, names in _FAMILIES.items() for name in names.split()}
"""By `tokenizer.ggml.pre`. The publisher's pattern, also where llama.cpp only approximates it."""

UNKNOWN = _LLAMA3_BY_MERGES  # the rule of most recent vocabularies, apart from details
