"""Fetches pages and files from the web: only named ones, without following links."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

from adamas_cli import __version__
from adamas_cli.documents.remote import shown_address
from adamas_cli.errors import AdamasError
from adamas_cli.progress import Progress

MAX_BYTES = 256 * 2**20
MAX_REDIRECTS = 5
WITH_MENUS = "read with its menus; pip install 'adamas[web]' extracts the main text"
SECONDS = 600.0  # for the whole download
SILENCE_SECONDS = 30.0
_PAGES = ("text/html", "application/xhtml+xml")
# Media types of formats that a file's bytes do not show, with the suffixes that show them.
_SUFFIXES = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/markdown": ".md",
    "text/vtt": ".vtt",
    "message/rfc822": ".eml",
    "application/x-ipynb+json": ".ipynb",
    "application/mbox": ".mbox",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.ms-outlook": ".msg",
}


class Page:
    """What was fetched from an address, in a temporary file that exists as long as this object."""

    def __init__(self, address: str, name: str, media_type: str) -> None:
        """name: the file's name, whose suffix tells its format. media_type: from the server."""
        self._folder = tempfile.mkdtemp(prefix="adamas-")
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.address = address
        self.path = os.path.join(self._folder, name)
        self.is_page = media_type in _PAGES


def fetch(address: str, progress: Progress) -> Page:
    """Fetch an address. Raises AdamasError with the reason."""
    import httpx2

    shown = shown_address(address)
    headers = {"User-Agent": f"adamas/{__version__}", "Accept": "text/html,text/*;q=0.9,*/*;q=0.8"}
    try:
        with (
            httpx2.Client(
                follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=SILENCE_SECONDS, headers=headers
            ) as client,
            client.stream("GET", address) as response,
        ):
            if response.is_error:
                why = f"{response.status_code} {response.reason_phrase}".strip()
                raise AdamasError(f"{shown} could not be fetched: the server answers {why}.")
            media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            page = Page(shown, _file_name(str(response.url), media_type), media_type)
            charset = response.charset_encoding if media_type.startswith("text/") else None
            _save(response, page, shown, charset, progress)
    except httpx2.TooManyRedirects as error:
        raise AdamasError(f"{shown} could not be fetched: too many redirects.") from error
    except httpx2.TimeoutException as error:
        raise AdamasError(f"{shown} could not be fetched: the server does not answer.") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        raise AdamasError(f"{shown} could not be fetched: {error or type(error).__name__}.") from error
    return page


def reads_main_text() -> bool:
    """Whether the library that extracts a page's main text is installed, with the extra `web`."""
    return find_spec("trafilatura") is not None


def _save(response: object, page: Page, shown: str, charset: str | None, progress: Progress) -> None:
    """Write the body; as UTF-8 with a byte order mark if the server names another encoding."""
    import codecs

    decoder = None
    if charset is not None:
        try:
            if codecs.lookup(charset).name not in ("utf-8", "ascii"):
                decoder = codecs.getincrementaldecoder(charset)("replace")
        except LookupError:
            pass
    deadline = time.monotonic() + SECONDS
    size = 0
    with progress.task(f"fetching {shown}", None, "bytes") as advance, open(page.path, "wb") as file:
        if decoder is not None:
            file.write(codecs.BOM_UTF8)
        for block in response.iter_bytes():  # type: ignore[attr-defined]
            size += len(block)
            if size > MAX_BYTES:
                raise AdamasError(f"{shown} is larger than the {MAX_BYTES // 2**20} MiB that are fetched.")
            if time.monotonic() > deadline:
                raise AdamasError(f"{shown} could not be fetched in {SECONDS:.0f} seconds.")
            file.write(block if decoder is None else decoder.decode(block).encode())
            advance(len(block))


def _file_name(address: str, media_type: str) -> str:
    """A name for the file, with the suffix from the address or the server."""
    name = unquote(urlsplit(address).path).rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    if media_type in _SUFFIXES and not (suffix and media_type == "text/html"):
        suffix = _SUFFIXES[media_type]
    safe = "".join(character for character in suffix if character.isalnum() or character == ".")
    inner = os.path.splitext(stem)[1] if suffix.lower() in (".gz", ".bz2", ".xz") else ""
    return f"page{''.join(c for c in inner if c.isalnum() or c == '.')}{safe}"[:64]
