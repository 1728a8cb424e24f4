"""Web pages: their main text, without menus and comments. Needs the extra `web`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adamas_cli.documents.decoding import text_of
from adamas_cli.documents.formats.html import MAX_BYTES
from adamas_cli.documents.formats.markup import headed, label, written
from adamas_cli.documents.formats.pages import Page
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

_LEAST_SHARE = 0.25  # of the page's words: with less, the page has no main text
_ENOUGH_WORDS = 300  # but this many words are one, however many comments follow


def read(path: str, encoding: str | None = None, *, address: str, whole: bool) -> Iterator[Part | Remark]:
    """Markdown of the main text, or of the `whole` page, also if there is no main text. The page's title,
    address, author and date come first; each heading begins a section. encoding: the codec.
    Raises UnreadableError.
    """
    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise UnreadableError(Trouble.TOO_LARGE)
    html = text_of(file.read_bytes(), encoding)[0].removeprefix("\ufeff")
    page = Page(html, navigation=True)
    everything = written(page)
    found = None if whole else _main_text(html, address)
    text, title, about = found if found is not None else ("", label(page.title), "")
    all_words, words = len(everything.split()), len(text.split())
    if words < _ENOUGH_WORDS and words < _LEAST_SHARE * all_words:
        text, words = everything, all_words
    yield Part("\n".join(filter(None, [title, address, about])) + "\n\n", title or None)
    yield from headed(text)
    if text == everything:
        yield from (Remark(kind, count) for kind, count in page.left_out.items() if count)
    elif words < all_words:
        yield Remark("words around the main text, which `whole_pages` reads", all_words - words)


def _main_text(html: str, address: str) -> tuple[str, str, str] | None:
    """Text, title, and author with date, as far as they are found."""
    try:
        from trafilatura import extract, extract_metadata
    except ImportError:
        return None
    text = extract(
        html,
        url=address,
        output_format="markdown",
        favor_recall=True,
        include_comments=False,
        include_formatting=True,
        include_links=True,
    )
    if not text:
        return None
    told = extract_metadata(html, default_url=address)
    if told is None:
        return text, "", ""
    return text, label(told.title or ""), ", ".join(filter(None, [told.author, told.date]))
