"""Measures how often an encoding is judged right, for docs/documents.md.

    python docs/measure_encodings.py DJANGO [DETECTOR ...]

DJANGO is the unpacked source of Django, whose translations are the texts: single sentences, six, and sixty of
them, in each encoding that the language was kept in. A judgement is right if the text comes back character by
character. Detectors are `adamas` and those of the packages chardet, chardetng-py, faust-cchardet and
charset-normalizer that are installed.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

ENCODINGS = {
    **dict.fromkeys(["cs", "pl"], "cp1250 iso8859_2 cp852"),
    **dict.fromkeys(["hu", "sk", "hr", "sl", "ro"], "cp1250 iso8859_2"),
    **dict.fromkeys(["lt", "lv"], "cp1257 iso8859_13"),
    **dict.fromkeys(["de", "es", "fr"], "cp1252 mac_roman cp850"),
    **dict.fromkeys(["pt_BR", "sv", "fi", "da", "nb", "it", "nl", "is", "ca"], "cp1252"),
    **dict.fromkeys(["bg", "sr"], "cp1251"),
    "tr": "cp1254 iso8859_9",
    "az": "cp1254",
    "et": "cp1257",
    "ru": "cp1251 koi8_r cp866 iso8859_5 mac_cyrillic",
    "uk": "cp1251 koi8_u",
    "el": "cp1253 iso8859_7",
    "he": "cp1255 iso8859_8",
    "ar": "cp1256 iso8859_6",
    "fa": "cp1256",
    "vi": "cp1258",
    "th": "cp874",
    "ja": "cp932 euc_jp",
    "zh_Hans": "gb18030",
    "zh_Hant": "big5",
    "ko": "cp949 johab",
}
LENGTHS = {
    "1 sentence": (1, 40),
    "6 sentences": (6, 12),
    "60 sentences": (60, 2),
}  # sentences of a sample, and samples of each
_MESSAGE = re.compile(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\n?)+)', re.MULTILINE)
_MARKUP = re.compile(r"%\(\w+\)[sd]|%[sd]|\{[^}]*\}|<[^>]*>|\\[n\"]")


def sentences(django: Path, locale: str) -> list[str]:
    """The translated messages of a locale, without placeholders and markup."""
    found = []
    for file in sorted(django.glob(f"django/**/locale/{locale}/LC_MESSAGES/django.po")):
        for message in _MESSAGE.finditer(file.read_text("utf-8")):
            text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', message[1]))
            text = " ".join(_MARKUP.sub(" ", text).split())
            if "Project-Id" not in text and len(text) >= 12:
                found.append(text)
    return list(dict.fromkeys(found))


def samples(django: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, encoding and text of each sample that is not ASCII."""
    order = random.Random(1)
    for locale, encodings in ENCODINGS.items():
        for encoding in encodings.split():
            usable = [
                text
                for text in sentences(django, locale)
                if text.encode(encoding, "ignore").decode(encoding) == text
            ]
            order.shuffle(usable)
            for kind, (count, repeats) in LENGTHS.items():
                for start in range(0, count * repeats, count):
                    lines = [usable[(start + index) % len(usable)] for index in range(count)]
                    if not (text := "\n".join(lines) + "\n").isascii():
                        yield kind, encoding, text


def detector(name: str) -> Callable[[bytes], str | None]:
    """A function from bytes to the name of an encoding."""
    if name == "adamas":
        from adamas_cli.documents.guessing import guessed

        return guessed
    if name == "charset-normalizer":
        from charset_normalizer import from_bytes

        return lambda data: getattr(from_bytes(data).best(), "encoding", None)
    if name == "chardet":
        from chardet import detect

        return lambda data: detect(data, compat_names=False)["encoding"]
    module = __import__({"chardetng-py": "chardetng_py", "faust-cchardet": "cchardet"}[name])
    found = module.detect
    return lambda data: found(data)["encoding"] if name == "faust-cchardet" else found(data)


def main(django: str, *names: str) -> None:
    """Print the table."""
    chosen = list(samples(Path(django)))
    print(f"| detector | {' | '.join(LENGTHS)} | a text, ms |")
    print("|---|" + "---:|" * (len(LENGTHS) + 1), flush=True)
    for name in names or ("adamas",):
        detect = detector(name)
        right, total = defaultdict(int), defaultdict(int)
        begun = time.process_time()
        for kind, encoding, text in chosen:
            data = text.encode(encoding)
            with suppress(LookupError):  # a name unknown to Python
                right[kind] += data.decode(detect(data) or "ascii", "replace") == text
            total[kind] += 1
        spent = (time.process_time() - begun) / len(chosen) * 1000
        shares = " | ".join(f"{100 * right[kind] / total[kind]:.1f} % of {total[kind]:,}" for kind in LENGTHS)
        print(f"| {name} | {shares} | {spent:.1f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
