"""The names of PDF pages: their position, the number printed on them, and the outline."""

from __future__ import annotations

from typing import Any

MAX_ENTRIES = 20_000
_LEVELS = 2  # of the outline: deeper ones change within a page
_LONGEST = 100  # maximum length of a name, which is shown beside a path


def page_names(document: Any) -> list[str]:
    """A name for each page of an open document: "page 21 (11): 2.5 Priorities".

    The number in parentheses is the page's own label, if it differs from its position. The title is the
    first outline entry on the page, or the last one before it.
    """
    begins: dict[int, str] = {}
    for read, entry in enumerate(document.get_toc()):
        if read >= MAX_ENTRIES:
            break
        if entry.level >= _LEVELS:
            continue
        target = entry.get_dest()
        index = target.get_index() if target is not None else None
        title = " ".join((entry.get_title() or "").split())
        if index is not None and title:
            begins.setdefault(index, title)
    names = []
    title = ""
    for index in range(len(document)):
        title = begins.get(index, title)
        number = str(index + 1)
        own = " ".join(document.get_page_label(index).split())
        name = f"page {number} ({own})" if own and own != number else f"page {number}"
        name = f"{name}: {title}" if title else name
        names.append(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")
    return names
