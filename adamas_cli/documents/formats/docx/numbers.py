"""The numbers that Word shows before headings and list items but does not store in their text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from adamas_cli.documents.formats.docx.markup_xml import W, run, value

_PLACE = re.compile(r"%([1-9])")
_LEVELS = 9
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"),
          (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip
_MOST = 10_000_000  # larger numbers are not formatted


@dataclass(frozen=True)
class _Level:
    start: int = 1
    kind: str = "decimal"
    text: str = ""
    restart: int | None = None  # the level, from 1, after which it restarts; 0 for never
    legal: bool = False  # show all its numbers as decimals


@dataclass
class _List:
    """A numbering that continues through the document; all uses of it share its counts."""

    levels: dict[int, _Level]
    by_style: dict[str, int]
    counts: dict[int, int] = field(default_factory=dict)


class Numbers:
    """A document's numbering, from its parts `numbering` and `styles`, either of which may be missing."""

    def __init__(self, numbering: Element | None, styles: Element | None) -> None:
        self._styles = _by_id(styles, "style", "styleId")
        self._abstract = _by_id(numbering, "abstractNum", "abstractNumId")
        self._uses = _by_id(numbering, "num", "numId")
        self._lists: dict[str, _List] = {}
        self._started: set[tuple[str, int]] = set()

    def write(self, root: Element) -> None:
        """Put each paragraph's number before its text; bullets are left unchanged.

        Removes the numbering that would number these paragraphs again.
        """
        for paragraph in root.iter(f"{W}p"):
            label = self._label(paragraph)
            if label is None:
                continue
            properties = paragraph.find(f"{W}pPr")
            if properties is not None and (own := properties.find(f"{W}numPr")) is not None:
                properties.remove(own)
            if label:
                at = 1 if properties is not None else 0
                paragraph.insert(at, run(f"{label} "))
        for definition in self._abstract.values():
            for level in definition.findall(f"{W}lvl"):
                style = level.find(f"{W}pStyle")
                if style is not None and _read_level(level).kind != "bullet":
                    level.remove(style)  # or its paragraphs become list items with their own numbers

    def _label(self, paragraph: Element) -> str | None:
        """The number of a paragraph; None if it has none or a bullet."""
        style = value(paragraph.find(f"{W}pPr/{W}pStyle"))
        number, level = self._place(paragraph.find(f"{W}pPr/{W}numPr"), style)
        use = self._uses.get(number)
        if use is None:
            return None
        numbered = self._list(use)
        if level is None:
            level = numbered.by_style.get(style, 0)
        shape = self._shape(use, numbered, level)
        if shape.kind == "bullet":
            return None
        self._count(number, use, numbered, level)
        return self._written(use, numbered, level, shape)

    def _place(self, own: Element | None, style: str) -> tuple[str, int | None]:
        """A paragraph's number and level, from its own properties, else from its style or that one's base."""
        number = value(own.find(f"{W}numId")) if own is not None else ""
        level = _integer(value(own.find(f"{W}ilvl")) if own is not None else "")
        seen: set[str] = set()
        while style in self._styles and style not in seen and (not number or level is None):
            seen.add(style)
            inherited = self._styles[style].find(f"{W}pPr/{W}numPr")
            if inherited is not None:
                number = number or value(inherited.find(f"{W}numId"))
                if level is None:
                    level = _integer(value(inherited.find(f"{W}ilvl")))
                if number:
                    break
            style = value(self._styles[style].find(f"{W}basedOn"))
        return number, level

    def _list(self, use: Element) -> _List:
        name = value(use.find(f"{W}abstractNumId"))
        if name not in self._lists:
            self._lists[name] = _read_list(self._definition(name))
        return self._lists[name]

    def _definition(self, name: str) -> Element | None:
        """The levels of a numbering, which may be defined in another one, linked by a style."""
        found = self._abstract.get(name)
        link = value(found.find(f"{W}numStyleLink")) if found is not None else ""
        for other in self._abstract.values() if link else ():
            if value(other.find(f"{W}styleLink")) == link:
                return other
        return found

    def _shape(self, use: Element, numbered: _List, level: int) -> _Level:
        for override in use.findall(f"{W}lvlOverride"):
            own = override.find(f"{W}lvl")
            if own is not None and _integer(override.get(f"{W}ilvl", "")) == level:
                return _read_level(own)
        return numbered.levels.get(level, _Level(text=f"%{level + 1}."))

    def _count(self, number: str, use: Element, numbered: _List, level: int) -> None:
        for override in use.findall(f"{W}lvlOverride"):
            at = _integer(override.get(f"{W}ilvl", ""))
            start = _integer(value(override.find(f"{W}startOverride")))
            if at is not None and start is not None and (number, at) not in self._started and at <= level:
                self._started.add((number, at))
                numbered.counts[at] = start - 1
                for deeper in [other for other in numbered.counts if other > at]:
                    del numbered.counts[deeper]
        first = self._shape(use, numbered, level).start
        numbered.counts[level] = numbered.counts.get(level, first - 1) + 1
        for deeper in [other for other in numbered.counts if other > level]:
            restart = self._shape(use, numbered, deeper).restart
            if restart is None or (restart and level < restart):
                del numbered.counts[deeper]

    def _written(self, use: Element, numbered: _List, level: int, shape: _Level) -> str:
        def number(place: re.Match[str]) -> str:
            at = int(place[1]) - 1
            of = self._shape(use, numbered, at)
            return formatted(numbered.counts.get(at, of.start), "decimal" if shape.legal else of.kind)

        return _PLACE.sub(number, shape.text).strip()


def formatted(number: int, kind: str) -> str:
    """A number as Word writes it; a decimal for unsupported kinds."""
    if not 0 <= number < _MOST:
        return str(number)
    if kind in ("lowerLetter", "upperLetter") and number:
        repeats, letter = divmod(number - 1, 26)
        text = chr(ord("a") + letter) * min(repeats + 1, 30)
    elif kind in ("lowerRoman", "upperRoman") and 0 < number < 4000:
        text = ""
        for size, digits in _ROMAN:
            text += digits * (number // size)
            number %= size
    elif kind == "none":
        return ""
    elif kind == "decimalZero":
        return f"{number:02}"
    elif kind == "ordinal":
        suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"{number}{suffix}"
    else:
        return str(number)
    return text.upper() if kind.startswith("upper") else text


def _read_list(definition: Element | None) -> _List:
    found = _List({}, {})
    for node in definition.findall(f"{W}lvl") if definition is not None else ():
        level = _integer(node.get(f"{W}ilvl", ""))
        if level is not None and 0 <= level < _LEVELS:
            found.levels[level] = _read_level(node)
            if style := value(node.find(f"{W}pStyle")):
                found.by_style[style] = level
    return found


def _read_level(node: Element) -> _Level:
    legal = node.find(f"{W}isLgl")
    start = _integer(value(node.find(f"{W}start")))
    return _Level(
        1 if start is None else start,
        value(node.find(f"{W}numFmt"), "decimal"),
        value(node.find(f"{W}lvlText")),
        _integer(value(node.find(f"{W}lvlRestart"))),
        legal is not None and value(legal, "1") not in ("0", "false", "off"),
    )


def _by_id(root: Element | None, name: str, key: str) -> dict[str, Element]:
    found = root.findall(f"{W}{name}") if root is not None else []
    return {node.get(f"{W}{key}", ""): node for node in found}


def _integer(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdigit() and len(text) < 10 else None
