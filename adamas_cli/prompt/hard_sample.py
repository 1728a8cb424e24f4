"""Text on which tokenizers differ: scripts, digits, white space, line ends, marks, long runs."""

# ruff: noqa: RUF001 - look-alike characters are what it is for

from __future__ import annotations

HARD_SAMPLE = "\n".join(
    [
        "def f(x: int) -> str:\n\treturn  f'{x!r:>10}'   # it's John's; we'LL, I'D, they've, 'ſ 'K\n\n\n",
        "    pass",
        "1234567890 3.14159 1,000,000 0x1F ½²³ Ⅷ ٠١٢٣ १२३ 第123章  42   7\n 5\n  6",
        "我们的狐狸。跳过了！「懒狗」 こんにちは、カタカナ 한국어 문장입니다 ไม่มีช่องว่าง हिन्दी में العربية עִבְרִית",
        "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 e\u0301 e\u0323\u0302 Z\u0351\u036b\u0343 \u1100\u1161\u11a8 ﬁ Å \u212b \u0344",
        "trailing   \r\n\r\n  crlf \r lone\t\ttabs \t \n \x0b\x0c\x1c\x1f",
        "\x85\xa0\u2003\u2028\u2029\u3000x\u200b\ufeff\u180ey",
        "\x00\x01\x02\x03\x05\x07\x1b[0m\x7f\x80\xad\ufffd\ufffe \ue000",
        "ᚠᛇᚻ ꙮ ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ አማርኛ ქართული ߊ ꓡꓲꓢꓴ ⵜⵉⴼ 𝔘𝔫𝔦 𝟙𝟚 𠜎𠜱",
        "<|im_start|>user<|im_end|> <s></s> <tool_call> [INST] https://example.org/a?b=c&d=%20#e",
        "===----***///\n///\r\n",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        " " * 300 + "x" + "\n" * 130 + " \n" * 60 + "=" * 130 + "\t" * 40,
        "QmFzZTY0IGlzbid0IHByb3Nl+/9xZ0a1B2c3D4==",
        "   ",
    ]
)
