"""The table of contents of an EPUB: titles and where they begin."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

from adamas_cli.documents.formats.epub.package import Package, UnreadPageError, joined, named
from adamas_cli.documents.formats.markup import label


@dataclass(frozen=True)
class Entry:
    """A title and where it begins; an empty `anchor` means the start of a file. Levels count from 0."""

    anchor: str
    title: str
    level: int


def contents(package: Package) -> dict[str, list[Entry]]:
    """The entries for each member, from EPUB 3 navigation, else from EPUB 2 navigation, else none."""
    navigation = [item.name for item in package.items if "nav" in item.properties]
    tables = [(name, _navigation) for name in navigation]
    tables += [(name, _ncx) for name in _tables_of_epub2(package)]
    for name, links_of in tables:
        try:
            links = links_of(package.description(name))
        except (UnreadPageError, RecursionError):
            continue
        if links:
            return _by_member(package, name, links)
    return {}


def _tables_of_epub2(package: Package) -> list[str]:
    listed = [item.name for item in package.items if item.suffix == ".ncx" and item.name != package.ncx]
    return [name for name in (package.ncx, *listed) if name]


def _navigation(soup: BeautifulSoup) -> list[tuple[str, str, int]]:
    """Target, title and level of each link in the table of contents, without page lists and landmarks."""
    tables = named(soup, "nav")
    chosen = [table for table in tables if "toc" in str(table.get("epub:type") or table.get("role") or "")]
    found = []
    for table in (chosen or tables)[:1]:
        for link in table.find_all("a", href=True):
            level = sum(parent.name in ("ol", "ul") for parent in link.parents) - 1
            found.append((str(link["href"]), link.get_text(" ", strip=True), max(level, 0)))
    return found


def _ncx(soup: BeautifulSoup) -> list[tuple[str, str, int]]:
    found = []
    for point in named(soup, "navpoint"):
        target = next((str(node.get("src") or "") for node in named(point, "content")), "")
        title = next((node.get_text(" ", strip=True) for node in named(point, "text")), "")
        if target:
            found.append((target, title, sum(_is_point(parent) for parent in point.parents)))
    return found


def _is_point(node: Tag) -> bool:
    return node.name.rpartition(":")[2] == "navpoint"


def _by_member(package: Package, base: str, links: list[tuple[str, str, int]]) -> dict[str, list[Entry]]:
    entries: dict[str, list[Entry]] = {}
    seen: set[tuple[str, str]] = set()
    for target, title, level in links:
        member = package.found(joined(base, target))
        anchor = unquote(urlsplit(target).fragment)
        if member is not None and (member, anchor) not in seen:
            seen.add((member, anchor))
            entries.setdefault(member, []).append(Entry(anchor, label(title), level))
    return entries
