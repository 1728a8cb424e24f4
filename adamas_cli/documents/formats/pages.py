"""An HTML page as a browser would build it, without invisible content."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from selectolax.lexbor import LexborHTMLParser

from adamas_cli.documents.decoding import text_of
from adamas_cli.documents.formats.page_tables import plain_tables

MAX_DEPTH = 2000  # of nested elements; the parser's time grows quadratically with it
_MOST_INLINE = 2000  # bold words and the like in one paragraph; the converter's time grows quadratically

_UNREAD = (
    "script, style, noscript, template, head, iframe, object, embed, audio, video, canvas, datalist, "
    "dialog:not([open])"
)
_HIDDEN = "[hidden], [aria-hidden=true], [style]"
_HIDING = re.compile(
    r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse))\b", re.IGNORECASE
)
_NAVIGATION = "nav, [role=navigation], .nav-panel, .navheader, .navfooter, .sphinxsidebar"
_PERMALINK = "a.headerlink, a.anchorjs-link, a.permalink"
_INLINE = "b, strong, i, em, code, tt, kbd, samp, s, del, ins, mark, u, small, cite, var, dfn"
_DESCRIPTION = "meta[name=description], meta[property='og:description']"

_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)")
_EMPTY = (
    *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source"),
    *("track", "wbr"),
)
# Elements that cannot nest deeply: empty ones, those that the next one ends, and formatting (parser-limited).
_FLAT = frozenset(
    [
        *("html", "head", "body", "p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot"),
        *("colgroup", "option", "optgroup", "rt", "rp", "a", "b", "big", "code", "em", "font", "i", "nobr"),
        *("s", "small", "strike", "strong", "tt", "u"),
        *_EMPTY,
    ]
)
_XHTML = re.compile(r"\s*<\?xml\b|[^>]*<html[^>]*\bxmlns\s*=", re.IGNORECASE)
_XML_LINES = re.compile(r"<\?[^<>]{0,1000}\?>")
_CLOSED = re.compile(r"<([A-Za-z][\w:-]*)((?:[^<>\"']|\"[^\"<]*\"|'[^'<]*')*)/>")
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)

_RAISED = str.maketrans("0123456789+-\u2212=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱ")
_LOWERED = str.maketrans("0123456789+-\u2212=()aeoxhklmnpst", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎ₐₑₒₓₕₖₗₘₙₚₛₜ")
_ORDINALS = ("st", "nd", "rd", "th", "e", "er", "re", "o", "a", "º", "ª", "tm", "®", "™")


class Page:
    """What a browser shows of `html`: its `tree`, title and description, and counts of what was `left_out`.

    Raises RecursionError for very deep nesting.
    """

    def __init__(self, html: bytes | str, *, navigation: bool = False) -> None:
        """navigation: keep navigation blocks."""
        source = text_of(html)[0] if isinstance(html, bytes) else html
        if "<?xml" in source[:200] or "xmlns" in source[:2000]:
            source = _without_xml(source)
        if _depth(source) > MAX_DEPTH:
            raise RecursionError("elements are nested too deeply")
        self.tree = LexborHTMLParser(source)
        self.left_out: Counter[str] = Counter()
        self.title = _squeezed(_text(self.tree.css_first("title")))
        description = self.tree.css_first(_DESCRIPTION)
        self.description = _squeezed((description.attributes.get("content") or "") if description else "")
        self._prune()
        if not navigation:
            self._leave_out_navigation()
        self._rewrite()

    @property
    def body(self) -> str:
        """The HTML of the remaining page."""
        return self.tree.html or ""

    def _prune(self) -> None:
        for node in self.tree.css(_UNREAD):
            node.decompose()
        for node in self.tree.css("math"):
            node.replace_with(_formula(node))
        self._leave_out("drawings", self.tree.css("svg"))
        hidden = [
            node
            for node in self.tree.css(_HIDDEN)
            if node.tag not in ("html", "body")
            and (
                "hidden" in node.attributes
                or node.attributes.get("aria-hidden") == "true"
                or _HIDING.search(node.attributes.get("style") or "")
            )
        ]
        self._leave_out("hidden elements", hidden)
        for node in self.tree.css(_PERMALINK):
            node.decompose()

    def _leave_out_navigation(self) -> None:
        navigation = self.tree.css(_NAVIGATION)
        if navigation:
            words = len(_text(self.tree.body).split())
            if words > sum(len(_text(node).split()) for node in _outermost(navigation)):
                self._leave_out("navigation blocks", navigation)

    def _leave_out(self, kind: str, nodes: list[Any]) -> None:
        for node in reversed(_outermost(nodes)):
            self.left_out[kind] += bool(_text(node).strip())
            node.decompose()

    def _rewrite(self) -> None:
        for node in self.tree.css("img, area"):
            alternative = _squeezed(node.attributes.get("alt") or "")
            self.left_out["pictures without a description"] += not alternative and node.tag == "img"
            node.replace_with(alternative)
        for node in self.tree.css("sup"):
            node.replace_with(raised(_text(node)))
        for node in self.tree.css("sub"):
            node.replace_with(lowered(_text(node)))
        for node in self.tree.css("q"):
            node.insert_before("“")
            node.insert_after("”")
            node.unwrap()
        for node in self.tree.css("input"):
            node.replace_with(_entered(node.attributes))
        for node in self.tree.css("a"):
            if not (node.attributes.get("href") or "").startswith(("http://", "https://")):
                node.unwrap()
            elif not _text(node).strip():
                node.decompose()
        self._flatten_inline()
        plain_tables(self.tree)

    def _flatten_inline(self) -> None:
        nodes = self.tree.css(_INLINE)
        if len(nodes) <= _MOST_INLINE:
            return
        inside = Counter(node.parent.mem_id for node in nodes if node.parent is not None)
        for node in nodes:
            if node.parent is not None and inside[node.parent.mem_id] > _MOST_INLINE:
                node.unwrap()


def raised(text: str) -> str:
    """A superscript as plain text: `²`, `[1]` for a note, `th` of an ordinal number, else `^(x+y)`."""
    return _shifted(text, _RAISED, "^")


def lowered(text: str) -> str:
    """A subscript as plain text: `₂`, else `_(ij)`."""
    return _shifted(text, _LOWERED, "_")


def _shifted(text: str, table: dict[int, int], sign: str) -> str:
    bare = text.strip()
    if not bare or bare.startswith("[") or bare.lower() in _ORDINALS:
        return text
    shifted = bare.translate(table)
    if all(ord(character) in table for character in bare):
        return shifted
    return f"{sign}{bare}" if len(bare) == 1 else f"{sign}({_squeezed(bare)})"


def _formula(node: Any) -> str:
    """The LaTeX in a MathML formula, else its symbols."""
    annotation = node.css_first("annotation[encoding='application/x-tex']")
    if annotation is not None:
        return f" ${_squeezed(_text(annotation))}$ "
    return node.attributes.get("alttext") or _squeezed(node.text(separator=" "))


def _entered(attributes: dict[str, str | None]) -> str:
    kind = (attributes.get("type") or "text").lower()
    if kind in ("checkbox", "radio"):
        return "[x] " if "checked" in attributes else "[ ] "
    if kind in ("hidden", "password", "submit", "button", "image", "reset", "file"):
        return ""
    return attributes.get("value") or ""


def _outermost(nodes: list[Any]) -> list[Any]:
    """Those of `nodes`, in document order, that are not inside another of them."""
    known = {node.mem_id for node in nodes}
    found, inside = [], set()
    for node in nodes:
        path: list[Any] = []
        parent = node.parent
        while parent is not None and parent.mem_id not in known and len(path) < MAX_DEPTH:
            path.append(parent)
            parent = parent.parent
        if parent is None or len(path) == MAX_DEPTH:
            found.append(node)
        else:
            inside.add(node.mem_id)
    return found


def _depth(source: str) -> int:
    """The maximum nesting depth of elements, estimated from the tags without parsing."""
    deepest = depth = 0
    if source.count("<") <= MAX_DEPTH:
        return 0
    for end, name in _TAG.findall(source):
        if name.lower() not in _FLAT:
            depth = max(0, depth - 1) if end else depth + 1
            deepest = max(deepest, depth)
    return deepest


def _without_xml(source: str) -> str:
    """XHTML in HTML syntax, where `<title/>` would not be closed."""
    if not _XHTML.match(source[:2000]):
        return source
    source = _CDATA.sub(lambda data: data[1].replace("&", "&amp;").replace("<", "&lt;"), source)
    source = _XML_LINES.sub("", source)
    return _CLOSED.sub(
        lambda tag: tag[0] if tag[1].lower() in _EMPTY else f"<{tag[1]}{tag[2]}></{tag[1]}>", source
    )


def _text(node: Any) -> str:
    return "" if node is None else node.text(deep=True) or ""


def _squeezed(text: str) -> str:
    return " ".join(text.split())
