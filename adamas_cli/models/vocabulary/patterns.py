r"""Regular expressions that define a piece of text; merges never cross pieces.

They are written for Oniguruma, which `tokenizers` uses: `\s`, `\d` and `\p{…}` know Unicode, `[…&&[…]]` is an
intersection, `$` also ends a line, not only the text.
"""

# ruff: noqa: RUF001 - the publishers' own look-alike characters

from __future__ import annotations

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
NOT_WORD = r"[^\r\n\p{L}\p{N}]"  # may precede the letters of a word
SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
BLANK = r"\s*[\r\n]+|\s+(?!\S)|\s+"

DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
THREE_ASCII_DIGITS = "[0-9][0-9][0-9]"
UP_TO_THREE_DIGITS = r"\p{N}{1,3}"
THREES_FROM_THE_RIGHT = r"\d{1,3}(?=(?:\d{3})*\b)"
BEFORE_EACH_THREE = r"(?=(\d{3})+(?!\d))"  # an empty match: text is split there
LINE_END = r"[\r\n]"
LINES = r"[^\n]+|[\n]+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def words(
    digits: str = DIGIT,
    *,
    contraction: str = f"{CONTRACTION}|",
    letters: str = rf"{NOT_WORD}?\p{{L}}+",
    symbols: str = SYMBOLS,
    blank: str = BLANK,
) -> str:
    """GPT-4's pattern and its relatives: contractions, words, numbers, symbols, white space."""
    return f"{contraction}{letters}|{digits}|{symbols}|{blank}"


LLAMA3 = words(UP_TO_THREE_DIGITS)
QWEN2 = words()
QWEN35 = words(letters=rf"{NOT_WORD}?[\p{{L}}\p{{M}}]+", symbols=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")
MINICPM5 = words(DIGITS)
WITHOUT_CONTRACTIONS = words(contraction="")
SEED_CODER = words(symbols=r" ?[^\s\p{L}\p{N}\r\n]+")
BAILING = words(
    contraction=r"'(?i:[sdmt]|ll|ve|re)|",
    letters=rf"{NOT_WORD}?+\p{{L}}+",
    symbols=r" ?[^\s\p{L}\p{N}]++[\r\n]*",
    blank=r"\s*[\r\n]|\s+(?!\S)|\s+",
)
EXAONE_MOE = words(
    letters=rf"{NOT_WORD}?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+",
    symbols=r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
    blank=r"\s*[\r\n]|\s+(?!\S)|\s+",
)
_HALVING = "|".join(rf"\s{{{length}}}(?!\S)" for length in (512, 256, 128, 64, 32, 16, 8, 4))
JAIS2 = words(UP_TO_THREE_DIGITS, blank=rf"\s*[\r\n]+|{_HALVING}|\s{{1,2}}(?!\S)|\s{{1}}")

_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def cased_words(upper: str, lower: str, ending: str = "") -> str:
    """GPT-4o's words: `upper` letters, then `lower` ones, at least one in all, with a contraction."""
    return f"{NOT_WORD}?{upper}*{lower}+{ending}|{NOT_WORD}?{upper}+{lower}*{ending}"


_SYMBOLS_WITH_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
TEKKEN = words(
    contraction="", letters=cased_words(f"[{_UPPER}]", f"[{_LOWER}]"), symbols=_SYMBOLS_WITH_SLASHES
)
GPT4O = words(
    UP_TO_THREE_DIGITS,
    contraction="",
    letters=cased_words(f"[{_UPPER}]", f"[{_LOWER}]", f"{CONTRACTION}?"),
    symbols=_SYMBOLS_WITH_SLASHES,
)
YOUTU = words(
    contraction="",
    letters=cased_words(f"[{_UPPER}]", f"[{_LOWER}]", f"{CONTRACTION}?"),
    symbols=_SYMBOLS_WITH_SLASHES,
)
_NO_HAN = r"&&[^\p{Han}]"
KIMI = r"\p{Han}+|" + words(
    UP_TO_THREE_DIGITS,
    contraction="",
    letters=cased_words(f"[{_UPPER}{_NO_HAN}]", f"[{_LOWER}{_NO_HAN}]", f"{CONTRACTION}?"),
)

# DeepSeek and its followers.
_ASCII_SYMBOL = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
DEEPSEEK_V3 = (
    rf"{_ASCII_SYMBOL}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{BLANK}"
)
SPARK = (
    rf"{_ASCII_SYMBOL}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
)
IDEOGRAPHS_AND_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK_IDEOGRAPHS = "[一-龥ࠀ-一가-\ud7ff]+"
DEEPSEEK_CASED = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    r"Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1f7d}ᾀ-ᾴᾶ-ᾼ\x{1fbe}ῂ-ῄῆ-ῌῐ-\x{1fd3}ῖ-\x{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄ"
    r"Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
DEEPSEEK_SYMBOLS = "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"
SPACE_AT_THE_END = r"\s+$"
LETTERS_WITH_SPACE = r"\s?\p{L}+"
PUNCTUATION_WITH_SPACE = r"\s?\p{P}+"

# Scripts written without spaces; each kind is its own piece.
AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+"

PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
PUNCTUATION_OF_FALCON = r"[\p{P}\$\+<=>\^~\|`]+"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    "([\\t\\n]|    |  )",
    DIGIT,
    r"[\p{P}!-/:-@\[-`{-~]",
    GPT2,
)
